//! Workload attestors.

use std::time::Duration;

use ah_spire_attest::peer::PeerInfo;
use ah_spire_attest::workload::{Named, PID_REFERENCE, Reference, WorkloadAttestor};
use ah_spire_attest::{AttestError, Selector};
use ah_spire_wire::Channel;
use ah_spire_wire::broker::WorkloadPidReference;
use prost::Message;
use prost_types::Any;
use spiffe::SpiffeId;
use tonic::{Code, Request, Status};

use crate::Plugin;
use crate::node::{attest_error, selectors};
use crate::packages::spire::plugin::agent::workloadattestor::v1 as wire;
use wire::workload_attestor_client::WorkloadAttestorClient;

/// What makes a plugin a workload attestor.
pub const SERVICE: &str = "spire.plugin.agent.workloadattestor.v1.WorkloadAttestor";

/// How a process id is told to those who know references alone.
fn pid_reference(pid: i32) -> Any {
    Any {
        type_url: PID_REFERENCE.to_owned(),
        value: WorkloadPidReference { pid }.encode_to_vec(),
    }
}

/// The header that tells a plugin which broker asks.
const CALLER: &str = "spire-agent-broker-caller-id";

/// A workload attestor in a process of its own.
#[derive(Clone)]
pub struct Workloads(Plugin);

impl Workloads {
    /// `plugin` has to be one of [`SERVICE`].
    pub fn new(plugin: Plugin) -> Self {
        Self(plugin)
    }

    async fn selector_values(&self, pid: i32) -> Result<Vec<String>, Status> {
        let by_pid = self.0.call(async |channel| {
            let mut client = WorkloadAttestorClient::with_origin(channel, Channel::origin());
            client.attest(wire::AttestRequest { pid }).await
        });
        match by_pid.await {
            Err(status) if status.code() == Code::Unimplemented => {}
            answered => return answered.map(|answer| answer.selector_values),
        }
        self.referenced(None, pid_reference(pid)).await
    }

    /// The selectors of what `reference` names, for `broker` where one asks.
    async fn referenced(
        &self,
        broker: Option<&SpiffeId>,
        reference: Any,
    ) -> Result<Vec<String>, Status> {
        let by_reference = self.0.call(async |channel| {
            let mut client = WorkloadAttestorClient::with_origin(channel, Channel::origin());
            let mut request = Request::new(wire::AttestReferenceRequest {
                reference: Some(reference),
            });
            let broker = broker.and_then(|broker| broker.to_string().parse().ok());
            if let Some(broker) = broker {
                request.metadata_mut().insert(CALLER, broker);
            }
            client.attest_reference(request).await
        });
        by_reference.await.map(|answer| answer.selector_values)
    }

    fn told(&self, values: Result<Vec<String>, Status>) -> Result<Vec<Selector>, AttestError> {
        let values = values.map_err(|status| {
            // Who asks puts the plugin's name before it.
            let message = self.0.without_prefix(status.message());
            attest_error(&Status::new(status.code(), message))
        })?;
        Ok(selectors(&self.0, values))
    }
}

impl WorkloadAttestor for Workloads {
    fn name(&self) -> &str {
        self.0.name()
    }

    /// More than the plugin's own [`Limits`](crate::Limits): a call that took too long has the plugin looked at.
    fn deadline(&self) -> Duration {
        Duration::from_secs(40)
    }

    async fn attest(&self, peer: &PeerInfo) -> Result<Vec<Selector>, AttestError> {
        self.told(self.selector_values(peer.pid()).await)
    }

    /// By reference first, as upstream: a plugin that knows brokers judges them then. One that knows process ids alone is
    /// given one.
    async fn attest_reference(
        &self,
        reference: &Reference<'_>,
    ) -> Result<Option<Vec<Selector>>, AttestError> {
        let named = match reference.workload {
            Named::Process(peer) => pid_reference(peer.pid()),
            Named::Other(named) => named.clone(),
        };
        match (
            self.referenced(Some(reference.broker), named).await,
            reference.workload,
        ) {
            (Err(status), workload) if status.code() == Code::Unimplemented => match workload {
                Named::Process(peer) => self.attest(peer).await.map(Some),
                Named::Other(_) => Ok(None),
            },
            (values, _) => self.told(values).map(Some),
        }
    }
}
