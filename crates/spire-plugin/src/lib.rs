//! What `spire-server`, `spire-agent` and `oidc-discovery-provider` read at their start, as upstream's read it.
//!
//! ```text
//! arguments ──► goflag ──┐
//! file ──► expand ──► hcl ──► decode ──► rules and defaults ──► AgentConfig, ServerConfig
//!                                              └─► PluginConfig ──► decode, by the plugin itself
//! ```
//!
//! A daemon builds a [`goflag::Cli`] from its commands, takes [`agent::run_flags`] or [`server::run_flags`] for `run`
//! and `validate`, and gets everything else from [`AgentConfig::load`](agent::AgentConfig::load) or
//! [`ServerConfig::load`](server::ServerConfig::load): plain values that were checked, with warnings to be logged.
//! Nothing below reads the file again but [`PluginData`](catalog::PluginData). A plugin declares what it takes with
//! [`config_block!`].
//!
//! [`oidc`] is the same for `oidc-discovery-provider`, which has no plugins and no commands.
//!
//! Keys of features that a daemon lacks are carried all the same; it decides what to refuse.
//!
//! ```
//! use ah_spire_plugin::agent::{AgentConfig, run_flags};
//! use ah_spire_plugin::catalog::PluginType;
//!
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().join("agent.conf").display().to_string();
//! # std::fs::write(&path, r#"agent { server_address = "spire-server" server_port = "8081" trust_domain = "example.org"
//! #     insecure_bootstrap = true }
//! #     plugins { NodeAttestor "x509_pop" {} KeyManager "memory" {} WorkloadAttestor "unix" {} }"#)?;
//! let flags = run_flags("run").parse(&["-config".to_owned(), path])?;
//! let config = AgentConfig::load(&flags, &|name| std::env::var(name).ok())?;
//! assert_eq!(config.server_port, 8081);
//! let attestor = config.plugins.iter().find(|plugin| plugin.plugin_type == PluginType::NodeAttestor);
//! assert_eq!(attestor.map(|plugin| plugin.name.as_str()), Some("x509pop"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Where this differs from upstream
//!
//! Everything that upstream accepts and that has one meaning is read to the same values. On purpose otherwise:
//!
//! - JSON has to be valid, trailing commas aside. Upstream passes over the rest of a file after the first fault, drops
//!   truth values in lists, and refuses `\/` and surrogate pairs.
//! - A `plugins`, `plugin_data` or profile block given twice is refused; upstream drops the second in silence.
//! - A plain block where a list of blocks is wanted is one element; upstream makes one of each of its attributes.
//! - In JSON the inner keys of the first object are not taken for unknown ones.
//! - `<<-EOF` may end with an anchor that is not indented, and a heredoc with the end of the text.
//! - Negative durations and trust domains of more than 255 characters are refused.
//! - `file_sync_interval` has the default that upstream documents; in its code an absent one does not parse.
//! - Keys that a plugin block does not have are told as warnings.

pub mod agent;
pub mod catalog;
mod check;
pub mod decode;
pub mod duration;
mod error;
pub mod expand;
pub mod goflag;
mod gonum;
pub mod hcl;
pub mod oidc;
pub mod server;
pub mod settings;
mod source;
pub mod telemetry;

pub use self::error::ConfigError;
pub use self::source::Environment;
