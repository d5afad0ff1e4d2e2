//! How the connection is made, kept and made again.

use std::time::{Duration, Instant};

use ah_identity_provider::spiffe::{Choice, Endpoint, SpiffeConfig, SpiffeProvider};
use ah_identity_provider::{Code, Provider};
use ah_testkit::ca::TestCa;
use ah_testkit::workload_api::{Answer, Svids, WorkloadApi};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tonic::Status;

use super::{Agent, DOMAIN, given, leaf, refused};

fn at(endpoint: &str) -> SpiffeProvider {
    SpiffeProvider::new(SpiffeConfig {
        endpoint: endpoint.parse().unwrap(),
        choice: Choice::default(),
    })
}

// SP-1: an update is given as it comes, over the one stream, with the header that the standard asks for (SV-69).
#[tokio::test]
async fn sp_1_updates_come_over_the_one_stream() {
    let agent = Agent::new();
    let mut provider = agent.provider();
    given(&mut provider).await;
    for _ in 0..3 {
        let leaf = agent.renew();
        assert_eq!(given(&mut provider).await.chain().to_vec(), leaf.chain());
    }
    assert_eq!(agent.api.calls(), 1);
}

// SV-70, SV-71, SV-72: over TCP as it is, with no TLS and no word about who we are.
#[tokio::test]
async fn sv_70_tcp_serves_as_well() {
    let ca = TestCa::new(DOMAIN);
    let api = WorkloadApi::tcp(Answer::Set(Svids::of(&leaf(&ca, "/a"), &ca)));
    let endpoint: Endpoint = api.endpoint().parse().unwrap();
    assert!(matches!(endpoint, Endpoint::Tcp(_)));
    given(&mut at(&api.endpoint())).await;
}

// ER-11: no file, nobody who listens.
#[tokio::test]
async fn er_11_says_why_there_is_no_connection() {
    let mut agent = Agent::new();
    let socket = agent.api.endpoint();
    let text = |why| format!("failed to connect to Workload API: {socket}: {why}");
    agent.api.kill();
    let told = refused(&mut agent.provider()).await;
    assert_eq!(
        (told.code, told.text),
        (Code::WorkloadApi, text("connection refused"))
    );
    agent.api.stop();
    let told = refused(&mut agent.provider()).await;
    assert_eq!(
        (told.code, told.text),
        (Code::WorkloadApi, text("no such file"))
    );
}

// ER-10: the words of the agent, and what it may select this process by; it passes when an entry is made.
#[tokio::test]
async fn er_10_no_identity_now_and_one_later() {
    let agent = Agent::saying(TestCa::new(DOMAIN), Answer::no_identity());
    let mut provider = agent.provider();
    let told = refused(&mut provider).await;
    assert_eq!(
        (told.code, told.text.as_str()),
        (Code::NoIdentity, "no identity issued")
    );
    let report = told.report();
    let here = std::env::current_exe().unwrap();
    for selector in [
        format!("this process is pid {};", std::process::id()),
        format!("unix:uid:{}", nix::unistd::getuid()),
        format!("unix:gid:{}", nix::unistd::getgid()),
        format!("unix:path:{}", here.display()),
    ] {
        assert!(report.contains(&selector), "{report}");
    }
    let leaf = agent.renew();
    assert_eq!(given(&mut provider).await.chain().to_vec(), leaf.chain());
}

// ER-10: an entry that is deleted in mid-life is told, and made again it serves again.
#[tokio::test]
async fn er_10_an_identity_that_is_withdrawn_is_told() {
    let agent = Agent::new();
    let mut provider = agent.provider();
    let first = given(&mut provider).await;
    agent.api.say(Answer::no_identity());
    assert_eq!(refused(&mut provider).await.code, Code::NoIdentity);
    assert_eq!(refused(&mut provider).await.code, Code::NoIdentity);
    agent.renew();
    assert!(!given(&mut provider).await.same_material(&first));
}

// SP-2: an agent that is restarted, killed or replaced by another on a new socket is found again, and what it says is
// given though it is the same: the failure before it is over.
#[tokio::test]
async fn sp_2_an_agent_that_comes_back_is_found() {
    let mut agent = Agent::new();
    let mut provider = agent.provider();
    let first = given(&mut provider).await;
    for kill in [false, true] {
        if kill {
            agent.api.kill();
        } else {
            agent.api.stop();
        }
        assert_eq!(refused(&mut provider).await.code, Code::WorkloadApi);
        agent.api.start();
        provider.changed().await;
        assert!(given(&mut provider).await.same_material(&first));
    }
    let leaf = agent.renew();
    assert_eq!(given(&mut provider).await.chain().to_vec(), leaf.chain());
}

// SP-2: a restart that is over before anybody looks is no event at all.
#[tokio::test]
async fn sp_2_a_quick_restart_is_not_told() {
    let mut agent = Agent::new();
    let mut provider = agent.provider();
    given(&mut provider).await;
    agent.api.kill();
    agent.api.start();
    let leaf = agent.renew();
    assert_eq!(given(&mut provider).await.chain().to_vec(), leaf.chain());
}

// Workload API §4.2: a stream that ends is opened again at once, but not in a busy loop.
#[tokio::test]
async fn a_stream_that_ends_each_time_is_opened_once_a_second() {
    let ca = TestCa::new(DOMAIN);
    let svids = Svids::of(&leaf(&ca, "/ah/agent/1"), &ca);
    let agent = Agent::saying(ca, Answer::SetAndEnd(svids));
    let mut provider = agent.provider();
    given(&mut provider).await;
    let begun = Instant::now();
    let (third, seen) = tokio::sync::oneshot::channel();
    let Agent { api, dir: _dir, .. } = agent;
    std::thread::spawn(move || {
        api.wait_for_calls(3);
        let _ = third.send(api);
    });
    tokio::select! {
        _ = provider.next() => panic!("the same identity was given again"),
        api = seen => assert_eq!(api.unwrap().calls(), 3),
    }
    assert!(begun.elapsed() >= Duration::from_millis(1900));
}

// SV-75: of a storm of sets the last is what counts, and hardly any other costs anything.
#[tokio::test]
async fn sv_75_a_storm_is_one_update_and_its_last() {
    let agent = Agent::new();
    let mut provider = agent.provider();
    given(&mut provider).await;
    let [one, two] = [(); 2].map(|()| Svids::of(&leaf(&agent.ca, "/ah/agent/1"), &agent.ca));
    for _ in 0..1000 {
        agent.api.say(Answer::Set(one.clone()));
        agent.api.say(Answer::Set(two.clone()));
    }
    let last = agent.renew();
    let mut given_in_all = 0;
    loop {
        given_in_all += 1;
        if given(&mut provider).await.chain().to_vec() == last.chain() {
            break;
        }
    }
    // An identity each 200 ms is the most there can be.
    assert!(given_in_all < 20, "{given_in_all}");
}

// Bundles of many federated domains arrive; what is larger than any of those is refused by its size.
#[tokio::test]
async fn a_large_message_is_taken_and_a_huge_one_is_told() {
    let ca = TestCa::new(DOMAIN);
    let of_size = |bytes: usize| {
        let mut svids = Svids::of(&leaf(&ca, "/ah/agent/1"), &ca);
        svids.unknown = "x".repeat(bytes);
        Answer::Set(svids)
    };
    let agent = Agent::saying(ca.clone(), of_size(12 << 20));
    let mut provider = agent.provider();
    given(&mut provider).await;
    agent.api.say(of_size(17 << 20));
    let told = refused(&mut provider).await;
    assert!(
        told.text.ends_with(": a message of more than 16 MiB"),
        "{}",
        told.text
    );
}

// Workload Endpoint §6: other answers are told as they are, and asked again.
#[tokio::test]
async fn what_else_an_agent_may_answer_is_told() {
    let agent = Agent::saying(TestCa::new(DOMAIN), Answer::Silent);
    for (status, words) in [
        (
            Status::unimplemented("no such method"),
            "the call was refused",
        ),
        (
            Status::invalid_argument("security header missing"),
            "Security header missing",
        ),
        (Status::unavailable("not ready"), "Unavailable: not ready"),
    ] {
        agent.api.say(Answer::Refuse(status));
        let report = refused(&mut agent.provider()).await.report();
        assert!(
            report.to_lowercase().contains(&words.to_lowercase()),
            "{report}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_says_nothing_is_given_up() {
    let agent = Agent::saying(TestCa::new(DOMAIN), Answer::Silent);
    let told = refused(&mut agent.provider()).await;
    assert!(
        told.text.ends_with(": no answer within 30s"),
        "{}",
        told.text
    );
}

#[tokio::test]
async fn what_is_no_workload_api_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"220 mail.example.org ESMTP\r\n").await;
        }
    });
    let told = refused(&mut at(socket.to_str().unwrap())).await;
    assert!(
        told.text.starts_with("failed to connect to Workload API: "),
        "{}",
        told.text
    );
}
