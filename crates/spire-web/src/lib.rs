//! What SPIRE's programs show to clients that know them by the certificates of the web.
//!
//! - [`Shown`]: the certificate of the moment, which handshakes look up without waiting.
//! - [`FileCertificate`]: one that somebody else writes to files, and keeps new.
//! - [`Acme`]: certificates that an ACME server issues for names of this machine.
//! - [`server_config`]: TLS as such a server has it.

mod acme;
mod files;
mod shown;

pub use acme::{Acme, AcmeCertificates, AcmeHealth, AcmeSettings, PROTOCOL as ACME_PROTOCOL};
pub use files::FileCertificate;
pub use shown::{Shown, server_config};
