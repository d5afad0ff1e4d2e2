//! A certificate authority for tests, able to make every mistake the standards name.
//!
//! ```
//! use ah_testkit::ca::TestCa;
//!
//! let ca = TestCa::new("example.org");
//! let executor = ca.leaf().spiffe("spiffe://example.org/ah/agent/1").issue();
//! let server = ca.intermediate().issue().leaf().dns("localhost").ip("127.0.0.1").issue();
//! assert_eq!(executor.chain().len(), 1);
//! assert_eq!(server.chain().len(), 2);
//! ```
//!
//! Everything here panics on failure: it is for tests alone.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ah_identity_provider::{
    Identity, IdentityWatch, PrivateKey, ProviderKind, Published, TrustBundles,
};
use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, DnType, Issuer, KeyPair, PublicKeyData,
    RsaKeySize, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::sync::watch;

/// The kind of key a certificate holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    /// ECDSA on P-256, the default.
    P256,
    /// ECDSA on P-384.
    P384,
    /// Ed25519.
    Ed25519,
    /// RSA with 2048 bits.
    Rsa2048,
    /// RSA with 4096 bits: takes seconds to make.
    Rsa4096,
}

/// Bits of key usage (RFC 5280 §4.2.1.3), to be joined with `|`.
pub mod usage {
    /// digitalSignature
    pub const DIGITAL_SIGNATURE: u16 = 0x80;
    /// keyEncipherment
    pub const KEY_ENCIPHERMENT: u16 = 0x20;
    /// keyCertSign
    pub const KEY_CERT_SIGN: u16 = 0x04;
    /// cRLSign
    pub const CRL_SIGN: u16 = 0x02;
}

/// A certificate authority: a root, or an intermediate under one. Cheap to clone.
#[derive(Clone)]
pub struct TestCa {
    inner: Arc<Ca>,
}

struct Ca {
    trust_domain: String,
    der: CertificateDer<'static>,
    key: KeyPair,
    params: CertificateParams,
    /// What to present after a leaf: this certificate and those above it, without the root.
    intermediates: Vec<CertificateDer<'static>>,
    root: CertificateDer<'static>,
}

impl TestCa {
    /// A root as the SPIFFE standards ask for one, good for any other certificate too.
    pub fn new(trust_domain: &str) -> Self {
        Self::root(trust_domain).issue()
    }

    /// A root to be made with mistakes.
    pub fn root(trust_domain: &str) -> CaBuilder {
        CaBuilder {
            trust_domain: trust_domain.to_owned(),
            issuer: None,
            spec: Spec::ca(trust_domain, "root"),
        }
    }

    /// An intermediate under this authority.
    pub fn intermediate(&self) -> CaBuilder {
        let trust_domain = self.inner.trust_domain.clone();
        CaBuilder {
            spec: Spec::ca(
                &trust_domain,
                &format!("intermediate {}", self.inner.intermediates.len() + 1),
            ),
            trust_domain,
            issuer: Some(self.clone()),
        }
    }

    /// A leaf under this authority, as the SPIFFE standards ask for one, still without a name.
    pub fn leaf(&self) -> LeafBuilder {
        LeafBuilder {
            issuer: self.clone(),
            spec: Spec::leaf(),
        }
    }

    /// This authority's certificate.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.inner.der
    }

    /// The root above, or this itself.
    pub fn root_der(&self) -> &CertificateDer<'static> {
        &self.inner.root
    }

    /// This authority's certificate in PEM.
    pub fn pem(&self) -> String {
        pem("CERTIFICATE", &self.inner.der)
    }

    /// Writes `<dir>/<name>.pem`.
    pub fn write(&self, dir: &Path, name: &str) -> PathBuf {
        write(dir.join(format!("{name}.pem")), &self.pem())
    }

    /// Bundles that trust this authority for any name, as `--ca` does.
    pub fn bundles(&self) -> TrustBundles {
        TrustBundles {
            unscoped: vec![self.inner.der.clone()],
            domains: BTreeMap::new(),
        }
    }

    /// Bundles that trust this authority for its own trust domain, as the Workload API does.
    pub fn svid_bundles(&self) -> TrustBundles {
        let domain = self.inner.trust_domain.parse().expect("a trust domain");
        TrustBundles {
            unscoped: Vec::new(),
            domains: BTreeMap::from([(domain, vec![self.inner.der.clone()])]),
        }
    }
}

/// An authority in the making.
pub struct CaBuilder {
    trust_domain: String,
    issuer: Option<TestCa>,
    spec: Spec,
}

impl CaBuilder {
    /// Allows so many intermediates below (pathLen).
    pub fn path_len(mut self, len: u8) -> Self {
        self.spec.basic = Some((true, Some(len)));
        self
    }

    /// A signer with cA false (SV-27).
    pub fn not_ca(mut self) -> Self {
        self.spec.basic = Some((false, None));
        self
    }

    /// URI name constraints: what may be named.
    pub fn permit_uri(mut self, host: &str) -> Self {
        self.spec.permitted.push((URI, host.as_bytes().to_vec()));
        self
    }

    /// URI name constraints: what may not be named.
    pub fn exclude_uri(mut self, host: &str) -> Self {
        self.spec.excluded.push((URI, host.as_bytes().to_vec()));
        self
    }

    /// DNS name constraints: what may be named.
    pub fn permit_dns(mut self, name: &str) -> Self {
        self.spec.permitted.push((DNS, name.as_bytes().to_vec()));
        self
    }

    /// Makes it.
    pub fn issue(self) -> TestCa {
        let key = self.spec.key_pair();
        let params = self.spec.params();
        let der = sign(&params, &key, self.issuer.as_ref());
        let (intermediates, root) = match &self.issuer {
            None => (Vec::new(), der.clone()),
            Some(issuer) => {
                let mut intermediates = vec![der.clone()];
                intermediates.extend(issuer.inner.intermediates.iter().cloned());
                (intermediates, issuer.inner.root.clone())
            }
        };
        TestCa {
            inner: Arc::new(Ca {
                trust_domain: self.trust_domain,
                der,
                key,
                params,
                intermediates,
                root,
            }),
        }
    }
}

/// A leaf in the making.
pub struct LeafBuilder {
    issuer: TestCa,
    spec: Spec,
}

impl LeafBuilder {
    /// A SPIFFE ID, or any other URI SAN, as it is: nothing is checked.
    pub fn spiffe(self, uri: &str) -> Self {
        self.uri(uri)
    }

    /// A DNS SAN.
    pub fn dns(mut self, name: &str) -> Self {
        self.spec.sans.push((DNS, name.as_bytes().to_vec()));
        self
    }

    /// An IP SAN.
    pub fn ip(mut self, ip: &str) -> Self {
        let ip: IpAddr = ip.parse().expect("an IP address");
        let bytes = match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        self.spec.sans.push((IP, bytes));
        self
    }

    /// An e-mail SAN.
    pub fn email(mut self, address: &str) -> Self {
        self.spec.sans.push((EMAIL, address.as_bytes().to_vec()));
        self
    }

    /// cA true on the leaf (SV-26).
    pub fn as_ca(mut self) -> Self {
        self.spec.basic = Some((true, None));
        self
    }

    /// Extended key usage of serverAuth alone (SV-34).
    pub fn server_only(mut self) -> Self {
        self.spec.extended = vec![SERVER_AUTH];
        self
    }

    /// Extended key usage of clientAuth alone (SV-34).
    pub fn client_only(mut self) -> Self {
        self.spec.extended = vec![CLIENT_AUTH];
        self
    }

    /// No extended key usage.
    pub fn without_extended_usage(mut self) -> Self {
        self.spec.extended.clear();
        self
    }

    /// Makes it for a key that is elsewhere, and gives the chain in PEM, leaf first.
    pub fn issue_for(self, public: &impl PublicKeyData) -> String {
        let issuer = &self.issuer.inner;
        let signer = Issuer::from_params(&issuer.params, &issuer.key);
        let leaf = self.spec.params().signed_by(public, &signer);
        let leaf = pem("CERTIFICATE", leaf.expect("a certificate").der());
        let above = issuer.intermediates.iter();
        leaf + &above.map(|der| pem("CERTIFICATE", der)).collect::<String>()
    }

    /// Makes it.
    pub fn issue(self) -> TestLeaf {
        let key = self.spec.key_pair();
        let der = sign(&self.spec.params(), &key, Some(&self.issuer));
        let mut chain = vec![der];
        chain.extend(self.issuer.inner.intermediates.iter().cloned());
        TestLeaf {
            chain,
            key: key.serialize_der(),
            root: self.issuer.inner.root.clone(),
        }
    }
}

/// What leaf and authority builders share.
macro_rules! common_builder {
    ($builder:ty) => {
        impl $builder {
            /// The subject's common name; empty for an empty subject.
            pub fn subject(mut self, common_name: &str) -> Self {
                self.spec.subject = common_name.to_owned();
                self
            }

            /// One more URI SAN, as it is: nothing is checked.
            pub fn uri(mut self, uri: &str) -> Self {
                self.spec.sans.push((URI, uri.as_bytes().to_vec()));
                self
            }

            /// No SAN at all.
            pub fn without_sans(mut self) -> Self {
                self.spec.sans.clear();
                self
            }

            /// Marks the SAN critical or not; else it is critical under an empty subject (SV-23).
            pub fn san_critical(mut self, critical: bool) -> Self {
                self.spec.san_critical = Some(critical);
                self
            }

            /// The kind of key; P-256 if not called.
            pub fn key_type(mut self, key: KeyType) -> Self {
                self.spec.key = key;
                self
            }

            /// These bits of [`usage`], critical or not.
            pub fn key_usage(mut self, bits: u16, critical: bool) -> Self {
                self.spec.usage = Some((bits, critical));
                self
            }

            /// No key usage (SV-28).
            pub fn without_key_usage(mut self) -> Self {
                self.spec.usage = None;
                self
            }

            /// One more extension with this DER content.
            pub fn extension(mut self, oid: &[u64], critical: bool, content: &[u8]) -> Self {
                self.spec
                    .extra
                    .push((oid.to_vec(), critical, content.to_vec()));
                self
            }

            /// Start of validity; one hour ago if not called.
            pub fn valid_from(mut self, from: SystemTime) -> Self {
                self.spec.from = from;
                self
            }

            /// Length of validity; a day for leaves and ten years for authorities if not called.
            pub fn valid_for(mut self, life: Duration) -> Self {
                self.spec.life = life;
                self
            }

            /// The serial number; random if not called.
            pub fn serial(mut self, serial: &[u8]) -> Self {
                self.spec.serial = Some(serial.to_vec());
                self
            }
        }
    };
}

common_builder!(CaBuilder);
common_builder!(LeafBuilder);

/// A leaf, its key, and the certificates between it and the root.
#[derive(Clone)]
pub struct TestLeaf {
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
    root: CertificateDer<'static>,
}

/// Where [`TestLeaf::write`] put things.
#[derive(Clone, Debug)]
pub struct LeafFiles {
    /// The chain, leaf first.
    pub cert: PathBuf,
    /// The key, mode 0600.
    pub key: PathBuf,
}

impl TestLeaf {
    /// The leaf.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.chain[0]
    }

    /// The leaf and the intermediates, without the root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Presents other certificates after the leaf: none, too few, too many, in the wrong order.
    pub fn with_intermediates(mut self, intermediates: &[&CertificateDer<'static>]) -> Self {
        self.chain.truncate(1);
        self.chain
            .extend(intermediates.iter().map(|der| (*der).clone()));
        self
    }

    /// The same leaf with the key of another: a pair that does not match (ER-6).
    pub fn with_key_of(mut self, other: &Self) -> Self {
        self.key = other.key.clone();
        self
    }

    /// The key in PKCS#8 DER.
    pub fn key_der(&self) -> &[u8] {
        &self.key
    }

    /// The key as identities hold it.
    pub fn key(&self) -> PrivateKey {
        PrivateKey::pkcs8(self.key.clone())
    }

    /// The chain in PEM, leaf first.
    pub fn chain_pem(&self) -> String {
        let blocks = self.chain.iter().map(|der| pem("CERTIFICATE", der));
        blocks.collect()
    }

    /// The key in PKCS#8 PEM.
    pub fn key_pem(&self) -> String {
        pem("PRIVATE KEY", &self.key)
    }

    /// Writes `<dir>/<name>.pem` and, with mode 0600, `<dir>/<name>-key.pem`.
    pub fn write(&self, dir: &Path, name: &str) -> LeafFiles {
        use std::os::unix::fs::PermissionsExt;

        let key = write(dir.join(format!("{name}-key.pem")), &self.key_pem());
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        LeafFiles {
            cert: write(dir.join(format!("{name}.pem")), &self.chain_pem()),
            key,
        }
    }

    /// An identity that trusts `roots` for any name.
    pub fn identity(&self, roots: &[&TestCa]) -> Identity {
        self.identity_with(TrustBundles {
            unscoped: roots.iter().map(|ca| ca.der().clone()).collect(),
            domains: BTreeMap::new(),
        })
    }

    /// An identity that trusts each of `roots` for its own trust domain, as the Workload API gives.
    pub fn svid_identity(&self, roots: &[&TestCa]) -> Identity {
        let mut bundles = TrustBundles::default();
        for ca in roots {
            bundles.domains.extend(ca.svid_bundles().domains);
        }
        self.identity_with(bundles)
    }

    /// An identity with these bundles.
    pub fn identity_with(&self, bundles: TrustBundles) -> Identity {
        Identity::new(self.chain.clone(), self.key(), bundles).expect("a readable leaf")
    }

    /// A watch that starts at [`TestLeaf::identity`], and the sender that rotates it.
    pub fn watch(&self, roots: &[&TestCa]) -> (watch::Sender<Arc<Published>>, IdentityWatch) {
        IdentityWatch::starting_at(published(1, self.identity(roots)))
    }

    /// The root that it was issued under.
    pub fn root_der(&self) -> &CertificateDer<'static> {
        &self.root
    }
}

/// `identity` as the supervisor would publish it.
pub fn published(generation: u64, identity: Identity) -> Published {
    Published {
        generation,
        identity,
        provider: ProviderKind::Files,
        since: SystemTime::now(),
    }
}

const EMAIL: u8 = 0x81;
const DNS: u8 = 0x82;
const URI: u8 = 0x86;
const IP: u8 = 0x87;
const SERVER_AUTH: u8 = 1;
const CLIENT_AUTH: u8 = 2;

/// What a certificate shall say. Extensions are written here byte for byte, for a library that refuses
/// mistakes cannot make them.
struct Spec {
    subject: String,
    sans: Vec<(u8, Vec<u8>)>,
    san_critical: Option<bool>,
    basic: Option<(bool, Option<u8>)>,
    usage: Option<(u16, bool)>,
    extended: Vec<u8>,
    permitted: Vec<(u8, Vec<u8>)>,
    excluded: Vec<(u8, Vec<u8>)>,
    extra: Vec<(Vec<u64>, bool, Vec<u8>)>,
    from: SystemTime,
    life: Duration,
    serial: Option<Vec<u8>>,
    key: KeyType,
}

const HOUR: Duration = Duration::from_secs(3600);

impl Spec {
    fn leaf() -> Self {
        Self {
            subject: "leaf".into(),
            sans: Vec::new(),
            san_critical: None,
            basic: None,
            usage: Some((usage::DIGITAL_SIGNATURE, true)),
            extended: vec![SERVER_AUTH, CLIENT_AUTH],
            permitted: Vec::new(),
            excluded: Vec::new(),
            extra: Vec::new(),
            from: SystemTime::now() - HOUR,
            life: HOUR * 25,
            serial: None,
            key: KeyType::P256,
        }
    }

    fn ca(trust_domain: &str, what: &str) -> Self {
        Self {
            subject: format!("{trust_domain} {what}"),
            sans: vec![(URI, format!("spiffe://{trust_domain}").into_bytes())],
            basic: Some((true, None)),
            usage: Some((usage::KEY_CERT_SIGN | usage::CRL_SIGN, true)),
            extended: Vec::new(),
            life: HOUR * 24 * 3650,
            ..Self::leaf()
        }
    }

    fn key_pair(&self) -> KeyPair {
        let rsa = |size| KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size);
        match self.key {
            KeyType::P256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
            KeyType::P384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
            KeyType::Ed25519 => KeyPair::generate_for(&rcgen::PKCS_ED25519),
            KeyType::Rsa2048 => rsa(RsaKeySize::_2048),
            KeyType::Rsa4096 => rsa(RsaKeySize::_4096),
        }
        .expect("a key")
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if !self.subject.is_empty() {
            params
                .distinguished_name
                .push(DnType::CommonName, self.subject.as_str());
        }
        params.not_before = OffsetDateTime::from(self.from);
        params.not_after = OffsetDateTime::from(self.from + self.life);
        params.serial_number = self.serial.as_deref().map(SerialNumber::from_slice);
        params.custom_extensions = self.extensions();
        params
    }

    fn extensions(&self) -> Vec<CustomExtension> {
        let mut all = Vec::new();
        let mut add = |oid: &[u64], critical, content| {
            let mut extension = CustomExtension::from_oid_content(oid, content);
            extension.set_criticality(critical);
            all.push(extension);
        };
        if !self.sans.is_empty() {
            let names = self.sans.iter().flat_map(|(tag, value)| tlv(*tag, value));
            let critical = self.san_critical.unwrap_or(self.subject.is_empty());
            add(
                &[2, 5, 29, 17],
                critical,
                tlv(0x30, &names.collect::<Vec<u8>>()),
            );
        }
        if let Some((ca, path_len)) = self.basic {
            let mut content = Vec::new();
            if ca {
                content.extend(tlv(0x01, &[0xff]));
            }
            if let Some(len) = path_len {
                content.extend(tlv(0x02, &[len]));
            }
            add(&[2, 5, 29, 19], true, tlv(0x30, &content));
        }
        if let Some((bits, critical)) = self.usage {
            let bits = bits as u8;
            let unused = if bits == 0 {
                0
            } else {
                bits.trailing_zeros() as u8
            };
            add(&[2, 5, 29, 15], critical, tlv(0x03, &[unused, bits]));
        }
        if !self.extended.is_empty() {
            let purposes = self
                .extended
                .iter()
                .flat_map(|purpose| tlv(0x06, &[0x2b, 6, 1, 5, 5, 7, 3, *purpose]));
            add(
                &[2, 5, 29, 37],
                false,
                tlv(0x30, &purposes.collect::<Vec<u8>>()),
            );
        }
        if !self.permitted.is_empty() || !self.excluded.is_empty() {
            let subtrees = |tag, names: &[(u8, Vec<u8>)]| {
                let each = names
                    .iter()
                    .flat_map(|(tag, value)| tlv(0x30, &tlv(*tag, value)));
                let each: Vec<u8> = each.collect();
                if each.is_empty() {
                    each
                } else {
                    tlv(tag, &each)
                }
            };
            let mut content = subtrees(0xa0, &self.permitted);
            content.extend(subtrees(0xa1, &self.excluded));
            add(&[2, 5, 29, 30], true, tlv(0x30, &content));
        }
        for (oid, critical, content) in &self.extra {
            add(oid, *critical, content.clone());
        }
        all
    }
}

fn sign(
    params: &CertificateParams,
    key: &KeyPair,
    issuer: Option<&TestCa>,
) -> CertificateDer<'static> {
    let cert = match issuer {
        None => params.self_signed(key),
        Some(issuer) => {
            let issuer = Issuer::from_params(&issuer.inner.params, &issuer.inner.key);
            params.signed_by(key, &issuer)
        }
    };
    cert.expect("a certificate").der().clone()
}

/// DER: tag, length, value.
fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match value.len() {
        len @ 0..0x80 => out.push(len as u8),
        len @ 0x80..0x100 => out.extend([0x81, len as u8]),
        len => out.extend([0x82, (len >> 8) as u8, len as u8]),
    }
    out.extend(value);
    out
}

fn pem(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut body = String::new();
    for group in der.chunks(3) {
        let bits = group
            .iter()
            .chain([&0, &0])
            .take(3)
            .fold(0u32, |bits, byte| bits << 8 | u32::from(*byte));
        for place in 0..4 {
            if place <= group.len() {
                let index = bits >> (18 - 6 * place) & 0x3f;
                body.push(char::from(ALPHABET[index as usize]));
            } else {
                body.push('=');
            }
        }
    }
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        out.push_str(std::str::from_utf8(line).expect("ASCII"));
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

fn write(path: PathBuf, text: &str) -> PathBuf {
    std::fs::write(&path, text).expect("a writable directory");
    path
}
