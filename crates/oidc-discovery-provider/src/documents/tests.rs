use std::time::Duration;

use ah_spire_plugin::oidc::flags;
use http_body_util::BodyExt as _;

use super::*;
use crate::keys::KeySet;

const SINCE: u64 = 1_700_000_000;
const DATE: &str = "Tue, 14 Nov 2023 22:13:20 GMT";

/// Answers as with `keys` in the configuration.
struct Asked {
    documents: Documents,
    known: watch::Sender<Known>,
}

impl Asked {
    fn new(keys: &str, tls: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("oidc.conf");
        let text = format!(
            "domains = [\"oidc.test\"] insecure_addr = \":0\" file {{ path = \"x\" }} {keys}"
        );
        std::fs::write(&path, text).unwrap();
        let line = ["-config".to_owned(), path.display().to_string()];
        let config = OidcConfig::load(&flags().parse(&line).unwrap(), &|_| None).unwrap();
        let known = watch::Sender::<Known>::default();
        let domains = Domains::new(&config.domains).unwrap();
        let documents = Documents::new(&config, domains, known.subscribe(), tls);
        Self { documents, known }
    }

    fn to(&self, request: http::request::Builder) -> (u16, HeaderMap, String) {
        let response = self.documents.respond(&request.body(()).unwrap());
        let (parts, body) = response.into_parts();
        let body = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(body.collect());
        let body = String::from_utf8(body.unwrap().to_bytes().into()).unwrap();
        (parts.status.as_u16(), parts.headers, body)
    }

    /// `issuer` and `jwks_uri` for this host and with these headers.
    fn links(&self, path: &str, host: &str, headers: &[(&str, &str)]) -> (String, String) {
        let mut request = Request::get(path).header("Host", host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (status, _, body) = self.to(request);
        assert_eq!(status, 200, "{body}");
        let document: serde_json::Value = serde_json::from_str(&body).unwrap();
        let text = |key: &str| document[key].as_str().unwrap().to_owned();
        (text("issuer"), text("jwks_uri"))
    }
}

const WELL_KNOWN: &str = "/.well-known/openid-configuration";

fn links(issuer: &str, keys: &str) -> (String, String) {
    (issuer.to_owned(), keys.to_owned())
}

// Inventory section 11; the bytes are upstream's.
#[test]
fn the_discovery_document_is_upstream_s() {
    let (status, headers, body) =
        Asked::new("", true).to(Request::get(WELL_KNOWN).header("Host", "oidc.test"));
    assert_eq!(status, 200);
    assert_eq!(headers["content-type"], "application/json");
    assert_eq!(headers["access-control-allow-origin"], "*");
    assert_eq!(
        body,
        r#"{
  "issuer": "https://oidc.test",
  "jwks_uri": "https://oidc.test/keys",
  "authorization_endpoint": "",
  "response_types_supported": [
    "id_token"
  ],
  "subject_types_supported": [
    "public"
  ],
  "id_token_signing_alg_values_supported": [
    "RS256",
    "ES256",
    "ES384"
  ]
}"#
    );
}

#[test]
fn links_follow_the_request_and_the_configuration() {
    let plain = Asked::new("", false);
    let https = links("https://oidc.test:8443", "https://oidc.test:8443/keys");
    assert_eq!(plain.links(WELL_KNOWN, "oidc.test:8443", &[]), https);
    let forwarded = [("X-Forwarded-Host", "oidc.test:8443")];
    assert_eq!(plain.links(WELL_KNOWN, "10.0.0.1", &forwarded), https);

    // allow_insecure_scheme
    let insecure = Asked::new("allow_insecure_scheme = true", false);
    let http = links("http://oidc.test", "http://oidc.test/keys");
    let https = links("https://oidc.test", "https://oidc.test/keys");
    assert_eq!(insecure.links(WELL_KNOWN, "oidc.test", &[]), http);
    for header in [
        ("X-Forwarded-Proto", "HTTPS"),
        ("X-Forwarded-Scheme", "https"),
        ("Forwarded", "for=10.0.0.1;proto=https"),
    ] {
        assert_eq!(insecure.links(WELL_KNOWN, "oidc.test", &[header]), https);
    }
    let by_http = [("X-Forwarded-Proto", "http"), ("Forwarded", "proto=https")];
    assert_eq!(insecure.links(WELL_KNOWN, "oidc.test", &by_http), http);
    let tls = Asked::new("allow_insecure_scheme = true", true);
    assert_eq!(tls.links(WELL_KNOWN, "oidc.test", &[]), https);

    // server_path_prefix
    let below = Asked::new("server_path_prefix = \"/instance/1\"", true);
    assert_eq!(
        below.links(&format!("/instance/1{WELL_KNOWN}"), "oidc.test", &[]),
        links(
            "https://oidc.test/instance/1",
            "https://oidc.test/instance/1/keys"
        )
    );
    assert_eq!(below.to(Request::get(WELL_KNOWN)).0, 404);
    assert_eq!(below.to(Request::get("/instance/1/keys")).0, 500);

    // jwt_issuer, jwks_uri
    let issuer = "jwt_issuer = \"https://issuer.test/v1\"";
    assert_eq!(
        Asked::new(issuer, true).links(WELL_KNOWN, "oidc.test", &[]),
        links("https://issuer.test/v1", "https://issuer.test/v1/keys")
    );
    let both = format!("{issuer} jwks_uri = \"https://keys.test/k?v=1\"");
    assert_eq!(
        Asked::new(&both, true).links(WELL_KNOWN, "oidc.test", &[]),
        links("https://issuer.test/v1", "https://keys.test/k?v=1")
    );
}

#[test]
fn other_hosts_methods_and_paths_are_refused() {
    let asked = Asked::new("", true);
    let (status, headers, body) = asked.to(Request::get(WELL_KNOWN).header("Host", "other.test"));
    assert_eq!(
        (status, body.as_str()),
        (400, "domain \"other.test\" is not allowed\n")
    );
    assert_eq!(headers["x-content-type-options"], "nosniff");
    assert_eq!(asked.to(Request::get(WELL_KNOWN)).0, 400);
    // The host that counts is the one that a proxy tells.
    let behind = Request::get(WELL_KNOWN).header("Host", "oidc.test");
    assert_eq!(
        asked.to(behind.header("X-Forwarded-Host", "other.test")).0,
        400
    );
    for path in [WELL_KNOWN, "/keys"] {
        let (status, _, body) = asked.to(Request::head(path).header("Host", "oidc.test"));
        assert_eq!((status, body.as_str()), (405, "method not allowed\n"));
    }
    let (status, _, body) = asked.to(Request::get("/"));
    assert_eq!((status, body.as_str()), (404, "404 page not found\n"));
}

#[test]
fn keys_are_served_once_there_are_some() {
    let asked = Asked::new("", true);
    let keys = |headers: &[(&str, &str)]| {
        let mut request = Request::get("/keys");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        asked.to(request)
    };
    assert_eq!(
        (keys(&[]).0, keys(&[]).2.as_str()),
        (500, "document not available\n")
    );
    let since = SystemTime::UNIX_EPOCH + Duration::from_millis(SINCE * 1000 + 700);
    let set = |document: Option<&'static str>| {
        asked.known.send_modify(|known| {
            let document = document.map(|text| Bytes::from_static(text.as_bytes()));
            known.keys = Some(KeySet { document, since });
        });
    };
    set(None);
    let (status, _, body) = keys(&[]);
    assert_eq!(
        (status, body.as_str()),
        (501, "jwt not supported/enabled in this service\n")
    );

    // Whatever the host: upstream looks at it for the discovery document alone.
    set(Some("{}"));
    let (status, headers, body) = keys(&[]);
    assert_eq!((status, body.as_str()), (200, "{}"));
    for (name, value) in [
        ("content-type", "application/json"),
        ("access-control-allow-origin", "*"),
        ("cache-control", "no-cache, no-store, must-revalidate"),
        ("pragma", "no-cache"),
        ("expires", "0"),
        ("last-modified", DATE),
    ] {
        assert_eq!(headers[name], value);
    }
    let (status, headers, body) = keys(&[("If-Modified-Since", DATE)]);
    assert_eq!((status, body.as_str()), (304, ""));
    assert_eq!(headers["last-modified"], DATE);
    assert_eq!(
        keys(&[("If-Modified-Since", "Tue, 14 Nov 2023 22:13:19 GMT")]).0,
        200
    );
    assert_eq!(keys(&[("If-Modified-Since", "yesterday")]).0, 200);
}
