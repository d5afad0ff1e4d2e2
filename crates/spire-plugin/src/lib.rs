//! What `spire-server` and `spire-agent` read at their start.

pub mod agent;
pub mod catalog;
pub mod decode;
pub mod duration;
pub mod goflag;
mod gonum;
pub mod hcl;
pub mod server;
pub mod settings;
pub mod telemetry;
