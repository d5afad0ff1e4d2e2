//! Workload attestors.

use std::time::Duration;

use ah_spire_attest::peer::PeerInfo;
use ah_spire_attest::workload::WorkloadAttestor;
use ah_spire_attest::{AttestError, Selector};
use ah_spire_wire::Channel;
use prost::Message;
use prost_types::Any;
use tonic::{Code, Status};

use crate::Plugin;
use crate::node::{attest_error, selectors};
use crate::packages::spiffe::broker::WorkloadPidReference;
use crate::packages::spire::plugin::agent::workloadattestor::v1 as wire;
use wire::workload_attestor_client::WorkloadAttestorClient;

/// What makes a plugin a workload attestor.
pub const SERVICE: &str = "spire.plugin.agent.workloadattestor.v1.WorkloadAttestor";

/// How a process id is told to those who know references alone.
const PID_REFERENCE: &str = "type.googleapis.com/spiffe.broker.WorkloadPIDReference";

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
        let reference = Any {
            type_url: PID_REFERENCE.to_owned(),
            value: WorkloadPidReference { pid }.encode_to_vec(),
        };
        let by_reference = self.0.call(async |channel| {
            let mut client = WorkloadAttestorClient::with_origin(channel, Channel::origin());
            let reference = Some(reference);
            client
                .attest_reference(wire::AttestReferenceRequest { reference })
                .await
        });
        by_reference.await.map(|answer| answer.selector_values)
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
        let values = self.selector_values(peer.pid()).await;
        let values = values.map_err(|status| {
            // Who asks puts the plugin's name before it.
            let message = self.0.without_prefix(status.message());
            attest_error(&Status::new(status.code(), message))
        })?;
        Ok(selectors(&self.0, values))
    }
}
