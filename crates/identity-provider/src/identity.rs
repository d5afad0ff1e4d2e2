//! One coherent snapshot of who this process is, and whom it trusts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer,
};
use spiffe::TrustDomain;
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::{CertificateError, CertificateFacts, ProviderKind};

/// A private key in DER. It is wiped when dropped and cannot be printed.
#[derive(Clone)]
pub struct PrivateKey {
    der: Zeroizing<Vec<u8>>,
    form: KeyForm,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum KeyForm {
    Pkcs8,
    Pkcs1,
    Sec1,
}

impl PrivateKey {
    /// A PKCS#8 key (RFC 5958).
    pub fn pkcs8(der: Vec<u8>) -> Self {
        Self {
            der: Zeroizing::new(der),
            form: KeyForm::Pkcs8,
        }
    }

    /// A PKCS#1 RSA key (RFC 8017 appendix A).
    pub fn pkcs1(der: Vec<u8>) -> Self {
        Self {
            der: Zeroizing::new(der),
            form: KeyForm::Pkcs1,
        }
    }

    /// A SEC1 elliptic curve key (RFC 5915).
    pub fn sec1(der: Vec<u8>) -> Self {
        Self {
            der: Zeroizing::new(der),
            form: KeyForm::Sec1,
        }
    }

    /// The key borrowed in the type that TLS libraries take.
    pub fn der(&self) -> PrivateKeyDer<'_> {
        let der = self.der.as_slice();
        match self.form {
            KeyForm::Pkcs8 => PrivatePkcs8KeyDer::from(der).into(),
            KeyForm::Pkcs1 => PrivatePkcs1KeyDer::from(der).into(),
            KeyForm::Sec1 => PrivateSec1KeyDer::from(der).into(),
        }
    }
}

impl PartialEq for PrivateKey {
    fn eq(&self, other: &Self) -> bool {
        self.form == other.form && self.der == other.der
    }
}

/// The certificates this process trusts as authorities.
///
/// Bundles of different trust domains are never merged (SV-52): a certificate with a SPIFFE ID is judged
/// by the bundle of its own trust domain and by the roots that were given without a domain, everything
/// else by the latter alone.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TrustBundles {
    /// Roots that an operator named without a trust domain (`--ca`): good for any name.
    pub unscoped: Vec<CertificateDer<'static>>,
    /// Roots that speak for one SPIFFE trust domain only. With none of them the domain is distrusted, whatever
    /// is in `unscoped` (SV-47).
    pub domains: BTreeMap<TrustDomain, Vec<CertificateDer<'static>>>,
}

/// Who this process is at one moment: certificate chain, private key and trust bundles, from one provider.
#[derive(Clone)]
pub struct Identity {
    chain: Arc<[CertificateDer<'static>]>,
    key: PrivateKey,
    bundles: TrustBundles,
    leaf: CertificateFacts,
}

impl Identity {
    /// Puts the parts together and reads the leaf. `chain` is leaf first.
    ///
    /// That key and leaf belong together, that the chain is whole and that it is valid now is the
    /// supervisor's vetting, so that one place says why an identity was not taken.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKey,
        bundles: TrustBundles,
    ) -> Result<Self, CertificateError> {
        let leaf = CertificateFacts::from_der(chain.first().map_or(&[][..], |der| der))?;
        Ok(Self {
            chain: chain.into(),
            key,
            bundles,
            leaf,
        })
    }

    /// The certificates to present, leaf first.
    pub fn chain(&self) -> &Arc<[CertificateDer<'static>]> {
        &self.chain
    }

    /// The leaf's private key.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// Whom to trust.
    pub fn bundles(&self) -> &TrustBundles {
        &self.bundles
    }

    /// What the leaf says.
    pub fn leaf(&self) -> &CertificateFacts {
        &self.leaf
    }

    /// The same identity, trusting `roots` besides, for any name.
    #[must_use]
    pub fn trusting_also(
        mut self,
        roots: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Self {
        self.bundles.unscoped.extend(roots);
        self
    }

    /// Whether `other` would behave the same in every handshake.
    pub fn same_material(&self, other: &Self) -> bool {
        self.chain == other.chain && self.key == other.key && self.bundles == other.bundles
    }
}

/// An identity that was vetted and put to use, with its place in the sequence.
#[derive(Clone)]
pub struct Published {
    /// 1 for the first identity of the process, one more for each that replaced it.
    pub generation: u64,
    /// The identity itself.
    pub identity: Identity,
    /// Which provider it came from.
    pub provider: ProviderKind,
    /// When it was put to use.
    pub since: SystemTime,
}

/// The current identity and news of the next. Exists only once there was a first good identity.
#[derive(Clone)]
pub struct IdentityWatch(watch::Receiver<Arc<Published>>);

impl IdentityWatch {
    /// A watch that starts at `first`, and the one sender that may replace it.
    pub fn starting_at(first: Published) -> (watch::Sender<Arc<Published>>, Self) {
        let (sender, receiver) = watch::channel(Arc::new(first));
        (sender, Self(receiver))
    }

    /// The identity in use now.
    pub fn current(&self) -> Arc<Published> {
        self.0.borrow().clone()
    }

    /// Waits for a generation that this watch has not yielded yet. `None` when the supervisor has ended.
    pub async fn next(&mut self) -> Option<Arc<Published>> {
        self.0.changed().await.ok()?;
        Some(self.0.borrow_and_update().clone())
    }
}
