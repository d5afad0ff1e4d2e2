//! `azure_imds`: the node is a virtual machine of Azure, and a document that Azure signed for this occasion says so.
//!
//! The server sends a nonce; the agent lets the metadata service of its machine attest it, and sends that document with
//! the tenant's domain and, where there is one, the name of the scale set. The server verifies the document with the
//! certificates of Azure's metadata service, and asks Azure for the machine in the tenant and subscription.
//!
//! A document says nothing of the agent that shows it: the first one of a machine is believed, and a machine that has an
//! agent gets no second one (`can_reattest` is false) until it is evicted.
//!
//! Settings, texts and selectors are upstream's.

mod agent;
mod document;
mod machine;
mod server;

pub use agent::{AzureImdsAgent, AzureImdsAgentConfig, AzureImdsConversation};
pub use server::{AzureImdsServer, AzureImdsServerConfig, ImdsTenantConfig};

use serde::{Deserialize, Serialize};

/// The answer to the nonce.
#[derive(Deserialize, Serialize)]
struct Shown {
    document: Attested,
    metadata: Hints,
}

/// A document as the metadata service gives it.
#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct Attested {
    encoding: String,
    signature: String,
}

/// Where the server finds the machine. Nobody vouches for it.
#[derive(Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
struct Hints {
    agent_domain: String,
    vmss_name: Option<String>,
}
