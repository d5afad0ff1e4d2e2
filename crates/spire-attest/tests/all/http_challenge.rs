use std::time::SystemTime;

use ah_spire_attest::AttestError;
use ah_spire_attest::node::http_challenge::{
    HttpChallengeAgent, HttpChallengeAgentConfig, HttpChallengeServer, HttpChallengeServerConfig,
};
use ah_spire_attest::node::{AgentHalf, Conversation, ServerHalf};
use ah_testkit::node_suite::{self, NodeFixture, Says, Unasked, attest, claim};
use ah_testkit::web::Web;
use serde_json::json;
use spiffe::TrustDomain;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn trust_domain() -> TrustDomain {
    TrustDomain::new("example.org").unwrap()
}

fn server(config: HttpChallengeServerConfig) -> HttpChallengeServer {
    HttpChallengeServer::configure(config, trust_domain()).unwrap()
}

/// An agent on this machine, which a server reaches by an address of it.
fn agent_config() -> HttpChallengeAgentConfig {
    HttpChallengeAgentConfig {
        hostname: "127.0.0.1".into(),
        ..Default::default()
    }
}

fn agent(config: HttpChallengeAgentConfig) -> HttpChallengeAgent {
    HttpChallengeAgent::configure(config).unwrap()
}

#[tokio::test]
async fn http_challenge_believes_the_host_that_serves_the_nonce() {
    let server = server(HttpChallengeServerConfig::default());
    let agent = agent(agent_config());
    let attested = attest(&agent, &server, SystemTime::now()).await.unwrap();
    assert_eq!(
        attested.id.to_string(),
        "spiffe://example.org/spire/agent/http_challenge/127.0.0.1"
    );
    assert_eq!(
        attested.selectors[0].to_string(),
        "http_challenge:hostname:127.0.0.1"
    );
    assert!(!attested.can_reattest);
}

/// With a port that only the superuser may have, as agents of this attestor have them.
struct Fixture(u16);

impl NodeFixture for Fixture {
    type Agent = HttpChallengeAgent;
    type Server = HttpChallengeServer;

    const NAME: &'static str = "http_challenge";
    const CHALLENGES: usize = 1;
    // The server keeps who came: the half itself lets a host in again.
    const CAN_REATTEST: bool = true;

    fn server(&self) -> HttpChallengeServer {
        server(HttpChallengeServerConfig {
            allow_non_root_ports: Some(false),
            tofu: Some(false),
            ..Default::default()
        })
    }

    fn trust_domain(&self) -> TrustDomain {
        trust_domain()
    }

    fn honest(&self) -> HttpChallengeAgent {
        agent(HttpChallengeAgentConfig {
            port: self.0.into(),
            ..agent_config()
        })
    }

    fn impostor(&self) -> HttpChallengeAgent {
        agent(HttpChallengeAgentConfig {
            hostname: "localhost".into(),
            ..agent_config()
        })
    }

    fn secrets(&self) -> Vec<String> {
        Vec::new()
    }
}

#[tokio::test]
async fn http_challenge_conforms() {
    let mut low = (1..1024).rev();
    let free = low.find(|port| std::net::TcpListener::bind(("0.0.0.0", *port)).is_ok());
    let Some(port) = free else {
        assert!(
            std::env::var_os("CI").is_none(),
            "no port below 1024 can be had"
        );
        println!("skipped: no port below 1024 can be had here (run as root)");
        return;
    };
    node_suite::conforms(Fixture(port)).await;
}

async fn refused(server: &HttpChallengeServer, payload: serde_json::Value) -> String {
    let payload = payload.to_string();
    let mut way = Unasked;
    let outcome = server.attest(claim(payload.as_bytes(), SystemTime::now()), &mut way);
    outcome.await.unwrap_err().to_string()
}

#[tokio::test]
async fn http_challenge_refuses_before_it_fetches_anything() {
    let any = server(HttpChallengeServerConfig::default());
    for (payload, expected) in [
        (
            json!({"hostname": "localhost", "agentname": "default", "port": 80}),
            "you can not use localhost as a hostname",
        ),
        (
            json!({"hostname": "", "agentname": "default", "port": 80}),
            "hostname \"\" is no host name",
        ),
        (
            json!({"hostname": "a/b", "agentname": "default", "port": 80}),
            "hostname \"a/b\" is no host name",
        ),
        (
            json!({"hostname": "a@b", "agentname": "default", "port": 80}),
            "hostname \"a@b\" is no host name",
        ),
        (
            json!({"hostname": "node", "agentname": "../x", "port": 80}),
            "agent name is not valid",
        ),
        (
            json!({"hostname": "node", "agentname": "a".repeat(33), "port": 80}),
            "agent name is not valid",
        ),
        (
            json!({"hostname": "node", "agentname": "default", "port": 0}),
            "port is invalid",
        ),
        (
            json!({"hostname": "node", "agentname": "default", "port": 65536}),
            "port is invalid",
        ),
        (json!("x"), "failed to unmarshal data"),
    ] {
        let told = refused(&any, payload).await;
        assert!(told.contains(expected), "{told}");
    }
    let node =
        |port: u16| json!({"hostname": "node.example.org", "agentname": "default", "port": port});
    let one = server(HttpChallengeServerConfig {
        required_port: Some(88),
        ..Default::default()
    });
    assert!(
        refused(&one, node(80))
            .await
            .ends_with("port 80 is not allowed to be used by this server")
    );
    let low = server(HttpChallengeServerConfig {
        allow_non_root_ports: Some(false),
        ..Default::default()
    });
    assert!(
        refused(&low, node(1024))
            .await
            .ends_with("port 1024 is not allowed to be >= 1024")
    );
    let named = server(HttpChallengeServerConfig {
        allowed_dns_patterns: vec![r"^p[0-9]\.example\.com$".into()],
        ..Default::default()
    });
    assert!(
        refused(&named, node(80))
            .await
            .ends_with("the requested hostname is not allowed to connect")
    );
}

#[tokio::test]
async fn http_challenge_believes_no_other_answer() {
    let web = Web::start().await;
    let path = "/.well-known/spiffe/nodeattestor/http_challenge/default/challenge";
    let payload =
        json!({"hostname": "127.0.0.1", "agentname": "default", "port": web.address.port()})
            .to_string();
    let any = server(HttpChallengeServerConfig::default());
    let asks = async || {
        let mut way = Says(b"\n".to_vec());
        let outcome = any.attest(claim(payload.as_bytes(), SystemTime::now()), &mut way);
        outcome.await.unwrap_err()
    };
    assert!(
        asks()
            .await
            .to_string()
            .ends_with("the answer is 404 Not Found")
    );
    web.answers(path, "another nonce");
    let error = asks().await;
    assert!(matches!(error, AttestError::Refused(_)), "{error:?}");
    assert_eq!(
        error.to_string(),
        "nodeattestor(http_challenge): challenge verification failed: expected nonce was not found in HTTP response"
    );
    // Where it leads to is not followed.
    let elsewhere = http::Response::builder()
        .status(302)
        .header("location", web.url("/other"));
    web.answers_with(path, elsewhere.body(bytes::Bytes::new()).unwrap());
    assert!(
        asks()
            .await
            .to_string()
            .ends_with("the answer is 302 Found")
    );
    assert!(web.asked().iter().all(|asked| asked.target == path));
}

#[tokio::test]
async fn http_challenge_serves_the_nonce_alone_and_only_while_it_attests() {
    let agent = agent(agent_config());
    let (payload, mut conversation) = agent.begin().await.unwrap();
    let data: serde_json::Value = serde_json::from_slice(payload.expose()).unwrap();
    assert_eq!(data["agentname"], "default");
    let port = u16::try_from(data["port"].as_u64().unwrap()).unwrap();
    let answer = conversation.answer(br#"{"nonce":"abc="}"#).await.unwrap();
    assert_eq!(answer, b"\n");
    let get = async |path: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        std::io::Result::Ok(text)
    };
    let path = "/.well-known/spiffe/nodeattestor/http_challenge/default/challenge";
    let nonce = get(path).await.unwrap();
    assert!(
        nonce.starts_with("HTTP/1.1 200") && nonce.ends_with("abc=\n"),
        "{nonce}"
    );
    assert!(get("/").await.unwrap().starts_with("HTTP/1.1 404"));
    let again = conversation.answer(br#"{"nonce":"d"}"#).await.unwrap_err();
    assert!(
        again
            .to_string()
            .ends_with("server sent a second challenge")
    );
    drop(conversation);
    while get(path).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn http_challenge_says_what_is_wrong_with_its_settings() {
    for (config, expected) in [
        (
            HttpChallengeServerConfig {
                allowed_dns_patterns: vec!["(".into()],
                ..Default::default()
            },
            "cannot compile allowed_dns_pattern: \"(\"",
        ),
        (
            HttpChallengeServerConfig {
                tofu: Some(false),
                ..Default::default()
            },
            "you can not turn off trust on first use (TOFU) when non-root ports are allowed",
        ),
        (
            HttpChallengeServerConfig {
                tofu: Some(false),
                required_port: Some(1024),
                allow_non_root_ports: Some(false),
                ..Default::default()
            },
            "you can not turn off trust on first use (TOFU)",
        ),
    ] {
        let error = HttpChallengeServer::configure(config, trust_domain())
            .err()
            .unwrap();
        assert!(error.to_string().contains(expected), "{error}");
    }
    server(HttpChallengeServerConfig {
        tofu: Some(false),
        required_port: Some(80),
        ..Default::default()
    });
    let error = HttpChallengeAgent::configure(HttpChallengeAgentConfig {
        port: 70_000,
        ..agent_config()
    });
    assert!(error.unwrap_err().to_string().contains("port is 70000"));
    let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let agent = agent(HttpChallengeAgentConfig {
        port: port.into(),
        ..agent_config()
    });
    let error = agent.begin().await.err().unwrap();
    assert!(
        error
            .to_string()
            .contains(&format!("could not listen on port {port}"))
    );
}
