//! rustls configurations, built once per generation of the identity and published.
//!
//! This, [`crate::SpiffeClient`] and [`crate::WebClient`] are the only places that call rustls's builders. TLS 1.3 alone, but
//! towards the web; no tickets and no resumption, for a resumed session would skip the look at the certificate.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use ah_identity_provider::{
    Clock, Code, Explained, Identity, IdentityWatch, PrivateKey, ProviderKind, Published,
};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls_pki_types::{CertificateDer, UnixTime};
use spiffe::SpiffeId;
use tokio::sync::watch;

use crate::handshake::{ExecutorVerifier, PresentAlways, ServerVerifier};
use crate::{PolicyCell, Trust};

/// The access point's side of one generation.
pub struct ServerTls {
    config: Arc<rustls::ServerConfig>,
    published: Arc<Published>,
    trust: Arc<Trust>,
}

/// An executor's side of one generation.
pub struct ClientTls {
    config: Arc<rustls::ClientConfig>,
    published: Arc<Published>,
    trust: Arc<Trust>,
}

macro_rules! generation_accessors {
    ($tls:ty, $config:ty) => {
        impl $tls {
            /// For rustls.
            pub fn config(&self) -> &Arc<$config> {
                &self.config
            }

            /// The identity it was built from.
            pub fn published(&self) -> &Arc<Published> {
                &self.published
            }

            /// The trust anchors of this generation.
            pub fn trust(&self) -> &Arc<Trust> {
                &self.trust
            }

            /// The identity's place in the sequence.
            pub fn generation(&self) -> u64 {
                self.published.generation
            }
        }

        impl fmt::Debug for $tls {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($tls))
                    .field("generation", &self.generation())
                    .finish_non_exhaustive()
            }
        }
    };
}

generation_accessors!(ServerTls, rustls::ServerConfig);
generation_accessors!(ClientTls, rustls::ClientConfig);

/// The access point's configuration of the moment. Clones follow the same identity.
#[derive(Clone, Debug)]
pub struct ServerConfigs(watch::Receiver<Arc<ServerTls>>);

impl ServerConfigs {
    /// Builds the first configuration. The future, to be spawned, publishes one for each new identity
    /// and ends with the identity's supervisor. A change of `policy` is in force at once.
    pub fn publish(
        identity: IdentityWatch,
        policy: PolicyCell,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, impl Future<Output = ()> + Send + 'static), Explained> {
        let build =
            move |published: Arc<Published>| server_tls(published, policy.clone(), clock.clone());
        let (receiver, follow) = publish(identity, build)?;
        Ok((Self(receiver), follow))
    }

    /// The configuration of now.
    pub fn current(&self) -> Arc<ServerTls> {
        self.0.borrow().clone()
    }

    /// Waits for a generation that this clone has not yielded. `None` when there will be no more.
    pub async fn next(&mut self) -> Option<Arc<ServerTls>> {
        self.0.changed().await.ok()?;
        Some(self.0.borrow_and_update().clone())
    }
}

/// An executor's configuration of the moment. Clones follow the same identity.
#[derive(Clone, Debug)]
pub struct ClientConfigs {
    receiver: watch::Receiver<Arc<ClientTls>>,
}

impl ClientConfigs {
    /// As [`ServerConfigs::publish`]; every connection is judged by `expect`.
    pub fn publish(
        identity: IdentityWatch,
        expect: Expect,
        strict_svid: bool,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, impl Future<Output = ()> + Send + 'static), Explained> {
        let build = move |published: Arc<Published>| {
            client_tls(published, expect.clone(), strict_svid, clock.clone())
        };
        let (receiver, follow) = publish(identity, build)?;
        Ok((Self { receiver }, follow))
    }

    /// The configuration of now.
    pub fn current(&self) -> Arc<ClientTls> {
        self.receiver.borrow().clone()
    }

    /// Waits for a generation that this clone has not yielded. `None` when there will be no more.
    pub async fn next(&mut self) -> Option<Arc<ClientTls>> {
        self.receiver.changed().await.ok()?;
        Some(self.receiver.borrow_and_update().clone())
    }
}

/// Whom an executor expects behind `--remote-server` (EN-5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// This SPIFFE ID, whatever name was dialled.
    SpiffeId(SpiffeId),
    /// A certificate for the name that was dialled.
    RemoteName,
}

impl Expect {
    /// `explicit` (`--expected-server-id`) when given; with the spiffe provider the own trust domain's
    /// `/ah/serve`; else the dialled name.
    pub fn new(explicit: Option<SpiffeId>, provider: ProviderKind, identity: &Identity) -> Self {
        let own_serve = || {
            if provider != ProviderKind::Spiffe {
                return None;
            }
            let own = identity.leaf().uris.first()?;
            let own = crate::parse_spiffe_id(own).ok()?;
            SpiffeId::from_segments(own.trust_domain().clone(), &["ah", "serve"]).ok()
        };
        explicit
            .or_else(own_serve)
            .map_or(Self::RemoteName, Self::SpiffeId)
    }
}

fn publish<T: Send + Sync + 'static>(
    mut identity: IdentityWatch,
    build: impl Fn(Arc<Published>) -> Result<T, Explained> + Send + 'static,
) -> Result<
    (
        watch::Receiver<Arc<T>>,
        impl Future<Output = ()> + Send + 'static,
    ),
    Explained,
> {
    let first = identity.current();
    let mut generation = first.generation;
    let (sender, receiver) = watch::channel(Arc::new(build(first)?));
    let follow = async move {
        loop {
            let published = tokio::select! {
                published = identity.next() => published,
                () = sender.closed() => None,
            };
            let Some(published) = published else { return };
            if published.generation == generation {
                continue;
            }
            generation = published.generation;
            match build(published) {
                Ok(tls) => {
                    sender.send_replace(Arc::new(tls));
                }
                // The supervisor vets before it publishes; the last good configuration stays.
                Err(error) => tracing::error!(
                    generation,
                    error = %error.report(),
                    "the new identity cannot be used for TLS"
                ),
            }
        }
    };
    Ok((receiver, follow))
}

fn server_tls(
    published: Arc<Published>,
    policy: PolicyCell,
    clock: Arc<dyn Clock>,
) -> Result<ServerTls, Explained> {
    let key = certified_key(&published.identity)?;
    let trust = Arc::new(Trust::new(published.identity.bundles()));
    let verifier = ExecutorVerifier::new(trust.clone(), policy, clock.clone());
    let mut config = rustls::ServerConfig::builder_with_details(provider(), Arc::new(Time(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| unusable(&error))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(PresentAlways::new(key)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.ignore_client_order = true;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.cert_compressors.clear();
    config.cert_decompressors.clear();
    Ok(ServerTls {
        config: Arc::new(config),
        published,
        trust,
    })
}

fn client_tls(
    published: Arc<Published>,
    expect: Expect,
    strict_svid: bool,
    clock: Arc<dyn Clock>,
) -> Result<ClientTls, Explained> {
    let key = certified_key(&published.identity)?;
    let trust = Arc::new(Trust::new(published.identity.bundles()));
    let verifier = ServerVerifier::new(trust.clone(), expect, strict_svid, clock.clone());
    let mut config = rustls::ClientConfig::builder_with_details(provider(), Arc::new(Time(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| unusable(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(PresentAlways::new(key)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.cert_compressors.clear();
    config.cert_decompressors.clear();
    Ok(ClientTls {
        config: Arc::new(config),
        published,
        trust,
    })
}

/// HTTP/2 (RFC 9113 §3.2).
pub(crate) const ALPN: &[u8] = b"h2";

/// aws-lc-rs with suites and key exchanges in our order; never the process-wide default.
///
/// SHA-256 first: a session is mostly handshake, and CPUs hash that with instructions of their own, unlike SHA-384.
/// RFC 8446 §9.1 asks for this suite of everyone.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
            aws_lc_rs::kx_group::SECP384R1,
        ],
        ..aws_lc_rs::default_provider()
    })
}

/// The chain and key in the form rustls signs with. Fails when they do not belong together (ER-6).
pub(crate) fn certified_key(identity: &Identity) -> Result<Arc<CertifiedKey>, Explained> {
    let chain = identity.chain().to_vec();
    CertifiedKey::from_der(chain, identity.key().der().clone_key(), &provider())
        .map(Arc::new)
        .map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => key_mismatch(identity),
            other => unusable(&other),
        })
}

fn key_mismatch(identity: &Identity) -> Explained {
    let leaf = identity.leaf();
    Explained::new(Code::KeyMismatch, "private key does not match certificate")
        .cause(format!(
            "the certificate `{}` (serial {}) holds another public key ({}) than the private key's",
            leaf.subject, leaf.serial, leaf.key
        ))
        .hint("generate certificate and key together, or point --key at the key that the certificate was made for")
}

pub(crate) fn unusable(error: &rustls::Error) -> Explained {
    Explained::new(Code::Other, "identity cannot be used for TLS")
        .cause(error)
        .hint("use an RSA (2048 to 4096 bits), ECDSA P-256, ECDSA P-384 or Ed25519 key in PKCS#8, PKCS#1 or SEC1 form")
}

#[derive(Debug)]
pub(crate) struct Time(pub(crate) Arc<dyn Clock>);

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        let since_epoch = self.0.now().duration_since(std::time::UNIX_EPOCH).ok()?;
        Some(UnixTime::since_unix_epoch(since_epoch))
    }
}

/// A plain HTTPS server's configuration, for the HTTP side of an access point: TLS 1.3, no client
/// certificate, ALPN `http/1.1`.
pub fn https_config(
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKey,
) -> Result<Arc<rustls::ServerConfig>, Explained> {
    let unusable = |error: rustls::Error| {
        Explained::new(Code::Other, "the HTTPS certificate cannot be used")
            .cause(error)
            .hint("check that --http-cert and --http-key belong together")
    };
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key.der().clone_key())
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
