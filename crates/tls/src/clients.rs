//! Clients that may show a certificate, judged by whoever serves them.

use std::fmt;
use std::sync::Arc;

use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DistinguishedName, Error};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::handshake::{chain, tls13_signatures};

/// For a TLS server whose clients may come without a certificate. The chain of one that has one, leaf first, is given to
/// `judge`, whose `false` ends the handshake.
pub fn optional_clients(
    judge: impl Fn(&[CertificateDer<'_>]) -> bool + Send + Sync + 'static,
) -> Arc<dyn ClientCertVerifier> {
    Arc::new(Clients {
        judge,
        mandatory: false,
    })
}

/// As [`optional_clients`], for a server whose clients have to have one.
pub fn required_clients(
    judge: impl Fn(&[CertificateDer<'_>]) -> bool + Send + Sync + 'static,
) -> Arc<dyn ClientCertVerifier> {
    Arc::new(Clients {
        judge,
        mandatory: true,
    })
}

struct Clients<F> {
    judge: F,
    mandatory: bool,
}

impl<F> ClientCertVerifier for Clients<F>
where
    F: Fn(&[CertificateDer<'_>]) -> bool + Send + Sync,
{
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hints: clients would hold back a certificate whose chain the names do not show.
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if (self.judge)(&chain(end_entity, intermediates)) {
            Ok(ClientCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    tls13_signatures!();
}

impl<F> fmt::Debug for Clients<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").finish_non_exhaustive()
    }
}
