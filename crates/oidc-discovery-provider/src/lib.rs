//! The OIDC discovery provider as a library; the binary `oidc-discovery-provider` is its command line.
//!
//! ```text
//! server API, Workload API or file ──► Poller ──watch──► Documents ──► /.well-known/openid-configuration, /keys
//!                                                    └─► Health    ──► /live, /ready
//! ```
//!
//! The documents of a trust domain are public: who may read them is not asked. What a client has to be sure of is whom
//! it has them from, so that they are served over HTTPS, and for the names in `domains` alone.

pub mod cli;
mod documents;
mod domains;
mod health;
mod keys;
mod run;
mod served;
