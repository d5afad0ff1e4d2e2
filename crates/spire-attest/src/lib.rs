//! Who a node is, and who a workload is: the attestors of the SPIRE server and agent.
//!
//! A **node attestor** has two halves that talk through the `AttestAgent` stream of the server's Agent API.
//! [`node::AgentHalf`] opens with a payload and answers challenges; [`node::ServerHalf`] judges the payload, may
//! send challenges, and ends with an [`node::AttestedAgent`]: SPIFFE ID, selectors, and whether the agent may
//! attest again. Both halves of one attestor stand side by side in `node/<name>/{agent,server}.rs`:
//!
//! | name | payload | challenge | SPIFFE ID | attests again |
//! |---|---|---|---|---|
//! | `join_token` | the token | none | `/spire/agent/join_token/<token>` | no |
//! | `aws_iid` | an identity document | none | `/spire/agent/aws_iid/<account>/<region>/<instance>`, or by `agent_path_template` | no |
//! | `azure_imds` | a word that opens | let Azure sign a nonce | `/spire/agent/azure_imds/<tenant>/<subscription>/<machine>`, or by `agent_path_template` | no |
//! | `azure_msi` | an access token | none | `/spire/agent/azure_msi/<tenant>/<principal>`, or by `agent_path_template` | no |
//! | `gcp_iit` | an identity token | none | `/spire/agent/gcp_iit/<project>/<instance>`, or by `agent_path_template` | no |
//! | `http_challenge` | host, port, agent's name | serve a nonce by HTTP | `/spire/agent/http_challenge/<host>` | with `tofu = false` |
//! | `k8s_psat` | cluster and projected token | none | `/spire/agent/k8s_psat/<cluster>/<UID of the node>` | yes |
//! | `k8s_sat` | cluster and token | none | `/spire/agent/k8s_sat/<cluster>/<random UUID>` | no |
//! | `sshpop` | an SSH host certificate | sign a nonce | `/spire/agent/sshpop/<SHA-256 of the certificate>`, or by `agent_path_template` | yes |
//! | `tpm_devid` | a TPM's certificates, and what it says of a key | sign a nonce, open a secret | `/spire/agent/tpm_devid/<SHA-1 of the certificate>` | yes |
//! | `x509pop` | a certificate chain | sign a nonce | `/spire/agent/x509pop/<SHA-1 of the certificate>`, or by `agent_path_template` | yes |
//!
//! A **workload attestor** ([`workload::WorkloadAttestor`]) turns the process at the other end of a unix socket into
//! selectors. That process is a [`peer::PeerInfo`]: it holds a descriptor of the process itself, so that a process id
//! which was given to somebody else is never taken for the caller.
//!
//! | name | selectors |
//! |---|---|
//! | `docker` | `label`, `env`, `image_id`, `image_config_digest` of the container, in Docker or Podman |
//! | `k8s` | `ns`, `ns-label`, `sa`, `container-name`, `container-image`, `node-name`, `pod-label`, `pod-owner`, `pod-owner-uid`, `pod-uid`, `pod-name`, `pod-image`, `pod-image-count`, `pod-init-image`, `pod-init-image-count`; of other objects that brokers name `uid`, `resource`, `plural`, `group`, `version`, `apiVersion`, `kind`, `name`, `namespace`, `key`, `label`, `owner-key`, `owner-uid`, `controller-key`, `controller-uid` |
//! | `slurm` | `job_id` or `sluid`, and `step` |
//! | `systemd` | `id` and `fragment_path` of the unit |
//! | `unix` | `uid`, `user`, `gid`, `group`, `supplementary_gid`, `supplementary_group`; with `discover_workload_path` also `path` and `sha256` |
//!
//! `docker` and `k8s` have those of signatures, too, with [`workload::sigstore`]: `image-signature`,
//! `image-attestations`, and `image-signature-` with `subject`, `issuer`, `value`, `log-id`, `log-index`,
//! `integrated-time` and `signed-entry-timestamp`.
//!
//! The traits are shaped like the streams of SPIRE's plugin interface (`AidAttestation`, `Attest`), so that a plugin
//! in a process of its own can stand behind them. [`Builtin`] is the one list of what is built in.
//!
//! An [`AttestError`] is named by what its receiver does next. Its text is upstream's where clients know one, and
//! its hint says what an operator does.
//!
//! What needs a Linux kernel (process descriptors, procfs) is there on Linux alone.

mod builtin;
mod credentials;
mod error;
pub mod node;
#[cfg(target_os = "linux")]
pub mod peer;
mod remember;
pub mod socket;
#[cfg(target_os = "linux")]
pub mod workload;

pub use ah_spire_wire::model::Selector;
pub use builtin::{Builtin, PluginKind};
pub use error::AttestError;
