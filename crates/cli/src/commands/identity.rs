//! From identity settings to a supervised identity.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ah_identity_provider::dev::{DevConfig, DevProvider, DevRole};
use ah_identity_provider::extra_roots::ExtraRoots;
use ah_identity_provider::files::{FilesConfig, FilesProvider};
use ah_identity_provider::{
    Clock, Code, Explained, Health, IdentityWatch, Provider, ProviderKind, Refresher, Supervisor,
    SystemClock, Vet,
};
use ah_tls::{IdentityVet, Role};
use tokio::sync::watch;

use crate::settings::IdentitySettings;

/// A provider under its supervisor, before its first identity.
pub(super) struct Source {
    pub(super) kind: ProviderKind,
    pub(super) health: watch::Receiver<Health>,
    pub(super) refresher: Refresher,
    first: Pin<Box<dyn Future<Output = Result<Running, Explained>> + Send>>,
}

/// A supervised identity; `supervising` has to be polled, and ends only when the provider gave up.
pub(super) struct Running {
    pub(super) identity: IdentityWatch,
    pub(super) supervising: Pin<Box<dyn Future<Output = Explained> + Send>>,
}

impl Source {
    /// The source that `settings` name, for the dev role `dev` where they name dev.
    pub(super) fn new(
        settings: &IdentitySettings,
        dev: DevRole,
        role: Role,
        strict_svid: bool,
        clock: &Arc<dyn Clock>,
    ) -> Self {
        let vet: Arc<dyn Vet> = Arc::new(IdentityVet::new(role, strict_svid));
        match settings {
            IdentitySettings::Dev(settings) => {
                if settings.allow_remote {
                    tracing::warn!(
                        "--dev-allow-remote: the dev identity may leave this machine, and whoever has its CA can be anybody; use files, spiffe, vault or exec in production"
                    );
                }
                let config = DevConfig::new(settings.state.clone(), dev);
                let provider = DevProvider::new(config, Arc::clone(clock));
                match &settings.extra_roots {
                    Some(file) => supervised(ExtraRoots::new(provider, file.clone()), vet, clock),
                    None => supervised(provider, vet, clock),
                }
            }
            IdentitySettings::Files(settings) => {
                let provider = FilesProvider::new(FilesConfig {
                    cert: settings.cert.clone(),
                    key: settings.key.clone(),
                    ca: vec![settings.ca.clone()],
                    key_passphrase_file: settings.key_passphrase_file.clone(),
                    strict_key_permissions: settings.strict_key_permissions,
                });
                supervised(provider, vet, clock)
            }
        }
    }

    /// Waits for the first good identity. What is likely to pass is told by `tell` and waited for.
    pub(super) async fn first(self, tell: impl Fn(&Explained)) -> Result<Running, Explained> {
        let mut health = self.health;
        let mut first = self.first;
        loop {
            tokio::select! {
                running = &mut first => return running,
                Ok(()) = health.changed() => {
                    let failure = health.borrow_and_update().last_error.clone();
                    if let Some(failure) = failure
                        && failure.retry_in.is_some()
                    {
                        tell(&failure.explained);
                    }
                }
            }
        }
    }
}

/// Gets one identity from files and vets it as at start-up, without starting anything. The dev provider is
/// left alone: it would make a CA.
pub(super) fn check(
    settings: &IdentitySettings,
    dev: DevRole,
    role: Role,
    strict_svid: bool,
) -> Vec<Explained> {
    if matches!(settings, IdentitySettings::Dev(_)) {
        return Vec::new();
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return vec![super::no_runtime(&error)],
    };
    runtime.block_on(async {
        let source = Source::new(settings, dev, role, strict_svid, &clock);
        let first = source.first(|_| {});
        match tokio::time::timeout(CHECK_WITHIN, first).await {
            Ok(running) => running.err().into_iter().collect(),
            Err(_) => vec![Explained::new(
                Code::Unavailable,
                format!(
                    "the {} identity gave nothing within {CHECK_WITHIN:?}",
                    settings.kind()
                ),
            )],
        }
    })
}

/// How long `--validate` waits for an identity.
const CHECK_WITHIN: Duration = Duration::from_secs(30);

fn supervised<P: Provider>(provider: P, vet: Arc<dyn Vet>, clock: &Arc<dyn Clock>) -> Source {
    let kind = provider.kind();
    let (mut supervisor, health, refresher) = Supervisor::new(provider, vet, Arc::clone(clock));
    Source {
        kind,
        health,
        refresher,
        first: Box::pin(async move {
            let identity = supervisor.first().await?;
            Ok(Running {
                identity,
                supervising: Box::pin(supervisor.run()),
            })
        }),
    }
}
