//! What rustls calls back during a handshake. No lock, no I/O, and the peer's certificate is read once.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ah_identity_provider::Clock;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{DistinguishedName, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::configs::Expect;
use crate::verify::{ExpectedServer, Trust, VerifyError, verify_access_point, verify_executor};
use crate::{PeerIdentity, PolicyCell};

tokio::task_local! {
    /// What the verifier found in the handshake that this task polls.
    static VERDICT: RefCell<Option<Result<PeerIdentity, VerifyError>>>;
}

/// Runs a handshake and hands out what its verifier found about the peer.
///
/// The verdict comes before the peer has proved to hold the key: it names the peer only when `handshake`
/// itself succeeded.
pub(crate) async fn with_verdict<F: Future>(
    handshake: F,
) -> (F::Output, Option<Result<PeerIdentity, VerifyError>>) {
    VERDICT
        .scope(RefCell::new(None), async {
            let output = handshake.await;
            (output, VERDICT.with(RefCell::take))
        })
        .await
}

pub(crate) fn record(verdict: Result<PeerIdentity, VerifyError>) -> Result<(), Error> {
    let answer = match &verdict {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_rustls()),
    };
    // Outside of our own loops there is nobody to tell; the answer to rustls stands all the same.
    let _ = VERDICT.try_with(|cell| cell.replace(Some(verdict)));
    answer
}

/// The half that all our verifiers share: TLS 1.3 alone, with the algorithms that certificates are judged by.
macro_rules! tls13_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &rustls_pki_types::CertificateDer<'_>,
            _dss: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Err(rustls::PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &rustls_pki_types::CertificateDer<'_>,
            dss: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            let algorithms = &$crate::verify::ALGORITHMS;
            rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            $crate::verify::ALGORITHMS.supported_schemes()
        }
    };
}
pub(crate) use tls13_signatures;

/// Judges executors.
pub(crate) struct ExecutorVerifier {
    trust: Arc<Trust>,
    policy: PolicyCell,
    clock: Arc<dyn Clock>,
    lax: LaxLog,
}

impl ExecutorVerifier {
    pub(crate) fn new(trust: Arc<Trust>, policy: PolicyCell, clock: Arc<dyn Clock>) -> Self {
        Self {
            trust,
            policy,
            clock,
            lax: LaxLog::default(),
        }
    }
}

impl ClientCertVerifier for ExecutorVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hints: they would tell everyone whom we trust, grow the handshake with each root, and make
        // clients with a cross-signed chain hold back a certificate that we accept.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain = chain(end_entity, intermediates);
        let policy = self.policy.load();
        let verdict = verify_executor(&chain, &self.trust, &policy, self.clock.now());
        self.lax.tell(&verdict);
        record(verdict).map(|()| ClientCertVerified::assertion())
    }

    tls13_signatures!();
}

impl fmt::Debug for ExecutorVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecutorVerifier").finish_non_exhaustive()
    }
}

/// Judges access points.
pub(crate) struct ServerVerifier {
    trust: Arc<Trust>,
    expect: Expect,
    strict_svid: bool,
    clock: Arc<dyn Clock>,
    lax: LaxLog,
}

impl ServerVerifier {
    pub(crate) fn new(
        trust: Arc<Trust>,
        expect: Expect,
        strict_svid: bool,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            trust,
            expect,
            strict_svid,
            clock,
            lax: LaxLog::default(),
        }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = chain(end_entity, intermediates);
        let expected = match &self.expect {
            Expect::SpiffeId(id) => ExpectedServer::SpiffeId(id.clone()),
            Expect::RemoteName => ExpectedServer::Name(server_name.to_owned()),
        };
        let verdict = verify_access_point(
            &chain,
            &self.trust,
            &expected,
            self.strict_svid,
            self.clock.now(),
        );
        self.lax.tell(&verdict);
        record(verdict).map(|()| ServerCertVerified::assertion())
    }

    tls13_signatures!();
}

impl fmt::Debug for ServerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerVerifier").finish_non_exhaustive()
    }
}

/// Presents one certificate whatever the peer hints at: a peer that does not trust it shall say so, since
/// "no certificate" would name the wrong fault.
#[derive(Debug)]
pub(crate) struct PresentAlways(Arc<CertifiedKey>);

impl PresentAlways {
    pub(crate) fn new(key: Arc<CertifiedKey>) -> Self {
        Self(key)
    }
}

impl ResolvesServerCert for PresentAlways {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

impl ResolvesClientCert for PresentAlways {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Says once per generation that peers come with certificates whose issuer breaks the standard (`I` rows).
#[derive(Default)]
struct LaxLog(AtomicBool);

impl LaxLog {
    fn tell(&self, verdict: &Result<PeerIdentity, VerifyError>) {
        let Ok(peer) = verdict else { return };
        let Some(fault) = peer.issuer_faults().first() else {
            return;
        };
        if !self.0.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                peer.id = %peer.name(),
                fault = %fault,
                faults = peer.issuer_faults().len(),
                "the issuer of a peer's certificate does not follow the SPIFFE standard; --strict-svid would refuse it"
            );
        }
    }
}

pub(crate) fn chain<'a>(
    end_entity: &'a CertificateDer<'_>,
    intermediates: &'a [CertificateDer<'_>],
) -> Vec<CertificateDer<'a>> {
    [end_entity]
        .into_iter()
        .chain(intermediates)
        .map(|der| CertificateDer::from(der.as_ref()))
        .collect()
}
