//! What SPIRE's programs show to clients that know them by the certificates of the web.
//!
//! - [`Shown`]: the certificate of the moment, which handshakes look up without waiting.
//! - [`FileCertificate`]: one that somebody else writes to files, and keeps new.
//! - [`server_config`]: TLS as such a server has it.

mod files;
mod shown;

pub use files::FileCertificate;
pub use shown::{Shown, server_config};
