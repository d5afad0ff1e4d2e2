//! From an identity to TLS: configurations built once per generation, verification, peer policy, accept, connect.

mod peer;

pub use peer::{PeerName, Refusal};
