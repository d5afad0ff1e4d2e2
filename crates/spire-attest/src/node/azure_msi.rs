//! `azure_msi`: the node is a virtual machine of Azure with a managed identity, and the identity's token says so.
//!
//! The payload is the token that the metadata service gave the agent. The server verifies it with the keys of Azure's
//! tokens, lets in the tenants of its list, and asks Azure for the machine that has the identity.
//!
//! A token says nothing of the agent that shows it: the first one of an identity is believed, and an identity that has an
//! agent gets no second one (`can_reattest` is false) until it is evicted.
//!
//! Settings, texts and selectors are upstream's. Stricter: a token needs an end.

mod agent;
mod machine;
mod server;

pub use agent::{AzureMsiAgent, AzureMsiAgentConfig};
pub use server::{AzureMsiServer, AzureMsiServerConfig, MsiTenantConfig};

/// Who tokens are for, unless told otherwise: Azure Resource Manager.
const DEFAULT_RESOURCE: &str = "https://management.azure.com/";
