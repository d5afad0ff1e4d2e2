//! Upstream authorities that cannot be used keep a server from starting (inventory section 7).

use crate::vault::refused;

#[test]
fn an_upstream_authority_that_cannot_be_used_is_told() {
    for (upstream, text) in [
        (
            r#""cert-manager" { plugin_data { issuer_name = "spire-ca" } }"#,
            "UpstreamAuthority \"cert-manager\": namespace is required",
        ),
        (
            r#""cert-manager" { plugin_data { issuer_name = "spire-ca" namespace = "a/b" } }"#,
            "namespace: \"a/b\" is no name of Kubernetes",
        ),
        (
            r#""cert-manager" { plugin_data { issuer_name = "spire-ca" namespace = "spire" kube_config_file = "/no/kubeconfig" } }"#,
            "failed to create object: unable to create client config: ",
        ),
        (
            r#""gcp_cas" { plugin_data { } }"#,
            "UpstreamAuthority \"gcp_cas\": root_cert_spec.project_name is required",
        ),
        (
            r#""gcp_cas" { plugin_data { root_cert_spec { project_name = "p" region_name = "r" label_key = "k" label_value = "v" pool = "x" } } }"#,
            "unknown keys in root_cert_spec: pool",
        ),
    ] {
        let conf = format!(
            r#"server {{ bind_address = "127.0.0.1" bind_port = "8081" socket_path = "/run/spire/server.sock" trust_domain = "example.org" data_dir = "/var/lib/spire/server" }}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "/var/lib/spire/server/datastore.sqlite3" }} }}
  KeyManager "memory" {{ plugin_data {{}} }}
  UpstreamAuthority {upstream}
}}"#
        );
        let told = refused(&conf);
        assert!(told.contains(text), "{upstream}: {told}");
    }
}
