//! Workload attestors as a configuration asks for them.

use ah_testkit::ca::TestCa;
use rcgen::KeyPair;

use crate::fake::Fake;
use crate::program::{Conf, stderr};
use crate::rig::Node;

/// The block of another workload attestor, behind that of `unix`.
fn beside_unix(block: &str) -> String {
    format!("plugin_data {{}} }} WorkloadAttestor {block}")
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_can_be_used_are_valid() {
    let fake = Fake::start().await;
    let node = Node::new(&fake);
    let mut conf = Conf::new(&node);
    for block in [
        r#""docker" { plugin_data {}"#,
        r#""docker" { plugin_data {
            docker_socket_path = "unix:///run/docker.sock" docker_version = "1.44"
            podman_socket_path = "unix:///run/podman.sock"
            podman_socket_path_template = "unix:///run/user/%d/podman/podman.sock"
            container_id_cgroup_matchers = ["/docker/<id>"] use_new_container_locator = false
            verbose_container_locator_logs = true
        }"#,
        r#""k8s" { plugin_data { kubelet_read_only_port = "10255" }"#,
        r#""k8s" { plugin_data {
            kubelet_read_only_port = 10255 max_poll_attempts = 5 poll_retry_interval = "1s" reload_interval = "30s"
            node_name_env = "NODE" disable_container_selectors = true use_new_container_locator = true
            enable_namespace_labels = true verbose_container_locator_logs = true
        }"#,
        r#""k8s" { plugin_data {
            disable_kubelet_client = true
            experimental {
                api_server { cache { enabled = false } }
                broker {
                    access_policy = "enforced"
                    brokers = [ { id = "spiffe://example.org/broker" pod_reference_scope = "cluster" } ]
                }
            }
        }"#,
        r#""systemd" {"#,
        r#""slurm" { plugin_data {}"#,
    ] {
        conf.unix = beside_unix(block);
        let checked = conf.command(&node, &fake, "validate").output().unwrap();
        let told = String::from_utf8_lossy(&checked.stderr);
        assert!(checked.status.success(), "{block}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_signatures_are_believed_by_is_named_by_the_environment() {
    let fake = Fake::start().await;
    let node = Node::new(&fake);
    let mut conf = Conf::new(&node);
    let sigstore = r#"sigstore {
        allowed_identities = { "https://issuer.example" = ["^https://ci\\.example/.*$", "ci@example.org"] }
        skipped_images = ["registry.example/pause@sha256:00"]
        ignore_sct = false ignore_tlog = false ignore_attestations = true
        registry_credentials = { "registry.example" = { username = "user" password = "secret" } }
    }"#;
    let file = |name: &str, text: &str| {
        let path = node.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let key = |name: &str| file(name, &KeyPair::generate().unwrap().public_key_pem());
    let files = [
        (
            "SIGSTORE_ROOT_FILE",
            file("fulcio.pem", &TestCa::new("sigstore.example").pem()),
        ),
        ("SIGSTORE_REKOR_PUBLIC_KEY", key("rekor.pub")),
        ("SIGSTORE_CT_LOG_PUBLIC_KEY_FILE", key("ctfe.pub")),
    ];
    for attestor in ["docker", "k8s"] {
        let kubelet = match attestor {
            "k8s" => "kubelet_read_only_port = 10255",
            _ => "",
        };
        conf.unix = beside_unix(&format!(
            r#""{attestor}" {{ plugin_data {{ {kubelet} {sigstore} }}"#
        ));
        let mut command = conf.command(&node, &fake, "validate");
        command.env("TUF_ROOT", "/nowhere").envs(files.clone());
        let checked = command.output().unwrap();
        assert!(checked.status.success(), "{}", stderr(&checked));
        // Each of them is needed.
        for (name, _) in &files {
            let mut command = conf.command(&node, &fake, "validate");
            command.env("TUF_ROOT", "/nowhere").envs(files.clone());
            let told = stderr(&command.env_remove(name).output().unwrap());
            assert!(told.contains("run `cosign initialize`"), "{name}: {told}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_cannot_be_used_are_named() {
    let fake = Fake::start().await;
    let node = Node::new(&fake);
    let mut conf = Conf::new(&node);
    for (block, why) in [
        (
            r#""docker" { plugin_data { sigstore { ignore_sct = true } }"#,
            "error initializing sigstore verifier: the trusted root of sigstore: /nowhere",
        ),
        (
            r#""docker" { plugin_data { sigstore { rekor_url = "https://rekor.example" } }"#,
            "sigstore.rekor_url is not supported",
        ),
        (
            r#""docker" { plugin_data { sigstore {
                registry_credentials = { "registry.example" = { username = "user" } }
            } }"#,
            "incomplete credentials for registry \"registry.example\"",
        ),
        (
            r#""docker" { plugin_data { sigstore { ignore_everything = true } }"#,
            "unknown keys: \"ignore_everything\"",
        ),
        (
            r#""docker" { plugin_data { docker_host = "x" }"#,
            "unknown keys: \"docker_host\"",
        ),
        (
            r#""docker" { plugin_data { docker_socket_path = "tcp://h:1" }"#,
            "is no unix socket",
        ),
        (
            r#""k8s" { plugin_data { kubelet_read_only_port = 1
                sigstore { allowed_identities = { "https://issuer.example" = ["("] } } }"#,
            "is no regular expression",
        ),
        (
            r#""k8s" { plugin_data { experimental { broker {} } }"#,
            "experimental.broker.access_policy: must be specified as one of [permissive, enforced]",
        ),
        (
            r#""k8s" { plugin_data { experimental { broker { access_policy = "some" } } }"#,
            "experimental.broker.access_policy: unsupported value \"some\"",
        ),
        (
            r#""k8s" { plugin_data { experimental { broker { access_policy = "enforced" } } }"#,
            "experimental.broker.brokers: at least one broker is required",
        ),
        (
            r#""k8s" { plugin_data { experimental { broker { access_policy = "enforced" brokers = [ { id = "x" } ] } } }"#,
            "experimental.broker.brokers[x].id: ",
        ),
        (
            r#""k8s" { plugin_data { experimental { broker { access_policy = "enforced" brokers = [
                { id = "spiffe://a/b" pod_reference_scope = "all" }
            ] } } }"#,
            "pod_reference_scope: unsupported value \"all\"",
        ),
        (
            r#""k8s" { plugin_data { experimental { broker { access_policy = "enforced" brokers = [
                { id = "spiffe://a/b" }, { id = "spiffe://a/b" }
            ] } } }"#,
            "duplicate broker id",
        ),
        (
            r#""k8s" { plugin_data { disable_kubelet_client = true experimental { broker {
                access_policy = "enforced" brokers = [ { id = "spiffe://a/b" } ]
            } } }"#,
            "pod_reference_scope must be \"cluster\" when disable_kubelet_client is true",
        ),
        (
            r#""k8s" { plugin_data { disable_kubelet_client = true token_path = "/x" }"#,
            "disable_kubelet_client cannot be used with token_path",
        ),
        (
            r#""k8s" { plugin_data { experimental { api_server { cache { enabled = true } } } }"#,
            "experimental.api_server.cache is not supported",
        ),
        (
            r#""k8s" { plugin_data { poll_retry_interval = "5" }"#,
            "poll_retry_interval: missing unit",
        ),
        (
            r#""k8s" { plugin_data { token_path = "/nowhere" kubelet_ca_path = "/nowhere" }"#,
            "/nowhere",
        ),
        (
            r#""windows" { plugin_data {}"#,
            "it is for Windows alone, and this agent is for Linux",
        ),
        (
            r#""systemd" { plugin_data { bus = "x" }"#,
            "unknown keys: \"bus\"",
        ),
        (
            r#""slurm" { plugin_data { job = 1 }"#,
            "unknown keys: \"job\"",
        ),
    ] {
        conf.unix = beside_unix(block);
        let mut command = conf.command(&node, &fake, "validate");
        let checked = command.env("TUF_ROOT", "/nowhere").output().unwrap();
        let told = stderr(&checked);
        assert!(told.contains(why), "{block}: {told}");
        assert!(told.contains("hint:"), "{block}: {told}");
    }
}
