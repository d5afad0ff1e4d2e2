//! A plugin for as long as the daemon runs, whichever process it is at a time.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ah_identity_provider::{Backoff, Code, Explained};
use ah_spire_plugin::catalog::{PluginConfig, PluginData};
use ah_spire_wire::Channel;
use aws_lc_rs::digest::{Digest, SHA512, digest};
use spiffe::TrustDomain;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Response, Status};
use zeroize::Zeroizing;

use crate::HostServices;
use crate::instance::{Instance, within};
use crate::program::Program;

/// A line of the log about the plugin of a configuration.
macro_rules! event {
    ($level:ident, $config:expr, $($rest:tt)+) => {
        tracing::$level!(
            plugin_name = $config.name,
            plugin_type = $config.plugin_type.as_str(),
            external = true,
            $($rest)+
        )
    };
}
pub(crate) use event;

/// Waits between the starts of a plugin that ends.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LAST_WAIT: Duration = Duration::from_secs(60);

/// A plugin that ran this long is waited for as if it had never ended before.
const STEADY: Duration = Duration::from_secs(5 * 60);

/// How long a plugin may take for what.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From its start to the answer of `Init`.
    pub start: Duration,
    /// `Configure` and `Validate`.
    pub configure: Duration,
    /// Any other call.
    pub call: Duration,
    /// The answer to whether it is well, after a call that took too long.
    pub health: Duration,
    /// `Deinit`
    pub stop: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            start: Duration::from_secs(60),
            configure: Duration::from_secs(60),
            call: Duration::from_secs(30),
            health: Duration::from_secs(5),
            stop: Duration::from_secs(10),
        }
    }
}

/// Which plugin, and what it is told.
#[derive(Clone)]
pub struct Settings {
    /// Its block in the configuration, which has a `plugin_cmd`.
    pub config: PluginConfig,
    /// The gRPC service that makes it a plugin of its type, such as [`crate::workload::SERVICE`].
    pub service: &'static str,
    /// `trust_domain`
    pub trust_domain: TrustDomain,
    /// What it may call.
    pub services: HostServices,
    /// A program whose `main` begins with [`crate::launch::dispatch`], which ties the plugin to this process. Without one
    /// a plugin outlives a daemon that is killed.
    pub launcher: Option<PathBuf>,
    /// Its patience.
    pub limits: Limits,
}

/// A plugin in a process of its own. Clones are one. It runs until [`Self::stop`]; with the runtime it is killed.
#[derive(Clone)]
pub struct Plugin(Arc<Shared>);

struct Shared {
    settings: Settings,
    program: Program,
    state: watch::Sender<State>,
    /// What it was configured with last, so that a change is seen. Held while it is configured.
    told: tokio::sync::Mutex<Option<Digest>>,
    stop: CancellationToken,
    tasks: TaskTracker,
    asked: Mutex<Option<Instant>>,
}

#[derive(Clone)]
enum State {
    Up(Arc<Instance>),
    /// Why.
    Down(String),
}

impl Plugin {
    /// Starts and configures it.
    ///
    /// # Errors
    /// They name the plugin, what is wrong with it, and the remedy.
    pub async fn start(settings: Settings) -> Result<Self, Explained> {
        let config = settings.config.clone();
        let named = |error| named(&config, error);
        let program = Program::open(&settings.config).map_err(named)?;
        if !program.is_checked() {
            event!(warn, config, "Plugin checksum not configured");
        }
        let instance = Instance::start(&settings, &program).await.map_err(named)?;
        let shared = Arc::new(Shared {
            settings,
            program,
            state: watch::Sender::new(State::Down("it is not configured yet".to_owned())),
            told: tokio::sync::Mutex::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            asked: Mutex::default(),
        });
        if let Err(error) = shared.configure(&instance).await {
            instance.stop(&shared.settings).await;
            return Err(named(error));
        }
        event!(info, config, "Plugin loaded");
        let instance = Arc::new(instance);
        shared.state.send_replace(State::Up(instance.clone()));
        let supervision = shared.clone().supervise(instance);
        shared.tasks.spawn(supervision);
        Ok(Self(shared))
    }

    /// Starts it only to ask what it thinks of its configuration: notes for people, none when all is well.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn validate(settings: Settings) -> Result<Vec<String>, Explained> {
        let named = |error| named(&settings.config, error);
        let program = Program::open(&settings.config).map_err(named)?;
        let instance = Instance::start(&settings, &program).await.map_err(named)?;
        let notes = match settings.text(&instance) {
            Ok(None) => Vec::new(),
            Ok(Some(text)) => {
                let domain = settings.trust_domain.as_str();
                let limit = settings.limits.configure;
                instance.validate(domain, &text, limit).await
            }
            Err(error) => error.causes,
        };
        instance.stop(&settings).await;
        Ok(notes)
    }

    /// The name in the configuration.
    pub fn name(&self) -> &str {
        &self.0.settings.config.name
    }

    /// Its patience.
    pub fn limits(&self) -> &Limits {
        &self.0.settings.limits
    }

    /// How upstream begins what plugins say.
    fn prefix(&self) -> String {
        let config = &self.0.settings.config;
        let kind = config.plugin_type.as_str().to_ascii_lowercase();
        format!("{kind}({}): ", config.name)
    }

    /// `type(name): message`
    pub(crate) fn prefixed(&self, message: &str) -> String {
        let prefix = self.prefix();
        if message.starts_with(&prefix) {
            return message.to_owned();
        }
        let own = format!("{}: ", self.name());
        format!("{prefix}{}", message.strip_prefix(&own).unwrap_or(message))
    }

    /// What [`Self::prefixed`] was made of.
    pub(crate) fn without_prefix<'a>(&self, message: &'a str) -> &'a str {
        message.strip_prefix(&self.prefix()).unwrap_or(message)
    }

    /// `status` as it is told.
    pub(crate) fn told(&self, status: &Status) -> Status {
        let message = self.prefixed(status.message());
        Status::with_details(status.code(), message, status.details().to_vec().into())
    }

    pub(crate) fn failed(&self, why: &str) -> Status {
        Status::internal(self.prefixed(why))
    }

    /// The connection of now.
    pub(crate) fn channel(&self) -> Result<Channel, Status> {
        match &*self.0.state.borrow() {
            State::Up(instance) => Ok(instance.channel().clone()),
            State::Down(why) => Err(Status::unavailable(
                self.prefixed(&format!("the plugin does not run: {why}")),
            )),
        }
    }

    /// The answer to a call, or why there is none, with the plugin's name.
    pub(crate) async fn call<T, F>(&self, call: impl FnOnce(Channel) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let channel = self.channel()?;
        self.wait(async { Ok(call(channel).await?.into_inner()) })
            .await
    }

    /// A part of a call that may not take longer than the whole of another.
    pub(crate) async fn wait<T>(
        &self,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let answer = within(self.0.settings.limits.call, answer).await;
        answer.map_err(|status| {
            match status.code() {
                tonic::Code::DeadlineExceeded => self.look_after(),
                tonic::Code::Ok => {}
                _ => self.0.end_if_closed(),
            }
            self.told(&status)
        })
    }

    /// Asks a plugin that did not answer whether it is well, and ends it when it does not answer that either.
    fn look_after(&self) {
        let shared = self.0.clone();
        let State::Up(instance) = shared.state.borrow().clone() else {
            return;
        };
        {
            // One look at a time is enough.
            let mut asked = shared.asked.lock().unwrap_or_else(PoisonError::into_inner);
            let limit = shared.settings.limits.health;
            if asked.is_some_and(|at| at.elapsed() < limit) {
                return;
            }
            *asked = Some(Instant::now());
        }
        let look = async move {
            let limit = shared.settings.limits.health;
            if !instance.is_well(limit).await {
                let config = &shared.settings.config;
                event!(error, config, "The plugin does not answer, and is ended");
                instance.kill();
            }
        };
        self.0.tasks.spawn(look);
    }

    /// Reads a `plugin_data_file` again, and tells the plugin what changed. Whether it did.
    ///
    /// # Errors
    /// The plugin does not take it, or does not run now. It goes on as it was.
    pub async fn reconfigure(&self) -> Result<bool, Explained> {
        let shared = &self.0;
        if !shared.settings.is_dynamic() {
            return Ok(false);
        }
        let State::Up(instance) = shared.state.borrow().clone() else {
            // It will be told when it is there again.
            return Ok(false);
        };
        let told = shared.configure(&instance).await;
        told.map_err(|error| named(&shared.settings.config, error))
    }

    /// Whether [`Self::reconfigure`] can have something to do.
    pub fn is_dynamic(&self) -> bool {
        self.0.settings.is_dynamic()
    }

    /// Ends it.
    pub async fn stop(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

impl Settings {
    fn is_dynamic(&self) -> bool {
        matches!(self.config.data, PluginData::File(_))
    }

    /// What it is to be told; `None` for a plugin that is told nothing.
    fn text(&self, instance: &Instance) -> Result<Option<Zeroizing<String>>, Explained> {
        if !instance.is_configurable() {
            if matches!(self.config.data, PluginData::None) {
                return Ok(None);
            }
            return Err(
                Explained::new(Code::Usage, "the plugin cannot be configured")
                    .cause("no supported configuration interface found")
                    .hint("remove its plugin_data or plugin_data_file"),
            );
        }
        let text = self.config.data.text().map_err(|error| {
            Explained::new(Code::Usage, "the plugin's configuration cannot be read").cause(error)
        })?;
        Ok(Some(text))
    }
}

/// `error` with the plugin's name in its first line.
fn named(config: &PluginConfig, mut error: Explained) -> Explained {
    error.text = format!("{} {:?}: {}", config.plugin_type, config.name, error.text);
    error
}

impl Shared {
    /// Tells `instance` its configuration if that is new to it. Whether it was.
    async fn configure(&self, instance: &Instance) -> Result<bool, Explained> {
        let mut told = self.told.lock().await;
        let Some(text) = self.settings.text(instance)? else {
            return Ok(false);
        };
        let now = digest(&SHA512, text.as_bytes());
        if told.is_some_and(|before| before.as_ref() == now.as_ref()) {
            return Ok(false);
        }
        let domain = self.settings.trust_domain.as_str();
        let limit = self.settings.limits.configure;
        instance.configure(domain, &text, limit).await?;
        *told = Some(now);
        Ok(true)
    }

    /// A plugin that closed its connection is of no use any more.
    fn end_if_closed(&self) {
        if let State::Up(instance) = &*self.state.borrow()
            && instance.channel().is_closed()
        {
            instance.kill();
        }
    }

    async fn supervise(self: Arc<Self>, mut instance: Arc<Instance>) {
        let config = &self.settings.config;
        let mut backoff = Backoff::new(FIRST_WAIT, LAST_WAIT);
        loop {
            let since = Instant::now();
            let how = tokio::select! {
                how = instance.ended() => how,
                () = self.stop.cancelled() => {
                    let why = "it was ended".to_owned();
                    self.state.send_replace(State::Down(why));
                    event!(debug, config, "Unloading plugin");
                    instance.stop(&self.settings).await;
                    event!(info, config, "Plugin unloaded");
                    return;
                }
            };
            drop(instance);
            if since.elapsed() >= STEADY {
                backoff.reset();
            }
            let mut why = format!("its process ended ({how})");
            instance = loop {
                let wait = backoff.next_wait();
                event!(
                    error,
                    config,
                    reason = why,
                    again_in = ?wait,
                    "The plugin does not run, and will be started again"
                );
                self.state.send_replace(State::Down(why));
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = self.stop.cancelled() => return,
                }
                let started = tokio::select! {
                    started = self.start_again() => started,
                    () = self.stop.cancelled() => return,
                };
                match started {
                    Ok(instance) => break Arc::new(instance),
                    Err(error) => {
                        let mut parts = vec![error.text];
                        parts.extend(error.causes);
                        why = parts.join(": ");
                    }
                }
            };
            self.state.send_replace(State::Up(instance.clone()));
            event!(info, config, "The plugin was started again");
        }
    }

    async fn start_again(&self) -> Result<Instance, Explained> {
        let instance = Instance::start(&self.settings, &self.program).await?;
        *self.told.lock().await = None;
        self.configure(&instance).await?;
        Ok(instance)
    }
}
