//! Key exchanges that a computer of the future does not undo.

use rustls::crypto::{CryptoProvider, aws_lc_rs};

/// `provider` with all its key exchanges; with `post_quantum_only` X25519MLKEM768 alone, which takes TLS 1.3.
#[must_use]
pub fn key_exchanges(mut provider: CryptoProvider, post_quantum_only: bool) -> CryptoProvider {
    if post_quantum_only {
        provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768];
    }
    provider
}
