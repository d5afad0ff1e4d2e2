//! The spiffe provider against a Workload API that says what the test wants.

use std::time::Duration;

use ah_identity_provider::spiffe::{Choice, SpiffeConfig, SpiffeProvider};
use ah_identity_provider::{Explained, Identity, Provider, ProviderError};
use ah_testkit::ca::{TestCa, TestLeaf};
use ah_testkit::workload_api::{Answer, Svids, WorkloadApi};
use tempfile::TempDir;
use tokio::time::timeout;

mod set;
mod stream;

const DOMAIN: &str = "example.org";
const DEADLINE: Duration = Duration::from_secs(60);

/// An authority, and an agent that serves what it issues.
pub(crate) struct Agent {
    pub(crate) dir: TempDir,
    pub(crate) ca: TestCa,
    pub(crate) api: WorkloadApi,
}

impl Agent {
    /// An agent that serves the identity `/ah/agent/1`.
    pub(crate) fn new() -> Self {
        let ca = TestCa::new(DOMAIN);
        let svids = Svids::of(&leaf(&ca, "/ah/agent/1"), &ca);
        Self::saying(ca, Answer::Set(svids))
    }

    fn saying(ca: TestCa, answer: Answer) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let api = WorkloadApi::unix(dir.path().join("agent.sock"), answer);
        Self { dir, ca, api }
    }

    pub(crate) fn provider(&self) -> SpiffeProvider {
        self.choosing(Choice::default())
    }

    fn choosing(&self, choice: Choice) -> SpiffeProvider {
        SpiffeProvider::new(SpiffeConfig {
            endpoint: self.api.endpoint().parse().unwrap(),
            choice,
        })
    }

    /// Serves another certificate of the same identity.
    pub(crate) fn renew(&self) -> TestLeaf {
        let leaf = leaf(&self.ca, "/ah/agent/1");
        self.api.say(Answer::Set(Svids::of(&leaf, &self.ca)));
        leaf
    }
}

fn leaf(ca: &TestCa, path: &str) -> TestLeaf {
    ca.leaf()
        .spiffe(&format!("spiffe://{DOMAIN}{path}"))
        .issue()
}

async fn given(provider: &mut SpiffeProvider) -> Identity {
    match timeout(DEADLINE, provider.next()).await.unwrap() {
        Ok(identity) => identity,
        Err(error) => panic!("{}", error.explained().report()),
    }
}

/// What a set that cannot be used is told as. No fault of an agent ends this process.
async fn refused(provider: &mut SpiffeProvider) -> Explained {
    match timeout(DEADLINE, provider.next()).await.unwrap() {
        Err(ProviderError::Retry(explained)) => {
            assert!(explained.hint.is_some(), "{}", explained.report());
            explained
        }
        Err(error) => panic!("{}", error.explained().report()),
        Ok(identity) => panic!("{:?} was given", identity.leaf().uris),
    }
}
