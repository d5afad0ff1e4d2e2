//! `--ca` beside a provider that brings its own roots, in paused time (AP-3, EN-3).

use std::fs;
use std::future;

use ah_identity_provider::extra_roots::ExtraRoots;
use ah_identity_provider::{Identity, Provider, ProviderError, ProviderKind};
use tempfile::TempDir;

use crate::common::Ca;

/// Gives one identity, and counts how often it was begun to be asked.
struct OnceOnly {
    identity: Option<Identity>,
    asked: usize,
}

impl Provider for OnceOnly {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Vault
    }

    async fn next(&mut self) -> Result<Identity, ProviderError> {
        self.asked += 1;
        assert!(
            self.asked < 3,
            "asked again while it was still being waited for"
        );
        match self.identity.take() {
            Some(identity) => Ok(identity),
            None => future::pending().await,
        }
    }

    fn refresh(&mut self) {}
}

struct Stage {
    directory: TempDir,
    provider: ExtraRoots<OnceOnly>,
}

impl Stage {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let own = Ca::new("own");
        let inner = OnceOnly {
            identity: Some(own.identity(&own.leaf("one.example"))),
            asked: 0,
        };
        let provider = ExtraRoots::new(inner, directory.path().join("ca.pem"));
        Self {
            directory,
            provider,
        }
    }

    fn put(&self, ca: &Ca) {
        let pem = ca.certificate.pem();
        fs::write(self.directory.path().join("ca.pem"), pem).unwrap();
    }
}

fn trusts(identity: &Identity, ca: &Ca) -> bool {
    identity.bundles().unscoped.contains(ca.certificate.der())
}

// AP-3, EN-3: a fault of the file costs no identity, for which Vault would have to be asked again.
#[tokio::test(start_paused = true)]
async fn a_broken_file_holds_an_identity_back_and_loses_none() {
    let mut stage = Stage::new();
    for _ in 0..2 {
        let error = stage.provider.next().await.err().unwrap();
        assert!(matches!(error, ProviderError::Operator(_)));
        assert!(error.explained().text.contains("no such file"), "{error}");
    }
    let extra = Ca::new("extra");
    stage.put(&extra);
    let identity = stage.provider.next().await.unwrap();
    assert!(trusts(&identity, &extra));
}

// AP-3, EN-3: new roots go out with the same identity, and looking for them does not disturb the provider.
#[tokio::test(start_paused = true)]
async fn new_roots_are_taken_up_while_the_provider_is_waited_for() {
    let mut stage = Stage::new();
    let (first, second) = (Ca::new("first"), Ca::new("second"));
    stage.put(&first);
    let before = stage.provider.next().await.unwrap();
    assert!(trusts(&before, &first));
    let after = {
        let mut next = std::pin::pin!(stage.provider.next());
        // Long enough for many looks at the file.
        let early = tokio::time::timeout(std::time::Duration::from_secs(60), &mut next).await;
        assert!(early.is_err(), "nothing changed");
        fs::write(
            stage.directory.path().join("ca.pem"),
            second.certificate.pem(),
        )
        .unwrap();
        next.await.unwrap()
    };
    assert!(trusts(&after, &second) && !trusts(&after, &first));
    assert_eq!(after.chain(), before.chain());
}
