//! The commands, as processes, against a server of this process: upstream's texts and exit codes (inventory
//! section 6).

use std::process::{Output, Stdio};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::rig::{Rig, wire};

/// Runs `spire-server` with `arguments` on the rig's socket.
pub(crate) async fn run(rig: &Rig, arguments: &[&str], input: &str) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_spire-server"));
    command.args(arguments).arg("-socketPath").arg(&rig.socket);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A command that does not read has ended by now.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    child.wait_with_output().await.unwrap()
}

/// What a command that succeeds prints.
pub(crate) async fn ok(rig: &Rig, arguments: &[&str]) -> String {
    let output = run(rig, arguments, "").await;
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    assert_eq!(stderr, "");
    String::from_utf8(output.stdout).unwrap()
}

/// What a command that fails prints on standard error.
pub(crate) async fn fails(rig: &Rig, arguments: &[&str]) -> String {
    let output = run(rig, arguments, "").await;
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

pub(crate) async fn json(rig: &Rig, arguments: &[&str]) -> Value {
    let arguments = [arguments, &["-output", "json"]].concat();
    serde_json::from_str(&ok(rig, &arguments).await).unwrap()
}

const CREATE: [&str; 8] = [
    "entry",
    "create",
    "-parentID",
    "spiffe://example.org/p",
    "-spiffeID",
    "spiffe://example.org/w",
    "-selector",
    "unix:uid:0",
];

#[tokio::test]
async fn entries_are_printed_as_upstream_prints_them() {
    let rig = Rig::start().await;
    let more = [
        "-entryID",
        "e",
        "-hint",
        "h",
        "-dns",
        "w.org",
        "-admin",
        "-x509SVIDTTL",
        "60",
    ];
    let created = ok(&rig, &[&CREATE[..], &more].concat()).await;
    let expected = "\
Entry ID                : e
SPIFFE ID               : spiffe://example.org/w
Parent ID               : spiffe://example.org/p
Revision                : 0
X509-SVID TTL           : 60
JWT-SVID TTL            : default
Selector                : unix:uid:0
DNS name                : w.org
Admin                   : true
Hint                    : h

";
    assert_eq!(created, expected);
    assert_eq!(
        ok(&rig, &["entry", "show"]).await,
        format!("Found 1 entry\n{expected}")
    );
    assert_eq!(
        ok(&rig, &["entry", "count"]).await,
        "1 registration entry\n"
    );
    assert_eq!(
        ok(&rig, &["entry", "count", "-downstream"]).await,
        "0 registration entries\n"
    );
    let shown = json(&rig, &["entry", "show", "-entryID", "e"]).await;
    let entry = &shown["entries"][0];
    assert_eq!(
        entry["spiffe_id"],
        json!({ "trust_domain": "example.org", "path": "/w" })
    );
    assert_eq!(entry["revision_number"], "0");
    assert_eq!(shown["next_page_token"], "");
    let again = fails(&rig, &CREATE).await;
    let head = "Failed to create the following entry (code: AlreadyExists, msg: \"similar entry already exists\"):\nEntry ID                : (none)\n";
    assert!(again.starts_with(head), "{again}");
    assert!(
        again.ends_with("\nError: failed to create one or more entries\n"),
        "{again}"
    );
    let update = ["entry", "update", "-entryID", "e", "-jwtSVIDIncludeJTI"];
    let updated = ok(&rig, &[&update[..], &CREATE[2..]].concat()).await;
    assert!(
        updated.contains("Revision                : 1\n"),
        "{updated}"
    );
    assert!(
        updated.contains("JwtSvidIncludeJti       : true\n"),
        "{updated}"
    );
    assert_eq!(
        ok(&rig, &["entry", "delete", "-entryID", "e"]).await,
        "Deleted entry with ID: e\n\n\nDeleted 1 entries successfully"
    );
    assert_eq!(
        fails(&rig, &["entry", "delete", "-entryID", "e"]).await,
        "Failed to delete entry with ID e (code: NotFound, msg: \"entry not found\")\nError: failed to delete one or more entries\n"
    );
}

#[tokio::test]
async fn entries_come_from_files_and_from_standard_input() {
    let rig = Rig::start().await;
    let file = rig.folder.path().join("entries.json");
    let document = json!({ "entries": [
        {
            "entry_id": "one", "spiffe_id": "spiffe://example.org/one",
            "parent_id": "spiffe://example.org/p",
            "selectors": [{ "type": "unix", "value": "uid:1" }],
        },
        {
            "entryId": "two", "spiffeId": "spiffe://example.org/two",
            "parentId": "spiffe://example.org/p",
            "selectors": [{ "type": "unix", "value": "uid:2" }],
        },
    ] });
    std::fs::write(&file, document.to_string()).unwrap();
    let path = file.to_str().unwrap();
    let created = ok(&rig, &["entry", "create", "-data", path]).await;
    assert_eq!(created.matches("Entry ID").count(), 2);
    let updated = run(
        &rig,
        &["entry", "update", "-data", "-"],
        &document.to_string(),
    )
    .await;
    assert!(updated.status.success());
    let ids = json!({ "ids": ["one", "two"] }).to_string();
    let deleted = run(&rig, &["entry", "delete", "-file", "-"], &ids).await;
    let deleted = String::from_utf8(deleted.stdout).unwrap();
    assert!(
        deleted.ends_with("Deleted 2 entries successfully"),
        "{deleted}"
    );
}

#[tokio::test]
async fn a_file_of_entries_is_made_so_and_nothing_else_is_touched() {
    let rig = Rig::start().await;
    ok(&rig, &CREATE).await;
    let file = rig.folder.path().join("wanted.json");
    let path = file.to_str().unwrap();
    let write = |paths: &[&str], ttl: i32| {
        let one = |path: &&str| {
            json!({
                "spiffeId": format!("spiffe://example.org{path}"),
                "parentId": "spiffe://example.org/spire/agent/join_token/a",
                "selectors": ["unix:user:a", "unix:uid:1"], "x509SvidTtl": ttl,
            })
        };
        let entries: Vec<Value> = paths.iter().map(one).collect();
        std::fs::write(&file, json!({ "entries": entries }).to_string()).unwrap();
    };
    let summary = |told: String| told.lines().last().unwrap().to_owned();
    let sync = ["entry", "sync", "-file", path];
    write(&["/a", "/b"], 60);
    let dry = ok(&rig, &[&sync[..], &["-dryRun"]].concat()).await;
    assert!(dry.starts_with("Would create sync.default."), "{dry}");
    let told = summary(ok(&rig, &sync).await);
    assert_eq!(told, "2 to create, 0 to update, 0 to delete, 0 unchanged");
    // Again: nothing is left to do.
    let told = summary(ok(&rig, &sync).await);
    assert_eq!(told, "0 to create, 0 to update, 0 to delete, 2 unchanged");
    write(&["/b", "/c"], 90);
    let told = summary(ok(&rig, &sync).await);
    assert_eq!(told, "1 to create, 1 to update, 1 to delete, 0 unchanged");
    // Another owner's file leaves these alone, and what was made by hand stays.
    write(&["/d"], 60);
    let told = summary(ok(&rig, &[&sync[..], &["-owner", "other"]].concat()).await);
    assert_eq!(told, "1 to create, 0 to update, 0 to delete, 0 unchanged");
    let shown = json(&rig, &["entry", "show"]).await;
    let paths: Vec<&str> = shown["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["spiffe_id"]["path"].as_str().unwrap())
        .collect();
    assert_eq!(paths, ["/b", "/c", "/d", "/w"]);
    // One that was made by hand is in the way: said so, and left alone.
    write(&["/e"], 60);
    let by_hand = [
        "entry",
        "create",
        "-spiffeID",
        "spiffe://example.org/e",
        "-parentID",
        "spiffe://example.org/spire/agent/join_token/a",
        "-selector",
        "unix:user:a",
        "-selector",
        "unix:uid:1",
    ];
    ok(&rig, &by_hand).await;
    let error = fails(&rig, &[&sync[..], &["-owner", "third"]].concat()).await;
    assert!(error.contains("similar entry already exists"), "{error}");
}

#[tokio::test]
async fn what_is_missing_is_said_before_anything_is_sent() {
    let rig = Rig::start().await;
    for (arguments, text) in [
        (
            &["entry", "create"][..],
            "at least one selector is required",
        ),
        (&CREATE[..2], "at least one selector is required"),
        (
            &["entry", "create", "-selector", "a:b"],
            "a parent ID is required if the node flag is not set",
        ),
        (
            &["entry", "create", "-selector", "a:b", "-node"],
            "a SPIFFE ID is required",
        ),
        (
            &[
                "entry",
                "create",
                "-selector",
                "a",
                "-node",
                "-spiffeID",
                "spiffe://a.org/b",
            ],
            "selector \"a\" must be formatted as type:value",
        ),
        (&["entry", "update"], "entry ID is required"),
        (&["entry", "delete"], "an entry ID is required"),
        (
            &["entry", "show", "-parentID", "x"],
            "error parsing parent ID \"x\": scheme is missing or invalid",
        ),
        (&["agent", "show"], "a SPIFFE ID is required"),
        (
            &["agent", "ban", "-spiffeID", "x"],
            "scheme is missing or invalid",
        ),
        (&["bundle", "set"], "id flag is required"),
        (&["bundle", "delete"], "id is required"),
        (
            &["bundle", "delete", "-id", "a.org", "-mode", "x"],
            "unsupported mode \"x\"",
        ),
        (&["jwt", "mint"], "spiffeID must be specified"),
        (&["x509", "mint"], "spiffeID must be specified"),
        (&["logger", "set"], "a value (-level) must be set"),
        (
            &["logger", "set", "-level", "x"],
            "the value \"x\" is not a valid setting",
        ),
    ] {
        assert_eq!(fails(&rig, arguments).await, format!("Error: {text}\n"));
    }
}

#[tokio::test]
async fn tokens_and_agents_are_printed_as_upstream_prints_them() {
    let rig = Rig::start().await;
    let token = ok(&rig, &["token", "generate", "-ttl", "3600"]).await;
    let (token, warning) = token.split_once('\n').unwrap();
    assert!(uuid::Uuid::parse_str(token.strip_prefix("Token: ").unwrap()).is_ok());
    assert_eq!(warning, "Warning: Missing SPIFFE ID.\n");
    let named = ok(
        &rig,
        &["token", "generate", "-spiffeID", "spiffe://example.org/n"],
    )
    .await;
    assert_eq!(named.lines().count(), 1);
    assert_eq!(
        ok(&rig, &["agent", "list"]).await,
        "No attested agents found\n"
    );

    let (agent, _) = rig.attested().await;
    let id = agent.to_string();
    let listed = ok(&rig, &["agent", "list"]).await;
    let head = format!(
        "Found 1 attested agent:\n\nSPIFFE ID         : {id}\nAttestation type  : join_token\nExpiration time   : "
    );
    assert!(listed.starts_with(&head), "{listed}");
    assert!(
        listed.ends_with("\nCan re-attest     : false\n\n"),
        "{listed}"
    );
    assert_eq!(ok(&rig, &["agent", "count"]).await, "1 attested agent\n");
    assert_eq!(
        ok(&rig, &["agent", "count", "-banned", "true"]).await,
        "0 attested agents\n"
    );
    let shown = json(&rig, &["agent", "show", "-spiffeID", &id]).await;
    assert_eq!(shown["id"]["path"], wire(agent.path()).unwrap().path);
    let banned = ok(&rig, &["agent", "ban", "-spiffeID", &id]).await;
    assert_eq!(banned, "Agent banned successfully\n");
    let shown = ok(&rig, &["agent", "show", "-spiffeID", &id]).await;
    assert!(shown.contains("Banned            : true\n"), "{shown}");
    let evicted = ok(&rig, &["agent", "evict", "-spiffeID", &id]).await;
    assert_eq!(evicted, "Agent evicted successfully\n");
    assert_eq!(
        fails(&rig, &["agent", "show", "-spiffeID", &id]).await,
        "Error: rpc error: code = NotFound desc = agent not found\n"
    );
    assert_eq!(ok(&rig, &["agent", "purge"]).await, "No agents to purge.\n");
}

#[tokio::test]
async fn bundles_are_shown_set_and_deleted_in_both_formats() {
    let rig = Rig::start().await;
    let pem = ok(&rig, &["bundle", "show"]).await;
    assert!(pem.starts_with("-----BEGIN CERTIFICATE-----\n"), "{pem}");
    let document = ok(&rig, &["bundle", "show", "-format", "spiffe"]).await;
    let keys: Value = serde_json::from_str(&document).unwrap();
    assert_eq!(keys["keys"][0]["use"], "x509-svid");
    for (format, text) in [("pem", &pem), ("spiffe", &document)] {
        let set = [
            "bundle",
            "set",
            "-id",
            "spiffe://other.org",
            "-format",
            format,
        ];
        let output = run(&rig, &set, text).await;
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "bundle set.\n");
    }
    let listed = ok(&rig, &["bundle", "list"]).await;
    let stars = "*".repeat(40);
    assert_eq!(listed, format!("{stars}\n* other.org\n{stars}\n{pem}"));
    assert_eq!(ok(&rig, &["bundle", "count"]).await, "2 bundles\n");
    let deleted = ["bundle", "delete", "-id", "spiffe://other.org"];
    assert_eq!(ok(&rig, &deleted).await, "bundle deleted.\n");
    assert_eq!(
        fails(&rig, &deleted).await,
        "Error: failed to delete federated bundle \"spiffe://other.org\": bundle not found\n"
    );
}

#[tokio::test]
async fn svids_are_minted_to_the_terminal_and_to_files() {
    let rig = Rig::start().await;
    let mint = ["x509", "mint", "-spiffeID", "spiffe://example.org/w"];
    let minted = ok(&rig, &mint).await;
    for part in [
        "X509-SVID:\n",
        "\nPrivate key:\n-----BEGIN PRIVATE KEY-----",
        "\nRoot CAs:\n",
    ] {
        assert!(minted.contains(part), "{minted}");
    }
    let folder = rig.folder.path().to_str().unwrap();
    let written = ok(&rig, &[&mint[..], &["-write", folder]].concat()).await;
    assert_eq!(
        written,
        format!(
            "X509-SVID written to {folder}/svid.pem\nPrivate key written to {folder}/key.pem\nRoot CAs written to {folder}/bundle.pem\n"
        )
    );
    let mode = |name: &str| {
        use std::os::unix::fs::PermissionsExt;
        let found = std::fs::metadata(rig.folder.path().join(name)).unwrap();
        found.permissions().mode() & 0o777
    };
    assert_eq!((mode("key.pem"), mode("svid.pem") & 0o700), (0o600, 0o600));
    let mint = [
        "jwt",
        "mint",
        "-spiffeID",
        "spiffe://example.org/w",
        "-audience",
        "a",
    ];
    assert_eq!(ok(&rig, &mint).await, "spiffe://example.org/w for a\n");
    assert_eq!(json(&rig, &mint).await["svid"]["id"]["path"], "/w");
}

// Inventory section 8: Logger `GetLogger`, `SetLogLevel`, `ResetLogLevel`.
#[tokio::test]
async fn log_level_health_and_facts_are_told() {
    let rig = Rig::start().await;
    let level = |now: &str| format!("Logger Level : {now}\nLaunch Level : info\n\n");
    assert_eq!(ok(&rig, &["logger", "get"]).await, level("info"));
    assert_eq!(
        ok(&rig, &["logger", "set", "-level", "WARN"]).await,
        level("warning")
    );
    let told = json(&rig, &["logger", "get"]).await;
    assert_eq!(
        told,
        json!({ "current_level": "WARN", "launch_level": "INFO" })
    );
    assert_eq!(ok(&rig, &["logger", "reset"]).await, level("info"));
    assert_eq!(ok(&rig, &["healthcheck"]).await, "Server is healthy.\n");
    let info = ok(&rig, &["debug", "getinfo"]).await;
    assert!(
        info.contains("    [0] SPIFFE ID:  spiffe://example.org/spire/server\n"),
        "{info}"
    );
    assert!(info.contains("        Subject:    O=SPIRE\n"), "{info}");
    assert!(
        info.contains("    [1] SPIFFE ID:  spiffe://example.org\n"),
        "{info}"
    );
}

#[tokio::test]
async fn a_server_that_does_not_run_is_said_to() {
    let rig = Rig::start().await;
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_spire-server"))
        .args(["healthcheck", "-verbose", "-socketPath"])
        .arg(rig.folder.path().join("none.sock"))
        .output()
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stdout, b"Checking server health...\n");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("no such file or directory"), "{stderr}");
    let last = "Error: server is unhealthy: unable to determine health\n";
    assert!(stderr.ends_with(last), "{stderr}");
}
