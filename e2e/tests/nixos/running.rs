//! What the modules make is taken by our programs: files are checked, units by systemd, and all of it runs.

use std::process::Command;

use ah_e2e::Machine;
use ah_testkit::need;
use ah_testkit::process::{Finished, Process, eventually};

use crate::evaluate::{Evaluated, modules, values};

const PACKAGE: &str = "/nix/store/00000000000000000000000000000000-agent-harbor/bin";
const COREUTILS: &str = "/nix/store/00000000000000000000000000000000-coreutils/bin";

/// A node with everything, as docs/nixos.md sets it up.
pub const NODE: &str = r#"{
  services.spire.server = {
    enable = true;
    trustDomain = "example.org";
    bindAddress = "127.0.0.1";
    nodeAttestors.joinToken.enable = true;
    registrationEntries = [
      {
        parentId = "spiffe://example.org/node/here";
        spiffeId = "spiffe://example.org/ah/serve";
        selectors = [ "unix:user:agent-harbor" ];
      }
      {
        parentId = "spiffe://example.org/node/here";
        spiffeId = "spiffe://example.org/ah/agent/executor-1";
        selectors = [ "unix:user:executor" "unix:path:/usr/local/bin/ah" ];
        x509SvidTtl = 600;
        hint = "fleet";
      }
      {
        parentId = "spiffe://example.org/node/here";
        spiffeId = "spiffe://example.org/oidc";
        selectors = [ "unix:uid:0" ];
      }
    ];
    settings = {
      server.ca_subject = { organization = [ "Example" ]; };
      server.jwt_issuer = "https://oidc.example.org";
      plugins.NodeAttestor.x509pop.plugin_data.ca_bundle_path = "/etc/spire/oidc.pem";
      health_checks = { };
    };
  };
  services.spire.oidc-discovery-provider = {
    enable = true;
    trustDomain = "example.org";
    domains = [ "oidc.example.org" ];
    certificate = "/etc/spire/oidc.pem";
    key = "/etc/spire/oidc-key.pem";
    settings.set_key_use = true;
  };
  services.spire.agent = {
    enable = true;
    trustDomain = "example.org";
    serverAddress = "spire-server.example.org";
    trustBundlePath = "/etc/spire/bundle.pem";
    joinTokenFile = "/etc/spire/join-token";
    workloadAttestors.unix.enable = true;
    settings.agent.x509_svid_cache_max_size = 100;
    settings.plugins.KeyManager.memory.plugin_data = { };
  };
  services.agent-harbor.access-point = {
    enable = true;
    settings = {
      fleetListen = [ "0.0.0.0:4433" ];
      serverIdentity = "spiffe";
      executorSanUriPrefix = [ "spiffe://example.org/ah/agent" ];
      maxExecutors = 10;
      strictSvid = true;
    };
  };
  services.agent-harbor.executor = {
    enable = true;
    settings = {
      remoteServer = "https://access-point.example.org:4433";
      identity = "spiffe";
      spiffeHint = "fleet";
      name = "executor-1";
      label = { zone = "a"; "rack" = "b \"1\""; };
    };
  };
}"#;

/// A command line of a unit, with the places of this machine.
fn here(evaluated: &Evaluated, line: &str) -> String {
    let line = line
        .replace(PACKAGE, "/usr/local/bin")
        .replace(COREUTILS, "/bin");
    let files = evaluated.files().into_iter();
    files.fold(line, |line, file| line.replace(&file.store, &file.path))
}

/// Puts the files in their places, and makes the directories.
fn install(machine: &Machine, evaluated: &Evaluated) {
    for file in evaluated.files() {
        let path = &file.path;
        machine.shell(&format!(
            "mkdir -p $(dirname {path})\ncat > {path} <<'THE END'\n{}\nTHE END",
            file.text
        ));
    }
    // The groups of the machine of these tests are its own: who may write there is not what is tested.
    machine.shell("mkdir -p -m 1777 /run/ah /run/spire; chmod 1777 /run/ah /run/spire");
}

/// Starts a service as its unit says; `user` where that user does not exist.
fn start(machine: &Machine, evaluated: &Evaluated, unit: &str, user: Option<&str>) -> Process {
    let text = evaluated.unit(unit);
    let user = user.unwrap_or_else(|| values(&text, "User")[0]);
    let state = format!("/var/lib/{}", values(&text, "StateDirectory")[0]);
    machine.shell(&format!("install -d -m 0700 -o {user} {state}"));
    let line = here(evaluated, values(&text, "ExecStart")[0]);
    machine.start(user, &format!("env STATE_DIRECTORY={state} {line}"))
}

fn run(machine: &Machine, evaluated: &Evaluated, unit: &str) -> Finished {
    let text = evaluated.unit(unit);
    machine.shell(&here(evaluated, values(&text, "ExecStart")[0]))
}

// Contract §10: from the configuration to an enrolled executor.
#[test]
fn a_node_runs_on_what_the_modules_make() {
    if !need("nix-instantiate") {
        return;
    }
    let evaluated = modules(&[NODE]).unwrap();
    assert!(evaluated.warnings().is_empty());
    let Some(machine) = Machine::new() else {
        return;
    };
    install(&machine, &evaluated);
    machine.shell(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=oidc \
           -addext subjectAltName=DNS:oidc.example.org -keyout /etc/spire/oidc-key.pem -out /etc/spire/oidc.pem
         spire-server validate -config /etc/spire/server.conf",
    );

    // Registration entries: made at the first start, left alone at the next.
    let _server = start(&machine, &evaluated, "spire-server", Some("root"));
    eventually("the server is healthy", || {
        let check = "spire-server healthcheck -socketPath /run/spire/server.sock";
        let answer = machine.command_as("root", check.split(' ')).output();
        answer.expect("it runs").status.success().then_some(())
    });
    let first = run(&machine, &evaluated, "spire-server-entries").stdout;
    assert!(
        first.contains("3 to create, 0 to update, 0 to delete"),
        "{first}"
    );
    let again = run(&machine, &evaluated, "spire-server-entries").stdout;
    assert!(again.contains("3 unchanged"), "{again}");

    // The agent is a node by the alias that the token gives it, whatever the token.
    machine.shell(
        "spire-server bundle show -socketPath /run/spire/server.sock > /etc/spire/bundle.pem
         spire-server token generate -socketPath /run/spire/server.sock \
           -spiffeID spiffe://example.org/node/here \
           | sed -n 's/^Token: //p' > /etc/spire/join-token
         spire-agent validate -config /etc/spire/agent.conf",
    );
    let _agent = start(&machine, &evaluated, "spire-agent", Some("root"));
    let access_point = start(&machine, &evaluated, "ah-access-point", None);
    access_point.wait_for("listening for executors");
    let executor = start(&machine, &evaluated, "ah-executor", None);
    let enrolled = executor.wait_for(" enrolled executor.id=");
    assert!(
        enrolled.contains("spiffe://example.org/ah/agent/executor-1"),
        "{enrolled}"
    );
    for (user, check) in [
        (
            "agent-harbor",
            "access-point --config /etc/ah/access-point.toml",
        ),
        ("executor", "enroll --config /etc/ah/executor.toml"),
    ] {
        machine.shell_as(user, &format!("ah agent {check} --validate"));
    }
    let provider = start(
        &machine,
        &evaluated,
        "oidc-discovery-provider",
        Some("root"),
    );
    eventually("the provider tells the keys", || {
        let ask = "curl --silent --cacert /etc/spire/oidc.pem https://oidc.example.org/keys";
        let answer = machine.command_as("root", ask.split(' ')).output();
        let answer = answer.expect("it runs").stdout;
        String::from_utf8_lossy(&answer)
            .contains(r#""use": "sig""#)
            .then_some(())
    });
    drop(provider);
    let shown = machine.shell("spire-server bundle show -socketPath /run/spire/server.sock | openssl x509 -noout -subject");
    assert!(shown.stdout.contains("O = Example"), "{shown:?}");
    let listed = machine.shell("ah agent fleet show executor-1").stdout;
    assert!(listed.contains("b \"1\""), "{listed}");

    // An entry that is no longer there goes; the alias, which a person made, stays.
    let less = NODE.replace("unix:path:/usr/local/bin/ah", "unix:gid:0");
    let evaluated = modules(&[&less]).unwrap();
    install(&machine, &evaluated);
    let changed = run(&machine, &evaluated, "spire-server-entries").stdout;
    assert!(
        changed.contains("1 to create, 0 to update, 1 to delete, 2 unchanged"),
        "{changed}"
    );
    let shown = machine.shell("spire-server entry show -socketPath /run/spire/server.sock");
    assert!(shown.stdout.starts_with("Found 4 entries"), "{shown:?}");
}

/// systemd knows every directive and value.
#[test]
fn systemd_takes_the_units() {
    if !need("nix-instantiate") || !need("systemd-analyze") {
        return;
    }
    let evaluated = modules(&[NODE]).unwrap();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut paths = Vec::new();
    for (name, text) in evaluated.units() {
        // The programs are not installed here.
        let path = directory.path().join(format!("{name}.service"));
        let text = text.replace(COREUTILS, "/bin");
        let text = text.replace(PACKAGE, "/bin");
        let text = [
            "ah ",
            "spire-server ",
            "spire-agent ",
            "oidc-discovery-provider ",
        ]
        .iter()
        .fold(text, |text, program| {
            text.replace(&format!("/bin/{program}"), "/bin/true ")
        });
        std::fs::write(&path, text).expect("it can be written");
        paths.push(path);
    }
    assert_eq!(paths.len(), 6);
    let ran = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .args(&paths)
        .output()
        .expect("systemd-analyze runs");
    let said = String::from_utf8_lossy(&ran.stderr);
    // It also reads the units of the machine that the test runs on.
    let ours: Vec<_> = said
        .lines()
        .filter(|line| {
            line.contains(&*directory.path().to_string_lossy())
                || line.contains("ah-")
                || line.contains("spire-")
        })
        .collect();
    assert!(ran.status.success() && ours.is_empty(), "{said}");
}
