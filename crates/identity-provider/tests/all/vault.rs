//! The vault provider against a Vault in memory, with time that the test holds.

mod fake;
mod life;
mod outage;
mod refusals;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ah_identity_provider::vault::{
    CertificateRequest, LoginMethod, Material, Retry, Secret, Share, VaultConfig, VaultLogin,
    VaultProvider, VaultTls,
};
use ah_identity_provider::{Clock, Explained, Identity, ProviderKind, Vet};
use ah_testkit::provider_suite::{ProviderFixture, conforms};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::common::HeldClock;
use fake::{FakeVault, Mood};

/// The wall clock of paused time.
#[derive(Debug)]
struct PausedClock {
    start: SystemTime,
    at: Instant,
}

impl PausedClock {
    fn starting_now() -> Arc<dyn Clock> {
        Arc::new(Self {
            start: SystemTime::now(),
            at: Instant::now(),
        })
    }
}

impl Clock for PausedClock {
    fn now(&self) -> SystemTime {
        self.start + self.at.elapsed()
    }
}

struct AcceptAll;

impl Vet for AcceptAll {
    fn vet(&self, _: &Identity, _: SystemTime) -> Result<(), Explained> {
        Ok(())
    }
}

/// A Vault, and a machine that has a secret id for it in a file.
struct Site {
    vault: FakeVault,
    clock: Arc<dyn Clock>,
    dir: TempDir,
}

impl Site {
    fn new() -> Self {
        Self::at(PausedClock::starting_now())
    }

    fn at(clock: Arc<dyn Clock>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let site = Self {
            vault: FakeVault::new(Arc::clone(&clock)),
            clock,
            dir,
        };
        site.put("first-secret-id");
        site
    }

    fn put(&self, secret_id: &str) {
        fs::write(self.dir.path().join("secret-id"), format!("{secret_id}\n")).unwrap();
    }

    fn config(&self) -> VaultConfig {
        config(self.dir.path())
    }

    fn provider(&self) -> VaultProvider {
        self.provider_of(self.config())
    }

    fn provider_of(&self, config: VaultConfig) -> VaultProvider {
        VaultProvider::over(
            config,
            Arc::clone(&self.clock),
            Arc::new(self.vault.clone()),
        )
    }
}

fn config(dir: &Path) -> VaultConfig {
    VaultConfig {
        addresses: vec!["https://vault.example.com:8200".parse().unwrap()],
        namespace: None,
        tls: VaultTls::default(),
        pki: "pki/issue/executor".parse().unwrap(),
        login: VaultLogin {
            method: LoginMethod::AppRole {
                role_id: Material::Given(Secret::new("role".to_owned())),
                secret_id: Some(Material::File(dir.join("secret-id"))),
                wrapped: false,
            },
            mount: "approle".to_owned(),
        },
        request: CertificateRequest {
            common_name: "one.example.com".to_owned(),
            ..CertificateRequest::default()
        },
        renewal_threshold: Share::TWO_THIRDS,
        retry: Retry::default(),
        token_cache: Some(dir.join("state")),
    }
}

struct Fixture {
    site: Site,
    clock: HeldClock,
}

impl ProviderFixture for Fixture {
    type Provider = VaultProvider;

    const KIND: ProviderKind = ProviderKind::Vault;

    fn provider(&self) -> VaultProvider {
        self.site.provider()
    }

    async fn renew(&mut self) {
        self.clock.advance(Duration::from_secs(2 * 3600 / 3));
    }

    async fn break_source(&mut self) -> Vec<String> {
        self.site.vault.state().mood = Mood::Sealed;
        vec![
            "vault is sealed".to_owned(),
            "https://vault.example.com:8200".to_owned(),
        ]
    }

    async fn mend(&mut self) {
        self.site.vault.state().mood = Mood::Well;
    }

    fn secrets(&self) -> Vec<String> {
        vec!["first-secret-id".to_owned(), "s.token-".to_owned()]
    }
}

#[tokio::test(start_paused = true)]
async fn vault_conforms() {
    let clock = HeldClock::new();
    let site = Site::at(Arc::new(clock.clone()));
    conforms(Fixture { site, clock }).await;
}
