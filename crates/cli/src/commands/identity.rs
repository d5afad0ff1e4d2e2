//! From identity settings to a supervised identity.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ah_identity_provider::dev::{DevConfig, DevProvider, DevRole};
use ah_identity_provider::exec::{ExecConfig, ExecProvider, ExecRole};
use ah_identity_provider::extra_roots::ExtraRoots;
use ah_identity_provider::files::{FilesConfig, FilesProvider};
use ah_identity_provider::spiffe::{SpiffeConfig, SpiffeProvider};
use ah_identity_provider::vault::{self, VaultProvider};
use ah_identity_provider::{
    Clock, Code, Explained, Health, IdentityWatch, Provider, ProviderKind, Refresher, Supervisor,
    SystemClock, Vet,
};
use ah_tls::{IdentityVet, Role};
use tokio::sync::watch;

use crate::settings::{IdentitySettings, SourceSettings};

/// A provider under its supervisor, before its first identity.
pub(crate) struct Source {
    pub(crate) kind: ProviderKind,
    pub(crate) health: watch::Receiver<Health>,
    pub(crate) refresher: Refresher,
    first: Pin<Box<dyn Future<Output = Result<Running, Explained>> + Send>>,
}

/// A supervised identity; `supervising` has to be polled, and ends only when the provider gave up.
pub(crate) struct Running {
    pub(crate) identity: IdentityWatch,
    pub(crate) supervising: Pin<Box<dyn Future<Output = Explained> + Send>>,
}

/// For whom an identity is, as far as providers ask.
pub(crate) struct Bearer {
    /// Which side of the handshake it is for.
    pub(crate) role: Role,
    /// What the dev certificate says.
    pub(crate) dev: DevRole,
    /// What a command is told, and what names a certificate that does not say otherwise.
    pub(crate) name: String,
    /// Whom an executor dials, as URLs. Empty for an access point.
    pub(crate) remote_servers: Vec<String>,
    /// AP-8
    pub(crate) strict_svid: bool,
}

impl Source {
    /// The source that `settings` name.
    pub(crate) fn new(settings: &IdentitySettings, bearer: Bearer, clock: &Arc<dyn Clock>) -> Self {
        let vet = Arc::new(IdentityVet::new(bearer.role, bearer.strict_svid));
        Self::vetted_by(settings, bearer, vet, clock)
    }

    /// The source that `settings` name, whose identities are judged by `vet`.
    pub(crate) fn vetted_by(
        settings: &IdentitySettings,
        bearer: Bearer,
        vet: Arc<dyn Vet>,
        clock: &Arc<dyn Clock>,
    ) -> Self {
        let roots = settings.extra_roots.as_deref();
        match &settings.source {
            SourceSettings::Dev(settings) => {
                if settings.allow_remote {
                    tracing::warn!(
                        "--dev-allow-remote: the dev identity may leave this machine, and whoever has its CA can be anybody; use files, spiffe, vault or exec in production"
                    );
                }
                let config = DevConfig::new(settings.state.clone(), bearer.dev);
                let provider = DevProvider::new(config, Arc::clone(clock));
                supervised(provider, roots, vet, clock)
            }
            SourceSettings::Files(settings) => {
                let provider = FilesProvider::new(FilesConfig {
                    cert: settings.cert.clone(),
                    key: settings.key.clone(),
                    ca: vec![settings.ca.clone()],
                    key_passphrase_file: settings.key_passphrase_file.clone(),
                    strict_key_permissions: settings.strict_key_permissions,
                });
                supervised(provider, roots, vet, clock)
            }
            SourceSettings::Exec(settings) => {
                let config = ExecConfig {
                    command: settings.command.clone(),
                    refresh_interval: settings.refresh_interval,
                    timeout: settings.timeout,
                    role: match bearer.role {
                        Role::AccessPoint => ExecRole::AccessPoint,
                        Role::Executor => ExecRole::Executor,
                    },
                    name: bearer.name,
                    remote_servers: bearer.remote_servers,
                    roots_elsewhere: roots.is_some(),
                };
                let provider = ExecProvider::new(config, Arc::clone(clock));
                supervised(provider, roots, vet, clock)
            }
            SourceSettings::Spiffe(settings) => {
                let provider = SpiffeProvider::new(SpiffeConfig {
                    endpoint: settings.endpoint.clone(),
                    choice: settings.choice.clone(),
                });
                supervised(provider, roots, vet, clock)
            }
            SourceSettings::Vault(settings) => {
                for (flag, variable) in &settings.exposed {
                    tracing::warn!(
                        "--{flag} is on the command line, where every user of this machine can read it (ps); set {variable}, or keep it in a file"
                    );
                }
                let provider = VaultProvider::new(settings.config.clone(), Arc::clone(clock));
                supervised(provider, roots, vet, clock)
            }
        }
    }

    /// Waits for the first good identity. What is likely to pass is told by `tell`, with the time until the next
    /// attempt, and waited for (EN-13).
    pub(crate) async fn first(
        mut self,
        tell: impl Fn(&Explained, Duration),
    ) -> Result<Running, Explained> {
        loop {
            tokio::select! {
                running = &mut self.first => return running,
                (failure, retry_in) = passing(&mut self.health) => tell(&failure, retry_in),
            }
        }
    }

    /// The first good identity, or the first failure whether or not it is likely to pass (EN-10, AP-18).
    pub(crate) async fn first_or_failure(mut self) -> Result<Running, Explained> {
        tokio::select! {
            running = &mut self.first => running,
            (failure, _) = passing(&mut self.health) => Err(failure),
        }
    }
}

/// The next failure after which the provider is asked again.
async fn passing(health: &mut watch::Receiver<Health>) -> (Explained, Duration) {
    while let Ok(()) = health.changed().await {
        let failure = health.borrow_and_update().last_error.clone();
        if let Some(failure) = failure
            && let Some(retry_in) = failure.retry_in
        {
            return (failure.explained, retry_in);
        }
    }
    // The supervisor is gone, which is told where it was awaited.
    std::future::pending().await
}

/// Gets one identity and vets it as at start-up, without starting anything. The dev provider is left alone:
/// it would make a CA. Of Vault is asked whether it is there and unsealed: to log in may spend a secret id.
pub(crate) fn check(settings: &IdentitySettings, bearer: Bearer) -> Vec<Explained> {
    if matches!(settings.source, SourceSettings::Dev(_)) {
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
        if let SourceSettings::Vault(vault) = &settings.source {
            let reached = vault::reach(&vault.config, &clock).await;
            return reached.err().into_iter().collect();
        }
        let first = Source::new(settings, bearer, &clock).first_or_failure();
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

/// `provider` under a supervisor, trusting what is in `roots` besides (AP-3, EN-3).
fn supervised<P: Provider>(
    provider: P,
    roots: Option<&Path>,
    vet: Arc<dyn Vet>,
    clock: &Arc<dyn Clock>,
) -> Source {
    match roots {
        Some(file) => supervise(ExtraRoots::new(provider, file.to_owned()), vet, clock),
        None => supervise(provider, vet, clock),
    }
}

fn supervise<P: Provider>(provider: P, vet: Arc<dyn Vet>, clock: &Arc<dyn Clock>) -> Source {
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
