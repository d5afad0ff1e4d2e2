//! The executor: dials an access point, proves itself, stays enrolled through rotation, and says how it is.

mod backoff;
mod dial;
mod host;
mod link;
mod probe;
mod rotation;
mod run;
mod status;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ah_identity_provider::{Clock, Explained, Health, ProviderKind};
use ah_tls::ClientConfigs;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use probe::{Probe, probe};
pub use status::{
    CertificateStatus, Heartbeats, Problem, Status, StatusSocket, read_status, serve_status,
};

use crate::proto;
use rotation::Opener;
use run::Run;

/// An access point's address as the operator gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// DNS name or IP address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// When to end by itself (EN-10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Once {
    /// At the first failure.
    Failed,
    /// At the first failure or the first welcome.
    Enrolled,
}

/// What an executor is made of.
pub struct Executor {
    /// Access points, tried in order (EN-1).
    pub remotes: Vec<Remote>,
    /// Label for people (EN-6).
    pub name: String,
    /// Labels (EN-8).
    pub labels: BTreeMap<String, String>,
    /// One deadline over DNS, TCP and TLS (EN-9).
    pub connect_timeout: Duration,
    /// When to end by itself (EN-10).
    pub once: Option<Once>,
    /// Who we are, as TLS presents it.
    pub configs: ClientConfigs,
    /// How our identity is doing.
    pub health: watch::Receiver<Health>,
    /// Where our identity comes from.
    pub provider: ProviderKind,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// What a person at the terminal is told as it happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A welcome arrived.
    Enrolled {
        /// Who the access point takes us for.
        executor_id: String,
        /// Where.
        access_point: String,
    },
    /// The enrollment moved to a connection with a new certificate.
    Rotated {
        /// Serial number of the new certificate.
        serial: String,
    },
    /// An attempt or a session failed.
    Failed {
        /// What and why.
        explained: Explained,
        /// When the next attempt is made.
        retry_in: Duration,
    },
    /// The access point asked us to come back later.
    Draining {
        /// When the next attempt is made.
        retry_in: Duration,
    },
}

impl Executor {
    /// The status before anything happened, and the sender that [`Executor::run`] keeps current.
    pub fn status(&self) -> watch::Sender<Status> {
        watch::Sender::new(Status::starting(
            &self.name,
            self.remotes.first(),
            self.provider,
        ))
    }

    /// Stays enrolled until `stop`, or until a failure that trying again cannot mend (EN-13).
    ///
    /// `tell` is called for each thing a person wants to read at once.
    pub async fn run(
        self,
        status: watch::Sender<Status>,
        tell: impl Fn(&Event) + Send,
        stop: CancellationToken,
    ) -> Result<(), Explained> {
        let opener = Opener {
            configs: self.configs.clone(),
            hello: self.hello(),
            timeout: self.connect_timeout,
            clock: Arc::clone(&self.clock),
        };
        let mut run = Run {
            executor: self,
            opener,
            status,
            tell,
            next_remote: 0,
            ever_enrolled: false,
        };
        let following = run.follow_health();
        tokio::select! {
            ended = run.keep_enrolled(&stop) => ended,
            () = following => Ok(()),
        }
    }

    fn hello(&self) -> proto::Hello {
        proto::Hello {
            protocol: crate::hello::PROTOCOL,
            name: self.name.clone(),
            instance_id: uuid::Uuid::new_v4().simple().to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            labels: self.labels.clone().into_iter().collect(),
            host: Some(host::facts()),
            provider: self.provider.to_string(),
            // Set as it is sent.
            clock_unix_ms: 0,
        }
    }
}
