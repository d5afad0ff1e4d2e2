//! One process of a plugin, from its start to its end.

use std::io;
use std::time::Duration;

use ah_identity_provider::{Code, Explained};
use ah_spire_wire::Channel;
use ah_spire_wire::health::HealthCheckRequest;
use ah_spire_wire::health::health_client::HealthClient;
use tempfile::TempDir;
use tokio::net::{TcpStream, UnixStream};
use tokio::process::{ChildStderr, ChildStdout};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code as Status, Response};

use crate::broker::Broker;
use crate::handshake::{Address, parse};
use crate::lines::{Lines, Tail, Writer, drain, follow, printed};
use crate::packages::plugin::Empty;
use crate::packages::plugin::grpc_controller_client::GrpcControllerClient;
use crate::packages::plugin::grpc_stdio_client::GrpcStdioClient;
use crate::packages::spire::service::common::config::v1 as config;
use crate::packages::spire::service::private::init::v1 as init;
use crate::plugin::{Settings, event};
use crate::process::Process;
use crate::program::Program;
use config::config_client::ConfigClient;
use init::init_client::InitClient;

/// The service that takes a plugin's configuration.
const CONFIG: &str = "spire.service.common.config.v1.Config";

/// What go-plugin's health service is asked after.
const HEALTH: &str = "plugin";

/// How long a plugin that was told to end may take, before it is killed. Upstream waits as long.
const GRACE: Duration = Duration::from_secs(2);

/// After its end, what a plugin wrote last is waited for this long.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A plugin that runs. Dropping it kills it.
pub(crate) struct Instance {
    process: Process,
    channel: Channel,
    configurable: bool,
    _broker: Broker,
    _followers: [AbortOnDropHandle<()>; 3],
    _sockets: TempDir,
}

impl Instance {
    /// Starts it and makes sure that it is what `settings` say. It is not configured yet.
    pub(crate) async fn start(settings: &Settings, program: &Program) -> Result<Self, Explained> {
        let limit = settings.limits.start;
        let mut told = Tail::default();
        let started = timeout(limit, start(settings, program, &mut told)).await;
        let started = started.unwrap_or_else(|_| {
            Err(
                failed(format!("it did not say within {limit:?} that it serves"))
                    .hint("look into the log at level debug for what the plugin does at its start"),
            )
        });
        started.map_err(|mut error| {
            // What it said in plain text, such as that it is a plugin of another type.
            let last = told.lines().into_iter();
            error
                .causes
                .extend(last.map(|line| format!("it wrote: {line}")));
            error
        })
    }

    pub(crate) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Whether it takes a configuration at all.
    pub(crate) fn is_configurable(&self) -> bool {
        self.configurable
    }

    pub(crate) async fn configure(
        &self,
        domain: &str,
        text: &str,
        limit: Duration,
    ) -> Result<(), Explained> {
        let request = config::ConfigureRequest {
            core_configuration: core(domain),
            hcl_configuration: text.to_owned(),
        };
        let mut client = ConfigClient::with_origin(self.channel.clone(), Channel::origin());
        within(limit, client.configure(request))
            .await
            .map(|_| ())
            .map_err(|status| {
                Explained::new(Code::Usage, "the plugin does not take its configuration")
                    .cause(status.message())
                    .hint("compare its plugin_data with what the plugin's own documentation says")
            })
    }

    /// What the plugin has to say about a configuration. A plugin that cannot judge one says nothing.
    pub(crate) async fn validate(&self, domain: &str, text: &str, limit: Duration) -> Vec<String> {
        let request = config::ValidateRequest {
            core_configuration: core(domain),
            hcl_configuration: text.to_owned(),
        };
        let mut client = ConfigClient::with_origin(self.channel.clone(), Channel::origin());
        match within(limit, client.validate(request)).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                if answer.notes.is_empty() && !answer.valid {
                    return vec!["the plugin says no more than that it is not valid".to_owned()];
                }
                answer.notes
            }
            Err(status) if status.code() == Status::Unimplemented => Vec::new(),
            Err(status) => vec![status.message().to_owned()],
        }
    }

    /// Whether it answers. A plugin without go-plugin's health service does.
    pub(crate) async fn is_well(&self, limit: Duration) -> bool {
        let mut client = HealthClient::with_origin(self.channel.clone(), Channel::origin());
        let asked = client.check(HealthCheckRequest {
            service: HEALTH.to_owned(),
        });
        timeout(limit, asked).await.is_ok() && !self.channel.is_closed()
    }

    /// Resolves with the reason when it has ended.
    pub(crate) async fn ended(&self) -> String {
        self.process.ended().await
    }

    pub(crate) fn kill(&self) {
        self.process.kill();
    }

    /// Ends it as upstream does: it is told first, and killed when it does not go.
    pub(crate) async fn stop(&self, settings: &Settings) {
        let (config, limit) = (&settings.config, settings.limits.stop);
        let mut client = InitClient::with_origin(self.channel.clone(), Channel::origin());
        match within(limit, client.deinit(init::DeinitRequest {})).await {
            Ok(_) => event!(debug, config, "Plugin deinitialized"),
            Err(status) if status.code() == Status::Unimplemented => {}
            Err(status) => event!(
                error,
                config,
                error = status.message(),
                "Failed to deinitialize plugin"
            ),
        }
        let mut client = GrpcControllerClient::with_origin(self.channel.clone(), Channel::origin());
        // A plugin may end before it answers.
        let _ = timeout(GRACE, client.shutdown(Empty {})).await;
        if timeout(GRACE, self.process.ended()).await.is_err() {
            event!(warn, config, "plugin failed to exit gracefully");
            self.kill();
            self.ended().await;
        }
    }
}

async fn start(
    settings: &Settings,
    program: &Program,
    told: &mut Tail,
) -> Result<Instance, Explained> {
    let kind = settings.config.plugin_type.as_str();
    let sockets = tempfile::Builder::new()
        .prefix("spire-plugin-")
        .tempdir()
        .map_err(|error| failed(format!("no folder for its sockets can be made: {error}")))?;
    let command = program.command(settings.launcher.as_deref(), kind, sockets.path());
    let started = match command {
        Ok(command) => Process::start(command).await,
        Err(error) => Err(error),
    };
    let (process, stdout, stderr) =
        started.map_err(|error| failed(format!("it cannot be started: {error}")))?;
    let unread = |error: io::Error| failed(format!("it cannot be listened to: {error}"));
    let stdout = ChildStdout::from_std(stdout).map_err(unread)?;
    let stderr = ChildStderr::from_std(stderr).map_err(unread)?;
    let name = settings.config.name.clone();
    let writer = Writer {
        subsystem: format!("{name}.{}", program.file_name()),
        name,
        kind,
    };
    let mut listening = tokio::spawn(follow(stderr, writer.clone(), told.clone()));

    let mut lines = Lines::of(stdout);
    let Some(first) = lines.next().await.map_err(unread)? else {
        // The pipe may be closed by a process that goes on.
        let how = match timeout(GRACE, process.ended()).await {
            Ok(how) => format!("it ended before it said where it listens: {how}"),
            Err(_) => "it closed its stdout before it said where it listens".to_owned(),
        };
        let _ = timeout(LAST_WORDS, &mut listening).await;
        listening.abort();
        return Err(failed(how).hint(format!(
            "plugin_cmd has to be a plugin of type {kind}, built for this machine"
        )));
    };
    let listening = AbortOnDropHandle::new(listening);
    let address = parse(&first)?;
    let draining = AbortOnDropHandle::new(tokio::spawn(drain(lines, writer.clone())));
    let channel = connect(&address).await.map_err(|error| {
        failed(format!(
            "it does not serve where it says ({first}): {error}"
        ))
        .hint("the plugin has to listen before it prints its handshake")
    })?;
    let broker = Broker::start(&channel, sockets.path(), settings.services.routes.clone());
    let broker = broker.map_err(|error| {
        failed(format!("the host services cannot be offered: {error}"))
            .hint("let TMPDIR be a folder with a short name that the daemon may write to")
    })?;
    let printing = AbortOnDropHandle::new(tokio::spawn(output(channel.clone(), writer)));

    let mut client = InitClient::with_origin(channel.clone(), Channel::origin());
    let names = settings.services.names.iter();
    let answer = client.init(init::InitRequest {
        host_service_names: names.map(|name| (*name).to_owned()).collect(),
    });
    let answer = answer.await.map_err(|status| {
        failed(format!("it does not initialise: {}", status.message()))
            .hint("build the plugin with SPIRE's plugin SDK of version 1")
    })?;
    let mut names = answer.into_inner().plugin_service_names;
    let service = settings.service;
    if !names.iter().any(|name| name == service) {
        return Err(failed(format!(
            "no supported plugin interface found in: {names:?}; {kind} needs {service:?}"
        ))
        .hint(format!(
            "plugin_cmd has to be a plugin of type {kind} for this program"
        )));
    }
    let configurable = names.iter().any(|name| name == CONFIG);
    names.retain(|name| name != service && name != CONFIG);
    for name in names {
        event!(
            warn,
            settings.config,
            plugin_service = name,
            "Unsupported plugin service found"
        );
    }
    Ok(Instance {
        process,
        channel,
        configurable,
        _broker: broker,
        _followers: [listening, draining, printing],
        _sockets: sockets,
    })
}

async fn connect(address: &Address) -> io::Result<Channel> {
    match address {
        Address::Unix(path) => Channel::over(UnixStream::connect(path).await?).await,
        Address::Tcp(address) => {
            tracing::warn!(%address, "the plugin listens on TCP: every process of this machine can call it");
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Channel::over(stream).await
        }
    }
}

/// What the plugin prints once it serves. One that has no such stream writes to its pipes still.
async fn output(channel: Channel, writer: Writer) {
    let mut client = GrpcStdioClient::with_origin(channel, Channel::origin());
    let Ok(stream) = client.stream_stdio(()).await.map(Response::into_inner) else {
        return;
    };
    let mut stream = stream;
    while let Ok(Some(chunk)) = stream.message().await {
        printed(&writer, &chunk.data);
    }
}

fn core(domain: &str) -> Option<config::CoreConfiguration> {
    Some(config::CoreConfiguration {
        trust_domain: domain.to_owned(),
    })
}

/// An answer in time.
pub(crate) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, tonic::Status>>,
) -> Result<T, tonic::Status> {
    timeout(limit, call).await.unwrap_or_else(|_| {
        Err(tonic::Status::deadline_exceeded(format!(
            "the plugin did not answer within {limit:?}"
        )))
    })
}

fn failed(cause: String) -> Explained {
    Explained::new(Code::Other, "the plugin cannot be loaded").cause(cause)
}
