use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use ah_spire_attest::AttestError;
use ah_spire_attest::node::gcp_iit::{
    GcpIitAgent, GcpIitAgentConfig, GcpIitServer, GcpIitServerConfig, Google,
};
use ah_spire_attest::node::{AgentHalf, AttestedAgent, ServerHalf};
use ah_testkit::node_suite::{Unasked, attest, claim};
use ah_testkit::web::Web;
use http::Response;
use serde_json::{Value, json};
use spiffe::TrustDomain;

use crate::tokens::{Issuer, now};

/// Google, and the metadata server of one of its instances.
struct Cloud {
    web: Web,
    issuer: Issuer,
}

const IDENTITY: &str = "/computeMetadata/v1/instance/service-accounts/default/identity";
const INSTANCE: &str = "/compute/v1/projects/project-1/zones/europe-west1-b/instances/node-1";

impl Cloud {
    async fn start() -> Self {
        let cloud = Self {
            web: Web::start().await,
            issuer: Issuer::new(),
        };
        cloud.publishes(&cloud.issuer, "Wed, 21 Oct 2065 07:28:00 GMT");
        cloud.gives(&cloud.issuer.sign(&claims()));
        cloud
    }

    fn publishes(&self, issuer: &Issuer, expires: &str) {
        let body = json!({"one": issuer.certificate.chain_pem()}).to_string();
        let response = Response::builder().header("Expires", expires);
        self.web
            .answers_with("/certs", response.body(body.into()).unwrap());
    }

    /// The token that the metadata server has.
    fn gives(&self, token: &str) {
        self.web.answers(IDENTITY, token);
    }

    fn agent(&self) -> GcpIitAgent {
        let config = GcpIitAgentConfig {
            identity_token_host: self.web.address.to_string(),
            ..Default::default()
        };
        GcpIitAgent::configure(&config).unwrap()
    }

    fn server_with(&self, config: GcpIitServerConfig) -> Result<GcpIitServer, AttestError> {
        let google = Google {
            certificates: self.web.url("/certs"),
            compute: self.web.url(""),
            metadata: self.web.url(""),
        };
        GcpIitServer::configure(config, TrustDomain::new("example.org").unwrap(), google)
    }

    fn server(&self) -> GcpIitServer {
        self.server_with(config()).unwrap()
    }

    async fn attested(&self, server: &GcpIitServer) -> Result<AttestedAgent, AttestError> {
        attest(&self.agent(), server, SystemTime::now()).await
    }
}

fn config() -> GcpIitServerConfig {
    GcpIitServerConfig {
        projectid_allow_list: vec!["project-1".into()],
        ..Default::default()
    }
}

/// As in the documentation of identity tokens in full format.
fn claims() -> Value {
    json!({
        "iss": "https://accounts.google.com",
        "aud": "spire-gcp-node-attestor",
        "sub": "107517467455664443765",
        "iat": now(),
        "exp": now() + 3600,
        "email": "node@project-1.iam.gserviceaccount.com",
        "google": {"compute_engine": {
            "project_id": "project-1",
            "project_number": 739_419_398_126_u64,
            "zone": "europe-west1-b",
            "instance_id": "152986662232938449",
            "instance_name": "node-1",
            "instance_creation_timestamp": 1_496_952_205,
        }},
    })
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims
        .as_object_mut()
        .unwrap()
        .insert(name.to_owned(), value);
    claims
}

fn values(agent: &AttestedAgent) -> Vec<String> {
    let selectors = agent.selectors.iter();
    selectors.map(ToString::to_string).collect()
}

#[tokio::test]
async fn gcp_iit_believes_the_token_of_an_instance() {
    let cloud = Cloud::start().await;
    let agent = cloud.attested(&cloud.server()).await.unwrap();
    assert_eq!(
        agent.id.to_string(),
        "spiffe://example.org/spire/agent/gcp_iit/project-1/152986662232938449"
    );
    assert!(!agent.can_reattest);
    let always = [
        "gcp_iit:project-id:project-1",
        "gcp_iit:zone:europe-west1-b",
        "gcp_iit:instance-name:node-1",
        "gcp_iit:sa:node@project-1.iam.gserviceaccount.com",
    ];
    assert_eq!(values(&agent), always);
    let asked = cloud.web.asked();
    let [identity, certs] = &asked[..] else {
        panic!("{asked:?}");
    };
    assert_eq!(
        identity.target,
        format!("{IDENTITY}?audience=spire-gcp-node-attestor&format=full")
    );
    assert_eq!(identity.headers["metadata-flavor"], "Google");
    assert_eq!(certs.target, "/certs");

    let named = cloud
        .server_with(GcpIitServerConfig {
            agent_path_template: "/{{ .Zone }}/{{ .InstanceName | upper }}/{{ .ServiceAccount }}/{{ .ProjectNumber }}".into(),
            ..config()
        })
        .unwrap();
    let agent = cloud.attested(&named).await.unwrap();
    assert_eq!(
        agent.id.path(),
        "/spire/agent/europe-west1-b/NODE-1/node_project-1.iam.gserviceaccount.com/739419398126"
    );
}

#[tokio::test]
async fn gcp_iit_keeps_googles_keys_until_they_end() {
    let cloud = Cloud::start().await;
    let server = cloud.server();
    let times = |asked: Vec<ah_testkit::web::Asked>| {
        let certs = asked.iter().filter(|asked| asked.target == "/certs");
        certs.count()
    };
    for _ in 0..3 {
        cloud.attested(&server).await.unwrap();
    }
    assert_eq!(times(cloud.web.asked()), 1);
    let stale = cloud.server();
    cloud.publishes(&cloud.issuer, "Wed, 21 Oct 2015 07:28:00 GMT");
    for _ in 0..2 {
        cloud.attested(&stale).await.unwrap();
    }
    assert_eq!(times(cloud.web.asked()), 2);
    cloud.web.answers("/certs", "[]");
    let error = cloud.attested(&stale).await.unwrap_err();
    assert!(matches!(error, AttestError::Unavailable(_)), "{error:?}");
}

#[tokio::test]
async fn gcp_iit_refuses_what_is_not_its_token() {
    let cloud = Cloud::start().await;
    let server = cloud.server();
    let sign = |claims: &Value| cloud.issuer.sign(claims);
    for (token, expected) in [
        (
            sign(&with("aud", json!("other"))),
            "failed to validate the identity token claims: the token is not for spire-gcp-node-attestor",
        ),
        (sign(&with("exp", json!(now() - 61))), "token has expired"),
        (sign(&with("exp", Value::Null)), "exp is not a date"),
        (
            sign(&with("google", json!({}))),
            "identity token project ID \"\" is not in the allow list",
        ),
        (
            sign(&with("google", json!("x"))),
            "unable to parse the identity token",
        ),
        (
            Issuer::new().sign(&claims()),
            "failed to validate the identity token signature",
        ),
        (
            cloud
                .issuer
                .sign_as(&json!({"alg": "RS256", "kid": "two"}), &claims()),
            "Google has no key of that name",
        ),
        (
            cloud
                .issuer
                .sign_as(&json!({"alg": "none", "kid": "one"}), &claims()),
            "it is not signed with RS256",
        ),
        ("x.y".into(), "it is no JWT in compact form"),
    ] {
        cloud.gives(&token);
        let error = cloud.attested(&server).await.unwrap_err();
        let report = error.explained().report();
        assert!(report.contains(expected), "{report}");
        assert!(!report.contains(&token), "a token is told: {report}");
    }
    for payload in [&b""[..], b"\xff", &[b'a'; 1 << 20]] {
        let mut way = Unasked;
        let outcome = server.attest(claim(payload, SystemTime::now()), &mut way);
        assert!(matches!(outcome.await, Err(AttestError::Invalid(_))));
    }
    let later = SystemTime::now() + Duration::from_hours(2);
    cloud.gives(&sign(&claims()));
    let error = attest(&cloud.agent(), &server, later).await.unwrap_err();
    assert!(error.to_string().contains("token has expired"), "{error}");
}

#[tokio::test]
async fn gcp_iit_asks_for_what_the_api_knows_of_an_instance() {
    let cloud = Cloud::start().await;
    cloud.web.answers(
        "/computeMetadata/v1/instance/service-accounts/default/token",
        json!({"access_token": "of-the-machine", "expires_in": 3000}),
    );
    cloud.web.answers(
        INSTANCE,
        json!({
            "tags": {"items": ["web", "blue"]},
            "labels": {"team": "core", "secret": "x"},
            "metadata": {"items": [{"key": "role", "value": "worker"}, {"key": "big", "value": "y".repeat(200)}, {"key": "none"}]},
        }),
    );
    let with_metadata = |more: GcpIitServerConfig| {
        cloud.server_with(GcpIitServerConfig {
            use_instance_metadata: true,
            allowed_label_keys: vec!["team".into()],
            ..more
        })
    };
    let allowed = GcpIitServerConfig {
        allowed_metadata_keys: vec!["role".into(), "none".into()],
        ..config()
    };
    let agent = cloud
        .attested(&with_metadata(allowed.clone()).unwrap())
        .await
        .unwrap();
    assert_eq!(
        values(&agent)[4..],
        [
            "gcp_iit:tag:web",
            "gcp_iit:tag:blue",
            "gcp_iit:label:team:core",
            "gcp_iit:metadata:role:worker",
            "gcp_iit:metadata:none:",
        ]
    );
    let asked = cloud.web.asked();
    let instance = asked.last().unwrap();
    assert_eq!(instance.target, INSTANCE);
    assert_eq!(instance.headers["authorization"], "Bearer of-the-machine");

    let big = GcpIitServerConfig {
        allowed_metadata_keys: vec!["big".into()],
        ..config()
    };
    let error = cloud
        .attested(&with_metadata(big.clone()).unwrap())
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "nodeattestor(gcp_iit): metadata \"big\" exceeded value limit (200 > 128)"
    );
    let larger = GcpIitServerConfig {
        max_metadata_value_size: 200,
        ..big
    };
    cloud
        .attested(&with_metadata(larger).unwrap())
        .await
        .unwrap();

    // With the key of a service account.
    let folder = tempfile::tempdir().unwrap();
    let account = Issuer::new();
    let file: PathBuf = folder.path().join("account.json");
    let key = json!({
        "type": "service_account",
        "client_email": "spire@project-1.iam.gserviceaccount.com",
        "private_key": account.certificate.key_pem(),
        "private_key_id": "7",
        "token_uri": cloud.web.url("/token"),
    });
    std::fs::write(&file, key.to_string()).unwrap();
    cloud
        .web
        .answers("/token", json!({"access_token": "of-the-account"}));
    let by_account = GcpIitServerConfig {
        service_account_file: file.clone(),
        ..allowed
    };
    let server = with_metadata(by_account).unwrap();
    cloud.attested(&server).await.unwrap();
    let asked = cloud.web.asked();
    let [.., token, instance] = &asked[..] else {
        panic!("{asked:?}");
    };
    assert_eq!(instance.headers["authorization"], "Bearer of-the-account");
    let assertion = token.body.split("assertion=").nth(1).unwrap();
    let parsed = ah_spire_wire::jwt::UnverifiedJwt::parse(assertion).unwrap();
    let spki = ah_identity_provider::CertificateFacts::from_der(account.certificate.der());
    assert!(spki.is_ok());
    assert_eq!(parsed.algorithm, "RS256");

    std::fs::write(&file, "{").unwrap();
    let error = cloud.attested(&server).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("not the key of a service account"),
        "{error}"
    );
}

#[tokio::test]
async fn gcp_iit_says_what_is_wrong_with_its_settings_and_its_place() {
    let cloud = Cloud::start().await;
    for (config, expected) in [
        (
            GcpIitServerConfig::default(),
            "projectid_allow_list is required",
        ),
        (
            GcpIitServerConfig {
                agent_path_template: "/{{ .Fingerprint }}".into(),
                ..config()
            },
            ".Fingerprint is not known; known are .PluginName, .ProjectID",
        ),
        (
            GcpIitServerConfig {
                max_metadata_value_size: -1,
                ..config()
            },
            "max_metadata_value_size is -1",
        ),
    ] {
        let error = cloud.server_with(config).err().unwrap();
        assert!(error.to_string().contains(expected), "{error}");
    }
    let elsewhere = GcpIitAgentConfig {
        identity_token_host: cloud.web.address.to_string(),
        service_account: "absent".into(),
    };
    let agent = GcpIitAgent::configure(&elsewhere).unwrap();
    let error = agent.begin().await.err().unwrap();
    assert_eq!(
        error.to_string(),
        "nodeattestor(gcp_iit): unable to retrieve valid identity token: unexpected status code: 404"
    );
}
