use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use ah_spire_attest::AttestError;
use ah_spire_attest::node::k8s::{
    K8sAgent, K8sAgentConfig, PsatClusterConfig, PsatServer, SatClusterConfig, SatServer,
};
use ah_spire_attest::node::{AttestedAgent, ServerHalf};
use ah_testkit::node_suite::{self, NodeFixture, Unasked, attest, claim};
use serde_json::{Value, json};
use spiffe::TrustDomain;

use self::cluster::Cluster;
use crate::tokens::{Issuer, now, pem};

pub(crate) mod cluster;

const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.of-the-agent.c2ln";

fn trust_domain() -> TrustDomain {
    TrustDomain::new("example.org").unwrap()
}

fn psat_config(kubeconfig: PathBuf) -> PsatClusterConfig {
    PsatClusterConfig {
        service_account_allow_list: vec!["spire:spire-agent".into()],
        kube_config_file: kubeconfig,
        ..Default::default()
    }
}

fn psat(config: PsatClusterConfig) -> PsatServer {
    PsatServer::configure(trust_domain(), BTreeMap::from([("here".into(), config)])).unwrap()
}

impl Cluster {
    /// An agent whose pod has `token`.
    fn agent_config(&self, token: &str) -> K8sAgentConfig {
        let token_path = self.folder.path().join(format!("token-{}", token.len()));
        std::fs::write(&token_path, format!("{token}\n")).unwrap();
        K8sAgentConfig {
            cluster: "here".into(),
            token_path,
        }
    }

    /// The file of the keys that tokens are signed with.
    fn key_file(&self, pem: &str) -> PathBuf {
        let path = self.folder.path().join("sa.pub");
        std::fs::write(&path, pem).unwrap();
        path
    }

    fn agent(&self, token: &str) -> K8sAgent {
        K8sAgent::projected(self.agent_config(token)).unwrap()
    }
}

async fn attested(
    agent: &K8sAgent,
    server: &impl ServerHalf,
) -> Result<AttestedAgent, AttestError> {
    attest(agent, server, SystemTime::now()).await
}

async fn refused(agent: &K8sAgent, server: &impl ServerHalf) -> String {
    let error = attested(agent, server).await.unwrap_err();
    let report = error.explained().report();
    assert!(!report.contains("of-the-"), "a token is told: {report}");
    error.to_string()
}

fn selectors(agent: &AttestedAgent) -> Vec<String> {
    let selectors = agent.selectors.iter();
    selectors.map(ToString::to_string).collect()
}

struct Psat(Cluster);

impl NodeFixture for Psat {
    type Agent = K8sAgent;
    type Server = PsatServer;

    const NAME: &'static str = "k8s_psat";
    const CHALLENGES: usize = 0;
    const CAN_REATTEST: bool = true;

    fn server(&self) -> PsatServer {
        self.0.knows(TOKEN);
        psat(psat_config(self.0.kubeconfig()))
    }

    fn trust_domain(&self) -> TrustDomain {
        trust_domain()
    }

    fn honest(&self) -> K8sAgent {
        self.0.agent(TOKEN)
    }

    fn impostor(&self) -> K8sAgent {
        self.0.agent("of-the-impostor")
    }

    fn secrets(&self) -> Vec<String> {
        vec![TOKEN.into(), "of-the-".into()]
    }
}

#[tokio::test]
async fn k8s_psat_conforms() {
    node_suite::conforms(Psat(Cluster::start().await)).await;
}

#[tokio::test]
async fn k8s_psat_says_which_pod_and_node_an_agent_is_on() {
    let cluster = Cluster::start().await;
    cluster.knows(TOKEN);
    let agent = cluster.agent(TOKEN);
    let found = attested(&agent, &psat(psat_config(cluster.kubeconfig()))).await;
    let found = found.unwrap();
    assert_eq!(
        found.id.to_string(),
        "spiffe://example.org/spire/agent/k8s_psat/here/node-uid-1"
    );
    let always = [
        "k8s_psat:cluster:here",
        "k8s_psat:agent_ns:spire",
        "k8s_psat:agent_sa:spire-agent",
        "k8s_psat:agent_pod_name:agent-x1",
        "k8s_psat:agent_pod_uid:pod-uid-1",
        "k8s_psat:agent_node_ip:10.0.0.7",
        "k8s_psat:agent_node_name:worker-1",
        "k8s_psat:agent_node_uid:node-uid-1",
    ];
    assert_eq!(selectors(&found), always);

    let labels = PsatClusterConfig {
        allowed_node_label_keys: vec!["zone".into(), "absent".into()],
        allowed_pod_label_keys: vec!["app".into()],
        use_pod_uid_for_agent_id: true,
        ..psat_config(cluster.kubeconfig())
    };
    let found = attested(&agent, &psat(labels)).await.unwrap();
    assert_eq!(found.id.path(), "/spire/agent/k8s_psat/here/pod/pod-uid-1");
    let labelled = [
        "k8s_psat:agent_node_label:zone:a",
        "k8s_psat:agent_pod_label:app:spire-agent",
    ];
    assert_eq!(selectors(&found), [&always[..], &labelled].concat());
}

#[tokio::test]
async fn k8s_psat_asks_for_the_audience() {
    let cluster = Cluster::start().await;
    cluster.knows(TOKEN);
    let agent = cluster.agent(TOKEN);
    let of = |audience: &[&str]| {
        let audience = audience.iter().map(|one| (*one).to_owned()).collect();
        psat(PsatClusterConfig {
            audience: Some(audience),
            ..psat_config(cluster.kubeconfig())
        })
    };
    let told = refused(&agent, &of(&["other"])).await;
    let expected = "nodeattestor(k8s_psat): unable to validate token with TokenReview API for cluster \"here\": token \
                    review API did not validate audience: wanted one of [\"other\"] but got [\"spire-server\"]";
    assert_eq!(told, expected);
    for audience in [&["other", "spire-server"][..], &[]] {
        attested(&agent, &of(audience)).await.unwrap();
    }
}

#[tokio::test]
async fn k8s_psat_refuses_who_is_not_allowed() {
    let cluster = Cluster::start().await;
    cluster.knows(TOKEN);
    let agent = cluster.agent(TOKEN);
    let server = psat(psat_config(cluster.kubeconfig()));
    let others = PsatClusterConfig {
        service_account_allow_list: vec!["spire:other".into()],
        ..psat_config(cluster.kubeconfig())
    };
    assert_eq!(
        refused(&agent, &psat(others)).await,
        "nodeattestor(k8s_psat): \"spire:spire-agent\" is not an allowed service account for cluster \"here\""
    );
    // The pod went, and another has its name.
    let review = cluster.with(|state| state.reviews[TOKEN].clone());
    let said = |change: &dyn Fn(&mut Value)| {
        let mut changed = review.clone();
        change(&mut changed);
        cluster.with(|state| state.reviews.insert(TOKEN.into(), changed));
    };
    let pod_uid = "authentication.kubernetes.io/pod-uid";
    said(&|status| status["user"]["extra"][pod_uid] = json!(["pod-uid-0"]));
    assert_eq!(
        refused(&agent, &server).await,
        "nodeattestor(k8s_psat): pod UID mismatch for pod \"agent-x1\" in cluster \"here\": token bound to pod UID \"pod-uid-0\""
    );
    for (change, expected) in [
        (
            &(|status: &mut Value| status["authenticated"] = json!(false)) as &dyn Fn(&mut Value),
            "token not authenticated according to TokenReview API for cluster \"here\"",
        ),
        (
            &|status| status["error"] = json!("no key"),
            "token review API response contains an error: no key",
        ),
        (
            &|status| status["user"]["username"] = json!("jane"),
            "unexpected username format: jane",
        ),
        (
            &|status| status["user"]["username"] = json!("system:serviceaccount::x"),
            "missing namespace",
        ),
        (
            &|status| status["user"]["extra"] = json!({}),
            "missing pod name",
        ),
        (
            &|status| status["user"]["extra"][pod_uid] = json!(["a", "b"]),
            "expected 1 UID but got: 2",
        ),
        (
            &|status| {
                status["user"]["extra"]["authentication.kubernetes.io/pod-name"] = json!(["../x"]);
            },
            "\"../x\" is no name of Kubernetes",
        ),
    ] {
        said(change);
        let told = refused(&agent, &server).await;
        assert!(told.contains(expected), "{told}");
    }
}

#[tokio::test]
async fn k8s_names_what_is_missing() {
    let cluster = Cluster::start().await;
    cluster.knows(TOKEN);
    let agent = cluster.agent(TOKEN);
    let server = psat(psat_config(cluster.kubeconfig()));
    cluster.with(|state| state.objects.remove("/api/v1/nodes/worker-1"));
    let told = refused(&agent, &server).await;
    assert!(
        told.ends_with("unable to query nodes API: /api/v1/nodes/worker-1 not found"),
        "{told}"
    );
    for (payload, expected) in [
        (r#"{"token":"t"}"#, "missing cluster in attestation data"),
        (r#"{"cluster":"here"}"#, "missing token in attestation data"),
        (
            r#"{"cluster":"there","token":"t"}"#,
            "not configured for cluster \"there\"",
        ),
    ] {
        let mut way = Unasked;
        let outcome = server.attest(claim(payload.as_bytes(), SystemTime::now()), &mut way);
        let error = outcome.await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("nodeattestor(k8s_psat): {expected}")
        );
    }

    let gone = K8sAgentConfig {
        cluster: "here".into(),
        token_path: cluster.folder.path().join("gone"),
    };
    let told = refused(&K8sAgent::projected(gone).unwrap(), &server).await;
    assert!(told.contains("unable to load token from ") && told.ends_with("(os error 2)"));
    for configured in [K8sAgent::projected, K8sAgent::plain] {
        let error = configured(K8sAgentConfig::default()).unwrap_err();
        assert!(error.to_string().ends_with("configuration missing cluster"));
    }
    let nobody = BTreeMap::from([("here".to_owned(), PsatClusterConfig::default())]);
    let error = PsatServer::configure(trust_domain(), nobody).err().unwrap();
    assert!(error.to_string().contains("at least one service account"));
}

#[tokio::test]
async fn kubeconfigs_are_read_again_and_their_faults_named() {
    let cluster = Cluster::start().await;
    cluster.knows(TOKEN);
    let agent = cluster.agent(TOKEN);
    let server = psat(psat_config(cluster.kubeconfig_with("token: wrong")));
    assert!(refused(&agent, &server).await.ends_with("Unauthorized"));
    let file = cluster.folder.path().join("server-token");
    std::fs::write(&file, format!("{}\n", cluster::SERVER_TOKEN)).unwrap();
    cluster.kubeconfig_with("tokenFile: server-token");
    attested(&agent, &server).await.unwrap();
    for (user, expected) in [
        (
            "exec: {command: aws}",
            "exec is not supported: use token, tokenFile or client-certificate",
        ),
        (
            "client-certificate-data: '!'",
            "client-certificate-data is not base64",
        ),
        (
            "client-key-data: AAAA",
            "client-certificate and client-key belong together",
        ),
        ("tokenFile: gone", "No such file or directory (os error 2)"),
    ] {
        cluster.kubeconfig_with(user);
        let told = refused(&agent, &server).await;
        assert!(told.ends_with(expected), "{told}");
    }
    let path = cluster.kubeconfig();
    for (text, expected) in [
        ("current-context: x", "it has no context named \"x\""),
        ("{}", "it has no current-context"),
        ("users: [of-the-admin", "kubeconfig: "),
    ] {
        std::fs::write(&path, text).unwrap();
        let told = refused(&agent, &server).await;
        assert!(told.contains(expected), "{told}");
    }
    let elsewhere = psat(psat_config(cluster.folder.path().join("absent")));
    let told = refused(&agent, &elsewhere).await;
    assert!(told.contains("unable to create client config: "), "{told}");
}

/// As clusters wrote them before tokens had an end.
fn plain_claims() -> Value {
    json!({
        "iss": "kubernetes/serviceaccount",
        "sub": "system:serviceaccount:spire:spire-agent",
        "kubernetes.io/serviceaccount/namespace": "spire",
        "kubernetes.io/serviceaccount/service-account.name": "spire-agent",
    })
}

async fn sat(config: SatClusterConfig) -> SatServer {
    let config = SatClusterConfig {
        service_account_allow_list: vec!["spire:spire-agent".into()],
        ..config
    };
    let clusters = BTreeMap::from([("here".to_owned(), config)]);
    SatServer::configure(trust_domain(), clusters)
        .await
        .unwrap()
}

// SR-2
#[tokio::test]
async fn k8s_sat_believes_the_clusters_keys() {
    let cluster = Cluster::start().await;
    let issuer = Issuer::new();
    let server = sat(SatClusterConfig {
        service_account_key_file: cluster.key_file(&issuer.certificate.chain_pem()),
        ..Default::default()
    })
    .await;
    let with = |token: &str| K8sAgent::plain(cluster.agent_config(token)).unwrap();
    let agent = with(&issuer.sign(&plain_claims()));
    let found = attested(&agent, &server).await.unwrap();
    let prefix = "/spire/agent/k8s_sat/here/";
    assert!(found.id.path().starts_with(prefix), "{}", found.id);
    assert_eq!(
        selectors(&found),
        [
            "k8s_sat:cluster:here",
            "k8s_sat:agent_ns:spire",
            "k8s_sat:agent_sa:spire-agent",
        ]
    );
    assert!(!found.can_reattest);
    // Nothing in the token says which node: the next one is another agent.
    let again = attested(&agent, &server).await.unwrap();
    assert_ne!(again.id, found.id);

    let projected = json!({
        "exp": now() + 600,
        "kubernetes.io": {"namespace": "spire", "serviceaccount": {"name": "spire-agent"}},
    });
    attested(&with(&issuer.sign(&projected)), &server)
        .await
        .unwrap();
    let changed = |name: &str, value: Value| {
        let mut claims = plain_claims();
        claims[name] = value;
        issuer.sign(&claims)
    };
    for (token, expected) in [
        (changed("exp", json!(now() - 301)), "token has expired"),
        (
            issuer.sign(&json!({"exp": now() + 900, "nbf": now() + 400})),
            "nbf is in the future",
        ),
        (
            changed("kubernetes.io", json!({"namespace": "spire"})),
            "malformed token: namespace found in two claims",
        ),
        (
            changed("kubernetes.io/serviceaccount/namespace", json!("")),
            "token missing namespace claim",
        ),
        (
            changed("kubernetes.io/serviceaccount/namespace", json!("web")),
            "\"web:spire-agent\" is not an allowed service account",
        ),
        ("x.y".into(), "unable to parse token"),
        (
            Issuer::new().sign(&plain_claims()),
            "token signature is not valid",
        ),
    ] {
        let told = refused(&with(&token), &server).await;
        assert!(told.contains(expected), "{told}");
    }
}

// SR-2
#[tokio::test]
async fn k8s_sat_reads_keys_in_all_their_forms() {
    let cluster = Cluster::start().await;
    let issuer = Issuer::new();
    let agent = K8sAgent::plain(cluster.agent_config(&issuer.sign(&plain_claims()))).unwrap();
    let several = Issuer::new().public_key_pem() + &issuer.public_key_pem();
    let config = SatClusterConfig {
        service_account_key_file: cluster.key_file(&several),
        ..Default::default()
    };
    attested(&agent, &sat(config.clone()).await).await.unwrap();
    for (text, expected) in [
        ("", "has no service account keys in"),
        (&pem("PUBLIC KEY", b"x"), "not a public key in DER"),
    ] {
        cluster.key_file(text);
        let clusters = BTreeMap::from([("here".to_owned(), config.clone())]);
        let error = SatServer::configure(trust_domain(), clusters).await;
        let told = error.err().unwrap().to_string();
        assert!(told.contains(expected), "{told}");
    }
}

// SR-2
#[tokio::test]
async fn k8s_sat_asks_the_cluster_where_it_is_told_to() {
    let cluster = Cluster::start().await;
    cluster.knows(TOKEN);
    let agent = K8sAgent::plain(cluster.agent_config(TOKEN)).unwrap();
    let server = sat(SatClusterConfig {
        use_token_review_api_validation: true,
        kube_config_file: cluster.kubeconfig(),
        ..Default::default()
    })
    .await;
    attested(&agent, &server).await.unwrap();
    assert_eq!(
        cluster.with(|state| std::mem::take(&mut state.asked)),
        ["POST /apis/authentication.k8s.io/v1/tokenreviews"]
    );
    cluster.with(|state| state.reviews.clear());
    assert_eq!(
        refused(&agent, &server).await,
        "nodeattestor(k8s_sat): token not authenticated according to TokenReview API"
    );
}
