//! Plugins that run as processes of their own (`plugin_cmd`), as upstream's: hashicorp/go-plugin's handshake, then gRPC
//! over a unix socket.
//!
//! ```text
//! PluginConfig ──► Program ──► Process ──► handshake line ──► Channel ──► Init ──► Configure
//!                  (checked)   (a group     (first line of                  │
//!                              of its own)   stdout)                        └─► Plugin: calls, each with a deadline
//! ```
//!
//! A [`Plugin`] is the same for as long as the daemon runs. The process behind it may change: one that ends is started
//! again, told its configuration, and what is called meanwhile fails with `Unavailable`. One that does not answer is asked
//! for its health, and ended when it does not answer that either. What a plugin was started for is ended with it, its
//! process group first.
//!
//! Adapters make of a plugin what the daemons know: [`node`], [`workload`], [`keys`], [`compose`], [`publish`], [`svids`] and
//! [`upstream`].

mod broker;
pub mod compose;
mod handshake;
mod instance;
pub mod keys;
pub mod launch;
mod lines;
pub mod node;
mod plugin;
mod process;
mod program;
pub mod publish;
mod services;
pub mod svids;
pub mod upstream;
pub mod workload;

pub use plugin::{Limits, Plugin, Settings};
pub use services::HostServices;

mod packages {
    #![expect(
        missing_docs,
        unreachable_pub,
        clippy::allow_attributes,
        clippy::enum_variant_names,
        reason = "generated; the .proto files say what there is to say"
    )]
    include!(concat!(env!("OUT_DIR"), "/packages.rs"));
}

/// What host services are implemented with.
pub mod host_service {
    pub use crate::packages::spire::hostservice::server::agentstore::v1 as agentstore;
    pub use crate::packages::spire::hostservice::server::identityprovider::v1 as identityprovider;
    pub use crate::packages::spire::plugin::types;
}

#[cfg(test)]
mod tests;
