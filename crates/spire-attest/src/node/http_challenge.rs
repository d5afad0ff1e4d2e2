//! `http_challenge`: the node is whoever answers at its host name.
//!
//! The payload names a host, a port and the agent. The server sends a nonce, and fetches it again by HTTP from
//! `http://<host>:<port>/.well-known/spiffe/nodeattestor/http_challenge/<agent>/challenge`, where the agent serves it
//! until the attestation is over. What the agent answers to the challenge itself says nothing.
//!
//! Ports from 1024 on are free to everybody on a host. Where they are allowed, the first agent of a host is believed
//! and a second one is refused until the first is evicted; `tofu = false` takes a privileged port.
//!
//! Settings, texts and selectors are upstream's. Stricter: a host name has letters, digits, `.`, `-` and `_` alone.

mod agent;
mod server;

pub use agent::{HttpChallengeAgent, HttpChallengeAgentConfig, HttpChallengeConversation};
pub use server::{HttpChallengeServer, HttpChallengeServerConfig};

use serde::{Deserialize, Serialize};

/// The payload.
#[derive(Default, Serialize, Deserialize)]
struct AttestationData {
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    agentname: String,
    #[serde(default)]
    port: i64,
}

#[derive(Serialize, Deserialize)]
struct Nonce {
    #[serde(default)]
    nonce: String,
}

fn path(agent_name: &str) -> String {
    format!("/.well-known/spiffe/nodeattestor/http_challenge/{agent_name}/challenge")
}
