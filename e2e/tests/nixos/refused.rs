//! What is no configuration, and what is said of it.

use ah_testkit::need;

use crate::evaluate::{modules, text};

const SERVER: &str = r#"{ services.spire.server = {
    enable = true;
    trustDomain = "example.org";
    nodeAttestors.joinToken.enable = true;
}; }"#;
const AGENT: &str = r#"{ services.spire.agent = {
    enable = true;
    trustDomain = "example.org";
    serverAddress = "spire-server.example.org";
    trustBundlePath = "/etc/spire/bundle.pem";
    workloadAttestors.unix.enable = true;
}; }"#;
const PROVIDER: &str = r#"{ services.spire.oidc-discovery-provider = {
    enable = true;
    trustDomain = "example.org";
    domains = [ "oidc.example.org" ];
    certificate = "/etc/spire/oidc.pem";
    key = "/run/secrets/oidc-key.pem";
}; }"#;
const ACCESS_POINT: &str = "{ services.agent-harbor.access-point.enable = true; }";
const EXECUTOR: &str = r#"{ services.agent-harbor.executor = {
    enable = true;
    settings.remoteServer = "https://access-point.example.org:4433";
}; }"#;

/// `more` is of the service of `base`.
fn refused(base: &str, more: &str, says: &[&str]) {
    let (_, service) = base.split_once("{ ").expect("it begins with a brace");
    let (service, _) = service.split_once([' ', '=']).expect("it names a service");
    let service = service.trim_end_matches(".enable");
    modules(&[base]).unwrap_or_else(|error| panic!("the base fails: {error}"));
    match modules(&[base, &format!("{{ lib, ... }}: {{ {service}.{more} }}")]) {
        Ok(_) => panic!("{service}.{more} is taken"),
        Err(error) => {
            for text in says {
                assert!(error.contains(text), "{service}.{more}: {error}");
            }
        }
    }
}

// Issue: assertions name the option and the remedy.
#[test]
fn what_cannot_work_is_refused_with_what_to_do() {
    if !need("nix-instantiate") {
        return;
    }
    let server = |more, says: &[&str]| refused(SERVER, more, says);
    server(
        "trustDomain = lib.mkForce \"spiffe://example.org\";",
        &["services.spire.server.trustDomain is \"spiffe://example.org\": write the bare name"],
    );
    server(
        "nodeAttestors.joinToken.enable = lib.mkForce false;",
        &["set services.spire.server.nodeAttestors.joinToken.enable = true"],
    );
    server(
        "settings.server.data_dir = \"/srv\";",
        &["services.spire.server.settings.server.data_dir has an option of its own"],
    );
    server(
        "settings.plugins.DataStore.sql.plugin_data = { };",
        &["services.spire.server.settings.plugins.DataStore has options of its own"],
    );
    server(
        "dataStore.type = \"postgres\";",
        &["services.spire.server.dataStore.connectionString is missing"],
    );
    server(
        "dataStore.connectionString = \"/srv/spire.sqlite3\";",
        &[
            "dataStore.connectionString is \"/srv/spire.sqlite3\"",
            "below /var/lib/spire/server",
        ],
    );
    let entry = |entry: &str, says: &[&str]| {
        let more = format!("registrationEntries = [ {entry} ];");
        refused(SERVER, &more, says);
    };
    let good = r#"{ parentId = "spiffe://example.org/node"; spiffeId = "spiffe://example.org/w"; selectors = [ "unix:uid:0" ]; }"#;
    entry(
        &good.replace("org/w", "com/w"),
        &["registrationEntries: spiffeId \"spiffe://example.com/w\" is not of the trust domain"],
    );
    entry(
        &good.replace("spiffe://example.org/node", "node"),
        &[
            "registrationEntries: parentId \"node\" is not of the trust domain: begin it with spiffe://example.org/",
        ],
    );
    entry(
        &good.replace("\"unix:uid:0\"", ""),
        &["registrationEntries: selectors is empty"],
    );
    entry(
        &good.replace("unix:uid:0", "root"),
        &["selector \"root\" lacks its type: write TYPE:VALUE"],
    );
    entry(
        &format!("{good} {good}"),
        &["twice (spiffe://example.org/w"],
    );

    let agent = |more, says: &[&str]| refused(AGENT, more, says);
    agent(
        "trustBundlePath = lib.mkForce null;",
        &["set services.spire.agent.trustBundlePath to the server's bundle"],
    );
    agent("insecureBootstrap = true;", &["remove insecureBootstrap"]);
    agent(
        "joinToken = \"t\"; services.spire.agent.joinTokenFile = \"/run/t\";",
        &["services.spire.agent.joinToken and services.spire.agent.joinTokenFile exclude"],
    );
    agent(
        "workloadAttestors.unix.enable = lib.mkForce false;",
        &["set services.spire.agent.workloadAttestors.unix.enable = true"],
    );
    agent(
        "settings.agent.join_token = \"t\";",
        &["services.spire.agent.settings.agent.join_token has an option of its own"],
    );

    let provider = |more, says: &[&str]| refused(PROVIDER, more, says);
    provider(
        "domains = lib.mkForce [ ];",
        &["services.spire.oidc-discovery-provider.domains is empty"],
    );
    provider(
        "acme.email = \"admin@example.org\";",
        &[
            "set services.spire.oidc-discovery-provider.certificate and",
            "and not both",
        ],
    );
    provider(
        "certificate = lib.mkForce null; services.spire.oidc-discovery-provider.key = lib.mkForce null; services.spire.oidc-discovery-provider.acme.email = \"admin@example.org\";",
        &["acme.acceptTerms is false: read the terms"],
    );
    provider(
        "settings.domains = [ \"other.example.org\" ];",
        &["services.spire.oidc-discovery-provider.settings.domains has an option of its own"],
    );

    refused(
        EXECUTOR,
        "settings.remoteServer = lib.mkForce null;",
        &["services.agent-harbor.executor.settings.remoteServer is missing"],
    );
    refused(
        EXECUTOR,
        "settings.identity = \"files\";",
        &["is \"files\", which needs more: set services.agent-harbor.executor.settings.cert, "],
    );
    refused(
        ACCESS_POINT,
        "settings = { serverIdentity = \"vault\"; vault = { address = \"https://v\"; pkiPath = \"p/issue/r\"; }; };",
        &[
            "services.agent-harbor.access-point has nothing to log in to Vault with",
            "services.agent-harbor.access-point.environmentFile",
        ],
    );
}

// Issue: secrets only through files and environmentFile, never in the store.
#[test]
fn secrets_stay_out_of_the_store() {
    if !need("nix-instantiate") {
        return;
    }
    for (setting, variable, file) in [
        ("secretId", "VAULT_SECRET_ID", "secretIdFile"),
        ("roleId", "VAULT_ROLE_ID", "roleIdFile"),
        ("token", "VAULT_TOKEN", "tokenFile"),
    ] {
        for (base, service) in [(ACCESS_POINT, "access-point"), (EXECUTOR, "executor")] {
            let service = format!("services.agent-harbor.{service}");
            refused(
                base,
                &format!("settings.vault.{setting} = \"hunter2\";"),
                &[
                    &format!(
                        "{service}.settings.vault.{setting} would put a secret into the Nix store"
                    ),
                    &format!("{variable}="),
                    &format!("{service}.environmentFile"),
                    &format!("{service}.settings.vault.{file}"),
                ],
            );
        }
    }
    refused(
        ACCESS_POINT,
        "settings.db = \"postgres://ah:hunter2@db/fleet\";",
        &[
            "settings.db would put a password into the Nix store",
            "write AH_DB=",
        ],
    );
    let stored = "\"${builtins.storeDir}/00000000000000000000000000000000-secret\"";
    for (base, option) in [
        (SERVER, "environmentFile"),
        (AGENT, "joinTokenFile"),
        (PROVIDER, "key"),
        (ACCESS_POINT, "environmentFile"),
        (ACCESS_POINT, "settings.key"),
        (ACCESS_POINT, "settings.httpTokenFile"),
        (EXECUTOR, "environmentFile"),
        (EXECUTOR, "settings.vault.secretIdFile"),
    ] {
        refused(
            base,
            &format!("{option} = lib.mkForce {stored};"),
            &[option, "in the Nix store", "\"/run/secrets/"],
        );
    }

    // A key that is named as a path of Nix is not copied; a certificate is.
    let here = r#"{ services.agent-harbor.executor.settings = {
        identity = "files";
        cert = ./2.nix;
        key = ./2.nix;
        ca = "/etc/ah/ca.pem";
    }; }"#;
    let file = modules(&[EXECUTOR, here, "{ }"]).unwrap();
    let file = file.file("/etc/ah/executor.toml");
    assert!(file.contains("cert = \"/nix/store/"), "{file}");
    assert!(file.contains("/2.nix\"\n"), "{file}");
    assert!(!file.contains("key = \"/nix/store/"), "{file}");
    assert!(file.contains("ca = \"/etc/ah/ca.pem\""), "{file}");
}

// The stand-in is of use only if it refuses what the real module system refuses.
#[test]
fn the_stand_in_judges_types_names_and_conflicts() {
    if !need("nix-instantiate") {
        return;
    }
    refused(
        SERVER,
        "bindPort = \"8081\";",
        &["`services.spire.server.bindPort' is not of type `16 bit"],
    );
    refused(
        SERVER,
        "bindPort = 65536;",
        &["`services.spire.server.bindPort' is not of type"],
    );
    refused(
        SERVER,
        "dataStore.type = \"mysql\";",
        &["not of type `one of \"sqlite3\", \"postgres\"'"],
    );
    refused(
        SERVER,
        "trustdomain = \"example.org\";",
        &["The option `services.spire.server.trustdomain' does not exist"],
    );
    refused(
        SERVER,
        "trustDomain = \"example.com\";",
        &["`services.spire.server.trustDomain' has conflicting definition values"],
    );
    refused(
        SERVER,
        "registrationEntries = [ { spiffeId = \"spiffe://example.org/w\"; selectors = [ \"a:b\" ]; } ];",
        &[
            "`services.spire.server.registrationEntries.\"[definition 1-entry 1]\".parentId' was accessed but has no value",
        ],
    );
    refused(
        EXECUTOR,
        "settings.remote = \"x\";",
        &["The option `services.agent-harbor.executor.settings.remote' does not exist"],
    );
    refused(
        EXECUTOR,
        "settings.execTimeout = 30;",
        &["`services.agent-harbor.executor.settings.execTimeout' is not of type"],
    );

    // Defaults give way, forces win, conditions hold and lists join.
    let layered = r#"{ lib, config, ... }: lib.mkMerge [
        { services.spire.server.bindPort = lib.mkDefault 1; }
        (lib.mkIf config.services.spire.server.enable { services.spire.server.bindPort = 2; })
        (lib.mkIf false { services.spire.server.bindPort = 3; })
        { services.spire.server.bindAddress = lib.mkMerge [ "::" (lib.mkForce "127.0.0.1") ]; }
        { networking.firewall.allowedTCPPorts = [ config.services.spire.server.bindPort ]; }
        { networking.firewall.allowedTCPPorts = lib.mkIf true [ 4433 ]; }
    ]"#;
    let evaluated = modules(&[SERVER, layered]).unwrap();
    let file = evaluated.file("/etc/spire/server.conf");
    assert!(file.contains("bind_port = 2\n"), "{file}");
    assert!(file.contains("bind_address = \"127.0.0.1\"\n"), "{file}");
    assert!(evaluated.shown().contains("ports: [2,4433]"));

    // Nothing is made for what is not enabled.
    let off = modules(&[]).unwrap();
    assert!(off.units().is_empty() && off.files().is_empty());
    assert!(text("nixos-modules/default.nix").contains("imports"));
}
