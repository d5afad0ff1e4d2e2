//! The `dev` provider: real mutual TLS on one machine, from a development authority of its user (DV-1).
//!
//! Nothing is skipped in development. The first process makes an authority under `<state>/dev`; every process
//! of that user issues itself short-lived SPIFFE certificates from it, and trusts nothing else.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use spiffe::TrustDomain;
use tokio::time::sleep;

use crate::{
    Clock, Code, Explained, Identity, PrivateKey, Provider, ProviderError, ProviderKind,
    TrustBundles,
};

use authority::{Authority, Store};

mod authority;

/// Name of the development trust domain.
pub const TRUST_DOMAIN: &str = "ah-dev";

/// SPIFFE ID of a development access point.
pub const ACCESS_POINT_ID: &str = "spiffe://ah-dev/ah/serve";

/// How far back validity begins: processes of one machine share a clock, but a leap or a step must not make a
/// fresh certificate "not yet valid".
const BACKDATE: Duration = Duration::from_secs(60);

/// The longest sleep between two looks at the wall clock, which may have been moved.
const TICK: Duration = Duration::from_secs(5);

/// For whom a development identity is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DevRole {
    /// The access point: [`ACCESS_POINT_ID`], `localhost` and the loopback addresses, and these besides.
    AccessPoint {
        /// Further DNS names, such as the machine's.
        names: Vec<String>,
        /// Further addresses.
        ips: Vec<IpAddr>,
    },
    /// An executor: `spiffe://ah-dev/ah/agent/<name>`.
    Executor {
        /// `--name`. Made a path segment by [`path_segment`].
        name: String,
    },
}

/// What the dev provider issues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevConfig {
    /// `<state>`; the authority lives in its folder `dev`.
    pub state_dir: PathBuf,
    /// For whom.
    pub role: DevRole,
    /// Life of a certificate.
    pub cert_lifetime: Duration,
}

impl DevConfig {
    /// Life of a development certificate (DV-1).
    pub const CERT_LIFETIME: Duration = Duration::from_secs(3600);

    /// Certificates of one hour for `role`.
    pub fn new(state_dir: impl Into<PathBuf>, role: DevRole) -> Self {
        Self {
            state_dir: state_dir.into(),
            role,
            cert_lifetime: Self::CERT_LIFETIME,
        }
    }
}

/// Identities from the development authority.
pub struct DevProvider {
    config: DevConfig,
    clock: Arc<dyn Clock>,
    store: Store,
    issued: Option<Issued>,
}

/// The validity that the provider waits out.
#[derive(Clone, Copy)]
struct Issued {
    not_before: SystemTime,
    renew_at: SystemTime,
}

impl DevProvider {
    /// A provider for `config`. Touches no file yet.
    pub fn new(config: DevConfig, clock: Arc<dyn Clock>) -> Self {
        let store = Store::new(&config.state_dir, config.cert_lifetime);
        Self {
            config,
            clock,
            store,
            issued: None,
        }
    }

    /// Whether it is time for another certificate. One from the future is renewed too: the clock was put back.
    fn due(&self) -> bool {
        let now = self.clock.now();
        self.issued
            .is_none_or(|issued| now >= issued.renew_at || now < issued.not_before)
    }
}

impl Provider for DevProvider {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Dev
    }

    async fn next(&mut self) -> Result<Identity, ProviderError> {
        while !self.due() {
            let now = self.clock.now();
            let wait = self.issued.map_or(TICK, |issued| {
                issued.renew_at.duration_since(now).unwrap_or_default()
            });
            sleep(wait.min(TICK)).await;
        }
        let (store, config, now) = (self.store.clone(), self.config.clone(), self.clock.now());
        let work = tokio::task::spawn_blocking(move || {
            let authority = store.authority(now)?;
            let (identity, issued) = issue(&authority, &config, now)?;
            Ok((identity, issued, authority.made))
        });
        let (identity, issued, made) = work
            .await
            .unwrap_or_else(|_| Err(Explained::new(Code::Other, "issuing was interrupted")))
            .map_err(ProviderError::Operator)?;
        if let Some(made) = made {
            made.log(&self.store.path("ca.pem"));
        }
        self.issued = Some(issued);
        Ok(identity)
    }

    /// The next call issues another certificate, from the authority as it is then.
    fn refresh(&mut self) {
        self.issued = None;
    }

    fn next_renewal(&self) -> Option<SystemTime> {
        self.issued.map(|issued| issued.renew_at)
    }
}

/// A certificate for `config.role`, by `authority`. Obeys SV-17, SV-23, SV-28, SV-29, SV-31 and SV-34.
fn issue(
    authority: &Authority,
    config: &DevConfig,
    now: SystemTime,
) -> Result<(Identity, Issued), Explained> {
    let failed = |error: &dyn fmt::Display| {
        Explained::new(
            Code::Other,
            format!("cannot issue a development certificate: {error}"),
        )
    };
    let not_before = now.checked_sub(BACKDATE).unwrap_or(now);
    let not_after = now
        .checked_add(config.cert_lifetime)
        .map_or(authority.not_after, |end| end.min(authority.not_after));
    let mut params = CertificateParams::default();
    params.not_before = not_before.into();
    params.not_after = not_after.into();
    params.serial_number = Some(random_serial());
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let (common_name, sans) = names(&config.role)?;
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.subject_alt_names = sans;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| failed(&e))?;
    let certificate = params
        .signed_by(&key, &authority.issuer)
        .map_err(|e| failed(&e))?;
    let domain = TrustDomain::new(TRUST_DOMAIN).map_err(|e| failed(&e))?;
    let bundles = TrustBundles {
        unscoped: Vec::new(),
        domains: BTreeMap::from([(domain, vec![authority.certificate.clone()])]),
    };
    let identity = Identity::new(
        vec![certificate.der().clone()],
        PrivateKey::pkcs8(key.serialize_der()),
        bundles,
    )
    .map_err(|e| failed(&e))?;
    let issued = Issued {
        not_before,
        renew_at: renew_at(now, not_after),
    };
    Ok((identity, issued))
}

/// Two thirds of the life, up to a twentieth of it earlier, so that processes started together do not stay so.
fn renew_at(now: SystemTime, not_after: SystemTime) -> SystemTime {
    let life = not_after.duration_since(now).unwrap_or_default();
    let share = 2.0 / 3.0 - rand::random_range(0.0..0.05);
    now.checked_add(life.mul_f64(share)).unwrap_or(not_after)
}

fn names(role: &DevRole) -> Result<(String, Vec<SanType>), Explained> {
    let dns = |name: &str| {
        name.try_into().map(SanType::DnsName).map_err(|_| {
            Explained::new(
                Code::Usage,
                format!("a certificate cannot hold the DNS name {name:?}"),
            )
        })
    };
    let uri = |id: &str| {
        id.try_into()
            .map(SanType::URI)
            .map_err(|_| Explained::new(Code::Usage, format!("not a SPIFFE ID: {id:?}")))
    };
    match role {
        DevRole::AccessPoint { names, ips } => {
            let mut sans = vec![uri(ACCESS_POINT_ID)?, dns("localhost")?];
            for name in names.iter().filter(|name| *name != "localhost") {
                sans.push(dns(name)?);
            }
            let loopback = [
                IpAddr::V4(Ipv4Addr::LOCALHOST),
                IpAddr::V6(Ipv6Addr::LOCALHOST),
            ];
            let further = ips.iter().copied().filter(|ip| !loopback.contains(ip));
            sans.extend(loopback.into_iter().chain(further).map(SanType::IpAddress));
            Ok(("ah access point (development)".to_owned(), sans))
        }
        DevRole::Executor { name } => {
            let segment = path_segment(name)?;
            let id = format!("spiffe://{TRUST_DOMAIN}/ah/agent/{segment}");
            Ok(("ah executor (development)".to_owned(), vec![uri(&id)?]))
        }
    }
}

/// The path segment of a SPIFFE ID (SPIFFE-ID §2.2) for a name that people chose.
///
/// A name that is a valid segment stays as it is. Any other, and any that begins with `x--`, becomes `x--` and
/// the name with every byte outside `[a-zA-Z0-9.-]` as `_` and two hex digits; so no two names share a segment.
///
/// # Errors
/// When the name is empty or longer than 255 bytes.
pub fn path_segment(name: &str) -> Result<String, Explained> {
    const ESCAPED: &str = "x--";
    if name.is_empty() || name.len() > 255 {
        return Err(Explained::new(
            Code::Usage,
            format!("a name has 1 to 255 bytes, this one has {}", name.len()),
        )
        .hint("choose another with --name"));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-';
    let valid = name.bytes().all(|byte| plain(byte) || byte == b'_');
    if valid && name != "." && name != ".." && !name.starts_with(ESCAPED) {
        return Ok(name.to_owned());
    }
    let mut segment = ESCAPED.to_owned();
    for byte in name.bytes() {
        if plain(byte) {
            segment.push(char::from(byte));
        } else {
            segment.push_str(&format!("_{byte:02x}"));
        }
    }
    Ok(segment)
}

/// DV-2: why `addr` may not be used with the dev provider. `what` is what would have been done, such as `listen on`.
pub fn refuse_non_loopback(what: &str, addr: impl fmt::Display) -> Explained {
    Explained::new(
        Code::Usage,
        format!("the dev identity provider refuses to {what} {addr}: not a loopback address"),
    )
    .cause("development certificates come from a CA that any process of this user can sign with")
    .hint(
        "use a provider made for networks: files, spiffe, vault or exec (--server-identity on the access point, \
         --identity on the executor); or, for a trial among machines that share a copied dev CA, --dev-allow-remote",
    )
}

/// 127 random bits and a zero in front: positive and within 20 octets (RFC 5280 §4.1.2.2).
fn random_serial() -> SerialNumber {
    let mut bytes = rand::random::<u128>().to_be_bytes();
    if let Some(first) = bytes.first_mut() {
        *first = (*first & 0x7F) | 0x40;
    }
    SerialNumber::from_slice(&bytes)
}
