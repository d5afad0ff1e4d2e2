//! `sshpop`: the node has an SSH host certificate, and proves that it has its key.
//!
//! The payload is the certificate. The server takes it from a CA that it trusts and sends a nonce; the agent adds a nonce
//! of its own and signs the SHA-256 of both with the host key, as SSH signs. Messages are JSON, as SPIRE writes them.
//!
//! The format is a dozen fields that each have a length (PROTOCOL.certkeys of OpenSSH, RFC 4251 §5, RFC 8709), and is read
//! by our own few lines: the crates that read it bring hashes and ciphers of their own beside aws-lc-rs.
//!
//! Where this is stricter than upstream: a CA must not sign with SHA-1 (OpenSSH takes none since 8.2), a certificate must
//! not have critical options, and RSA keys have 2048 to 8192 bits. DSA keys, keys on security tokens (`sk-…`) and keys
//! with passphrases are not taken. A node's own proof may be of SHA-1, for that is how upstream's agents sign with RSA
//! keys: what is signed is a digest of which the server made half.

mod agent;
mod certificate;
mod host_key;
mod key;
mod messages;
mod server;
mod values;
mod wire;

pub use agent::{SshPopAgent, SshPopAgentConfig, SshPopConversation};
pub use server::{SshPopServer, SshPopServerConfig};
