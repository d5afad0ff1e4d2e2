//! `ah agent enroll` and `ah agent status` (contract §3, ST-1 to ST-3), and the quick start.

use std::process::Command;

use ah_testkit::need;
use ah_testkit::process::{AccessPoint, Host, Process, eventually};
use nix::sys::signal::Signal;

use crate::kit::{
    EXECUTOR_ID, Files, Told, executor_leaf, failed, host, json, mode, pair, sh, shell, try_sh,
    until_closed, unused_address,
};

#[test]
fn the_quick_start_word_for_word() {
    if !need("unshare") || !need("ip") {
        return;
    }
    // The two lines of the guide, in a network of their own: their port may be taken on this machine.
    let guide = include_str!("../../fixtures/guide-lines.txt");
    let lines: Vec<_> = guide
        .lines()
        .filter(|line| line.starts_with("ah agent "))
        .take(2)
        .collect();
    assert!(
        lines[0].ends_with("--fleet-listen 127.0.0.1:4433")
            && lines[1].ends_with("--name worker-1")
    );
    let host = host();
    let script = format!("ip link set lo up\n{} &\n{} &\nwait", lines[0], lines[1]);
    let typed = shell(&host, &script);
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--pid", "--fork", "--kill-child"])
        .arg(typed.get_program())
        .args(typed.get_args())
        .env_clear()
        .envs(
            typed
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .current_dir(host.path(""));
    let both = Process::start(&mut command);
    both.wait_for(
        " enrolled executor.id=spiffe://ah-dev/ah/agent/worker-1 access_point=127.0.0.1:4433",
    );
    assert!(sh(&host, "ah agent status").contains("enrolled"));
}

#[test]
fn en_1_access_points_are_tried_in_order() {
    let (first_host, second_host, host) = (host(), host(), host());
    let pair = pair(&host);
    let first = pair.server.access_point(&first_host, &[]);
    let second = pair.server.access_point(&second_host, &[]);
    let closed = unused_address();
    let more = [
        "--remote-server",
        &format!("https://{}", first.address),
        "--remote-server",
        &format!("https://{}", second.address),
    ];
    let executor = Process::start(&mut pair.executor.enroll(&host, closed, &more));
    executor.wait_for(&format!(
        " enrolled executor.id={EXECUTOR_ID} access_point={}",
        first.address
    ));
    let over = format!("connection refused to {closed}; trying the next access point");
    assert_eq!(executor.count(&over), 1);
    let status = json(&host, &["agent", "status", "--json"]);
    assert_eq!(status["access_point"], first.address.to_string());

    // EN-1, EN-13: the first dies, as by a power cut.
    drop(first);
    executor.wait_for(&format!(
        " enrolled executor.id={EXECUTOR_ID} access_point={}",
        second.address
    ));
    assert!(
        executor.count("the next access point") > 1,
        "it looks at each"
    );
    let fleet = json(
        &second_host,
        &["agent", "fleet", "list", "--json", "--live"],
    );
    assert_eq!(fleet["executors"][0]["id"], EXECUTOR_ID);
}

#[test]
fn en_6_en_8_name_and_labels() {
    let host = host();
    let access_point = host.access_point(&[]);
    std::fs::write(
        host.path("labels"),
        "# where it stands\nzone=eu-1\ntier=gold\n",
    )
    .unwrap();
    let labelled = host.executor(
        access_point.address,
        &[
            "--name",
            "worker-1",
            "--label",
            "tier=silver",
            "--label",
            "gpu=a100",
            "--labels-file",
            "labels",
        ],
    );
    labelled.wait_for(" enrolled executor.id=");
    let plain = host.executor(access_point.address, &[]);
    plain.wait_for(" enrolled executor.id=");
    let names = |labels: &[&str]| {
        let mut args = vec!["agent", "fleet", "list", "--json"];
        args.extend(labels.iter().flat_map(|label| ["--label", label]));
        let fleet = json(&host, &args);
        let executors = fleet["executors"].as_array().unwrap().iter();
        executors
            .map(|executor| executor["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&[]).len(), 2);
    assert_eq!(names(&["zone=eu-1", "gpu=a100"]), ["worker-1"]);
    assert_eq!(
        names(&["tier=silver"]),
        ["worker-1"],
        "the flag wins over the file"
    );
    assert_eq!(names(&["zone=eu-1", "gpu=h100"]), [""; 0]);
    let hostname = sh(&host, "uname -n");
    assert!(
        names(&[]).contains(&hostname.trim().to_owned()),
        "EN-6: the host's name by default"
    );
}

#[test]
fn en_10_en_11_once_for_scripts() {
    let host = host();
    let nobody = unused_address().to_string();
    let server = format!("https://{nobody}");
    for once in ["--once", "--once=enrolled"] {
        let done = host.run(["agent", "enroll", "--remote-server", &server, once]);
        let told = failed(&done, 1);
        assert_eq!(told.text, format!("connection refused to {nobody}"));
        assert!(!done.stderr.contains("retrying in"), "{}", done.stderr);
    }
    let mut access_point = host.access_point(&[]);
    let enrolled = host
        .executor(access_point.address, &["--once=enrolled"])
        .wait();
    assert_eq!(enrolled.code(), Some(0));
    // With --once alone it stays, and leaves when the session is lost.
    let mut staying = host.executor(
        access_point.address,
        &["--once", "--status-socket", "mine.sock"],
    );
    staying.wait_for(" enrolled executor.id=");
    let status = json(
        &host,
        &["agent", "status", "--status-socket", "mine.sock", "--json"],
    );
    assert_eq!(status["enrolled"], true);
    access_point.process.kill();
    assert_eq!(staying.wait().code(), Some(1));
    let told = Told::first(staying.lines());
    assert_eq!(
        told.text,
        format!("connection to {} was lost", access_point.address)
    );
    assert!(!told.hint.is_empty());
}

#[test]
fn st_1_to_st_3_what_an_executor_says_of_itself() {
    if !need("openssl") {
        return;
    }
    let host = host();
    // ST-3: nobody there.
    assert_eq!(host.run(["agent", "status"]).code, 3);
    failed(&host.run(["agent", "status", "--name", "ghost"]), 3).says(
        &format!(
            "no such executor process: nobody answers on {}",
            host.path("run/executor-ghost.sock").display()
        ),
        &[],
        "check the name",
    );
    // There, and not enrolled.
    let lost = host.executor(unused_address(), &["--name", "lost"]);
    lost.wait_for("retrying in");
    let done = host.run(["agent", "status", "--name", "lost"]);
    assert_eq!(done.code, 1, "{done:?}");
    done.prints(&[
        "not enrolled",
        "connection refused to ",
        "next attempt",
        "hint",
    ]);
    let status = host.run(["agent", "status", "--name", "lost", "--json"]);
    assert_eq!(status.code, 1);
    let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!(status["enrolled"], false);
    drop(lost);

    let pair = pair(&host);
    let access_point = pair
        .server
        .access_point(&host, &["--heartbeat-interval", "100ms"]);
    let executor = Process::start(&mut pair.executor.enroll(
        &host,
        access_point.address,
        &["--name", "worker-1"],
    ));
    executor.wait_for(" enrolled executor.id=");
    let status = || json(&host, &["agent", "status", "--json"]);
    let beaten = eventually("a heartbeat", || {
        let status = status();
        status["heartbeats"]["round_trip_us"]
            .is_number()
            .then_some(status)
    });
    assert_eq!(beaten["enrolled"], true);
    assert_eq!(beaten["executor_id"], EXECUTOR_ID);
    assert_eq!(beaten["access_point_id"], "spiffe://example.org/ah/serve");
    assert_eq!(beaten["provider"], "files");
    assert_eq!(beaten["rotations"], 0);
    let done = host.run(["agent", "status"]);
    assert_eq!(done.code, 0);
    done.prints(&[
        "status",
        "enrolled",
        "worker-1",
        EXECUTOR_ID,
        "files",
        "since",
        "heartbeat",
        "round trip",
        "cert expires",
        "rotations",
    ]);

    // In JSON as in the text: moments in RFC 3339, the key as people call it.
    let leaf = &beaten["certificate"]["leaf"];
    for moment in [&leaf["not_before"], &leaf["not_after"], &beaten["since"]] {
        assert!(moment.as_str().unwrap().ends_with('Z'), "{moment}");
    }
    assert_eq!(leaf["key"], "ECDSA P-256");

    // ST-2, held against openssl.
    let shown = sh(&host, "ah agent status --show-cert");
    let of = |flags: &str| {
        let line = sh(
            &host,
            &format!("openssl x509 -in executor.pem -noout {flags}"),
        );
        line.split_once('=')
            .unwrap()
            .1
            .trim()
            .replace(':', "")
            .to_lowercase()
    };
    for part in [of("-serial"), of("-fingerprint -sha256")] {
        assert!(shown.contains(&part), "no {part}: {shown}");
    }
    for part in [
        "subject",
        "issuer",
        "not before",
        "not after",
        "key",
        "ECDSA P-256",
        "trust root",
        EXECUTOR_ID,
    ] {
        assert!(shown.contains(part), "no {part}: {shown}");
    }
    let same = "ah agent status --show-cert --pem > shown.pem; openssl verify -CAfile executor-ca.pem shown.pem; cmp shown.pem executor.pem";
    sh(&host, same);
    let watch = Process::start(&mut host.command(["agent", "status", "--watch", "--json"]));
    watch.wait_for("\"enrolled\": true");
    drop(access_point);
    watch.wait_for("\"enrolled\": false");
}

#[test]
fn en_12_en_14_the_executor_as_a_service() {
    let host = host();
    let pair = pair(&host);
    let access_point = pair.server.access_point(&host, &[]);
    // AP-17 and AP-18 for the executor.
    std::fs::write(
        host.path("executor.toml"),
        format!(
            "remote_server = [\"https://{}\"]\nidentity = \"files\"\ncert = \"executor.pem\"\nkey = \"executor-key.pem\"\nca = \"executor-ca.pem\"\nname = \"from-file\"\nlabel = [\"a=b\"]\nlog_level = \"warn\"\n",
            access_point.address
        ),
    )
    .unwrap();
    sh(
        &host,
        "ah agent enroll --config executor.toml --validate | grep -x valid",
    );
    let mut executor = host.start(["agent", "enroll", "--config", "executor.toml"]);
    let status = eventually("enrolled", || {
        let done = try_sh(&host, "ah agent status --name from-file --json");
        (done.code == 0).then(|| serde_json::from_str::<serde_json::Value>(&done.stdout).unwrap())
    });
    assert_eq!(status["executor_id"], EXECUTOR_ID);
    assert_eq!(
        executor.lines(),
        Vec::<String>::new(),
        "warn: nothing to say"
    );

    // HUP: the log level of the file and the files themselves are read again; the session stays up.
    sh(&host, "sed -i 's/warn/info/' executor.toml");
    executor.signal(Signal::SIGHUP);
    executor.wait_for("certificate unchanged");
    rotate(&host, &pair.executor, &executor_leaf(&pair.ca));
    executor.wait_for("certificate rotated; enrollment moved to a new connection");
    access_point
        .process
        .wait_for("executor certificate rotated");
    let after = json(&host, &["agent", "status", "--json"]);
    assert_eq!(
        (&after["rotations"], &after["since"]),
        (&serde_json::json!(1), &status["since"])
    );
    // The access point never shows it offline.
    assert_eq!(access_point.process.count("executor disconnected"), 0);

    executor.signal(Signal::SIGTERM);
    assert_eq!(executor.wait().code(), Some(0));
    let left = access_point.process.wait_for("executor disconnected");
    assert!(left.contains("goodbye"), "{left}");
    assert!(!host.path("run/executor-from-file.sock").exists());
    assert_eq!(try_sh(&host, "ah agent status").code, 3);
}

fn rotate(host: &Host, files: &Files, leaf: &ah_testkit::ca::TestLeaf) {
    let new = leaf.write(&host.path(""), "next");
    std::fs::rename(new.key, &files.key).unwrap();
    std::fs::rename(new.cert, &files.cert).unwrap();
}

#[test]
fn dv_1_dv_2_dev_is_real_mtls_and_stays_at_home() {
    if !need("openssl") {
        return;
    }
    let host = host();
    let access_point = host.access_point(&[]);
    let dev = host.state().join("dev");
    assert_eq!(mode(&dev), 0o700);
    assert_eq!(mode(&dev.join("ca-key.pem")), 0o600);
    // Verified both ways: the certificate is of the dev CA for an hour, and who has none is refused.
    let address = access_point.address;
    let line = format!("openssl s_client -connect {address} -CAfile state/dev/ca.pem -alpn h2");
    let seen = until_closed(&host, &line);
    assert!(seen.contains("Verify return code: 0 (ok)"), "{seen}");
    access_point.process.wait_for("client certificate required");
    sh(
        &host,
        &format!(
            "openssl s_client -connect {address} 2>/dev/null </dev/null | openssl x509 > served.pem || true
             openssl x509 -in served.pem -noout -checkend 3000; ! openssl x509 -in served.pem -noout -checkend 3700"
        ),
    );
    // Another user's dev CA is another.
    let stranger = crate::kit::host();
    let done = stranger.run([
        "agent",
        "enroll",
        "--once",
        "--remote-server",
        &format!("https://{address}"),
    ]);
    let told = failed(&done, 1);
    assert!(told.text.contains("certificate"), "{told:?}");

    // DV-2.
    let everywhere = ["agent", "access-point", "--fleet-listen", "0.0.0.0:0"];
    let told = failed(&host.run(everywhere), 2);
    assert!(told.hint.contains("files"), "{told:?}");
    let away = host.run([
        "agent",
        "enroll",
        "--remote-server",
        "https://10.0.0.1:4433",
    ]);
    assert!(failed(&away, 2).hint.contains("files"));
    drop(access_point);
    let args = ["--fleet-listen", "0.0.0.0:0", "--dev-allow-remote"];
    let access_point: AccessPoint = host.access_point(&args);
    let warning = access_point
        .process
        .lines()
        .into_iter()
        .find(|line| line.contains("WARN") && line.contains("dev"));
    assert!(
        warning.is_some(),
        "{}",
        access_point.process.lines().join("\n")
    );
    // A second machine with a copy of the dev CA.
    let second = crate::kit::host();
    sh(
        &host,
        &format!("cp -rp state/dev {}/", second.state().display()),
    );
    let local = std::net::SocketAddr::from(([127, 0, 0, 1], access_point.address.port()));
    let done = second
        .executor(
            local,
            &["--once=enrolled", "--dev-allow-remote", "--name", "far"],
        )
        .wait();
    assert_eq!(done.code(), Some(0));
}
