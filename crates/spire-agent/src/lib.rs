//! SPIRE agent as a library; the binary `spire-agent` is its command line.
//!
//! One half keeps the node's own identity and the cache of its workloads in step with the server; the other half
//! attests whoever calls the Workload API and serves what [`identities::Identities`] has for them.

mod admin;
pub mod agent;
pub mod attest;
pub mod bootstrap;
mod broker;
mod bundles;
mod cache;
pub mod cli;
pub mod data;
mod files;
pub mod health;
pub mod identities;
pub mod keys;
mod metrics;
mod own;
mod rotation;
pub mod run;
pub mod server_client;
mod svid_store;
mod warm;
mod wire;
pub mod workload;
