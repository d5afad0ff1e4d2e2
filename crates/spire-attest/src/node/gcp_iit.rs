//! `gcp_iit`: the node is an instance of Google Compute Engine, and its identity token says so.
//!
//! The payload is the token that the metadata server gave the agent, for the audience `spire-gcp-node-attestor`. The
//! server verifies it with Google's keys and lets in the projects of its allow list. With `use_instance_metadata` it
//! asks the Compute Engine API for tags, labels and metadata of the instance as well.
//!
//! A token says nothing of the agent that shows it: the first one of an instance is believed, and an instance that has
//! an agent gets no second one (`can_reattest` is false) until it is evicted.
//!
//! Settings, texts and selectors are upstream's. Stricter: a token needs an end.

mod account;
mod agent;
mod compute;
mod keys;
mod server;

pub use account::{AccessToken, Account, refusal};
pub use agent::{GcpIitAgent, GcpIitAgentConfig};
pub use server::{GcpIitServer, GcpIitServerConfig};

/// Where Google's services are. They are others in tests alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Google {
    /// The certificates that identity tokens are signed with.
    pub certificates: String,
    /// The Compute Engine API, before `/compute/v1/…`.
    pub compute: String,
    /// The metadata server, before `/computeMetadata/v1/…`.
    pub metadata: String,
}

impl Default for Google {
    fn default() -> Self {
        Self {
            certificates: "https://www.googleapis.com/oauth2/v1/certs".into(),
            compute: "https://compute.googleapis.com".into(),
            metadata: "http://metadata.google.internal".into(),
        }
    }
}

/// Who identity tokens are for.
const AUDIENCE: &str = "spire-gcp-node-attestor";
