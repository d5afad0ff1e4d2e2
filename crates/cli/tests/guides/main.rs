//! The guides, line by line, and the input of the real world: PKI that people make with openssl, the faults
//! of the troubleshooting guide, a client in another language, each command with what it promises.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod commands;
mod errors;
mod exec;
mod interop;
mod kit;
mod moving;
mod pki;
mod spiffe;
