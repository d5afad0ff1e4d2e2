//! Tokens that others make: of Kubernetes' service accounts, and JWTs that the test signs.

use ah_testkit::openbao;
pub(crate) use ah_testkit::openbao::python;
use ah_testkit::process::{Host, Process};

use crate::kit::sh;

/// Starts Kubernetes' TokenReview interface behind `wrapper`; returns it and its port. It knows the accounts of the
/// file `accounts` of `host`. With `tls` it serves `NAME.pem` and `NAME-key.pem`.
pub(crate) fn token_review(
    host: &Host,
    wrapper: &[String],
    port: u16,
    tls: Option<&str>,
) -> (Process, u16) {
    let tls = tls.map(|name| {
        let files = [format!("{name}.pem"), format!("{name}-key.pem")];
        files.map(|file| host.path(file))
    });
    openbao::token_review(&host.path("accounts"), wrapper, port, tls)
}

/// A JWT over `claims`, signed with the RSA key `NAME-key.pem` of `host`, which is made when it is not there; its
/// public half is `NAME-public.pem`.
pub(crate) fn jwt(host: &Host, name: &str, claims: &serde_json::Value) -> String {
    std::fs::write(host.path("claims"), claims.to_string()).unwrap();
    let script = format!(
        "url() {{ openssl base64 -A | tr '+/' '-_' | tr -d =; }}
         [ -e {name}-key.pem ] || openssl genrsa -out {name}-key.pem 2048
         openssl rsa -in {name}-key.pem -pubout -out {name}-public.pem
         printf '{{\"alg\":\"RS256\",\"typ\":\"JWT\"}}' | url > jwt; printf . >> jwt; url < claims >> jwt
         openssl dgst -sha256 -sign {name}-key.pem < jwt | url > signature
         printf '.' >> jwt; cat signature >> jwt"
    );
    sh(host, &script);
    std::fs::read_to_string(host.path("jwt")).unwrap()
}

/// What Kubernetes says of a service account in its token.
pub(crate) fn service_account(namespace: &str, name: &str) -> serde_json::Value {
    serde_json::json!({
        "iss": "https://kubernetes.default.svc",
        "sub": format!("system:serviceaccount:{namespace}:{name}"),
        "aud": ["https://kubernetes.default.svc"],
        "iat": 1,
        "nbf": 1,
        "exp": 4_000_000_000_u64,
        "kubernetes.io": {"namespace": namespace, "serviceaccount": {"name": name, "uid": "1"}},
    })
}
