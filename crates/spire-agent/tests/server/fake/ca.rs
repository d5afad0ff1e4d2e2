//! The CA of the fake.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::CertificateDer;

use super::DOMAIN;

/// A CA that signs what it is asked to.
pub(crate) struct Ca {
    pub(crate) der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    pub(crate) fn new() -> Arc<Self> {
        Self::of(CertificateParams::default())
    }

    /// One that ends after `life`.
    pub(crate) fn lasting(life: Duration) -> Arc<Self> {
        let mut params = CertificateParams::default();
        params.not_after = (SystemTime::now() + life).into();
        Self::of(params)
    }

    fn of(mut params: CertificateParams) -> Arc<Self> {
        let key = KeyPair::generate().unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, uuid());
        params.subject_alt_names = vec![uri(&format!("spiffe://{DOMAIN}"))];
        let certificate = params.self_signed(&key).unwrap();
        Arc::new(Self {
            der: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        })
    }

    pub(crate) fn leaf(
        &self,
        id: &str,
        key: &impl PublicKeyData,
        life: Duration,
    ) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        let now = SystemTime::now();
        params.not_before = (now - Duration::from_secs(1)).into();
        params.not_after = (now + life).into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.subject_alt_names = vec![uri(id)];
        let certificate = params.signed_by(key, &self.issuer).unwrap();
        certificate.der().clone()
    }

    pub(super) fn sign(&self, csr: &[u8], id: &str, life: Duration) -> CertificateDer<'static> {
        let csr = CertificateSigningRequestParams::from_der(&csr.to_vec().into()).unwrap();
        self.leaf(id, &csr.public_key, life)
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn uuid() -> String {
    format!("{:x}", rand::random::<u128>())
}
