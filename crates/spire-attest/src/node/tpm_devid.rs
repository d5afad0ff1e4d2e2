//! `tpm_devid`: the node has a TPM 2.0, with a key in it that a certificate of the operator's names (LDevID).
//!
//! The payload has the certificate, the TPM's own certificate of its endorsement key (EK), which its maker signed, an
//! attestation key (AK) that was made for this attestation, and the AK's statement that the LDevID key is beside it. The server
//! sends a nonce for the LDevID key to sign, and a secret that only the TPM with that EK gives out, if it has that AK
//! (TPM 2.0 Part 1, 24 "Credential Protection"). So the key is in the TPM that its maker vouches for.
//!
//! The TPM is spoken to in its own commands, a dozen of them, over its device or a Unix socket. They are our own few
//! lines: what there is in Rust is bound to TCG's stack in C.
//!
//! Where this is stricter than upstream: the key in the certificate has to be the one that the AK states; LDevID key, AK and EK
//! have to be what only a TPM makes, and never gives out; the AK has to state nothing but what the TPM holds.

mod activation;
mod agent;
mod commands;
mod device;
mod error;
mod messages;
mod residency;
mod server;
mod session;
mod structures;

pub use agent::{TpmDevIdAgent, TpmDevIdAgentConfig, TpmDevIdConversation};
pub use server::{TpmDevIdServer, TpmDevIdServerConfig};
