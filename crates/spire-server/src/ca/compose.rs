//! CredentialComposers: what may be changed in a certificate or a token before it is signed.

mod oid;

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Map, Value};
use spiffe::SpiffeId;

pub use oid::{NotAnOid, ObjectId};

use super::SignError;
use super::authority::{hex, to_unix};
use super::certificate;
use super::name::Subject;

/// `x500UniqueIdentifier`
const UNIQUE_ID: &str = "2.5.4.45";

/// What of a certificate a composer may change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct X509Attributes {
    /// The subject.
    pub subject: Subject,
    /// DNS SANs; of a CA none.
    pub dns_names: Vec<String>,
    /// Certificate policies; of a CA alone.
    pub policies: Vec<ObjectId>,
    /// Beside those that every certificate has.
    pub extensions: Vec<Extension>,
}

impl X509Attributes {
    /// With a subject alone.
    pub(super) fn of(subject: Subject) -> Self {
        Self {
            subject,
            ..Self::default()
        }
    }
}

/// An extension of a certificate (RFC 5280 §4.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Which.
    pub id: ObjectId,
    /// Whether who does not know it refuses the certificate.
    pub critical: bool,
    /// DER.
    pub value: Vec<u8>,
}

/// Whose X509-SVID it is.
#[derive(Clone, Copy, Debug)]
pub enum Holder<'a> {
    /// The server's own.
    Server,
    /// An agent's: SPIFFE ID and SubjectPublicKeyInfo (DER).
    Agent(&'a SpiffeId, &'a [u8]),
    /// A workload's, likewise.
    Workload(&'a SpiffeId, &'a [u8]),
}

/// Changes what is signed. What it does not care about it gives back as it is; an error keeps it from being signed.
pub trait Composer: Send + Sync + 'static {
    /// The plugin's name.
    fn name(&self) -> &str;

    /// A CA of this server or of one below it.
    fn x509_ca(&self, attributes: X509Attributes) -> Result<X509Attributes, String> {
        Ok(attributes)
    }

    /// An X509-SVID.
    fn x509_svid(
        &self,
        _: Holder<'_>,
        attributes: X509Attributes,
    ) -> Result<X509Attributes, String> {
        Ok(attributes)
    }

    /// The claims of a workload's JWT-SVID.
    fn jwt_svid(
        &self,
        _: &SpiffeId,
        claims: Map<String, Value>,
    ) -> Result<Map<String, Value>, String> {
        Ok(claims)
    }
}

/// The composers of a server, in the order of its file: each gets what the one before it made.
#[derive(Clone, Default)]
pub struct Composers(Vec<Arc<dyn Composer>>);

impl Composers {
    /// These, in this order.
    pub fn new(composers: Vec<Arc<dyn Composer>>) -> Self {
        Self(composers)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn x509_ca(
        &self,
        mut attributes: X509Attributes,
    ) -> Result<X509Attributes, SignError> {
        for composer in &self.0 {
            let composed = composer.x509_ca(attributes).and_then(checked);
            attributes = composed.map_err(|why| failed(composer.as_ref(), &why))?;
        }
        Ok(attributes)
    }

    pub(super) fn x509_svid(
        &self,
        of: Holder<'_>,
        mut attributes: X509Attributes,
    ) -> Result<X509Attributes, SignError> {
        for composer in &self.0 {
            let composed = composer.x509_svid(of, attributes).and_then(checked);
            attributes = composed.map_err(|why| failed(composer.as_ref(), &why))?;
        }
        Ok(attributes)
    }

    /// What comes out is the claims of a JWT-SVID of `id` (JWT-SVID §3).
    pub(super) fn jwt_svid(
        &self,
        id: &SpiffeId,
        mut claims: Map<String, Value>,
        now: SystemTime,
    ) -> Result<Map<String, Value>, SignError> {
        for composer in &self.0 {
            let composed = composer.jwt_svid(id, claims).and_then(|claims| {
                check_claims(&claims, id, to_unix(now))?;
                Ok(claims)
            });
            claims = composed.map_err(|why| failed(composer.as_ref(), &why))?;
        }
        Ok(claims)
    }
}

impl fmt::Debug for Composers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.0.iter().map(|composer| composer.name());
        f.debug_list().entries(names).finish()
    }
}

fn failed(composer: &dyn Composer, why: &str) -> SignError {
    let prefix = format!("credentialcomposer({}): ", composer.name());
    let why = why.strip_prefix(&prefix).unwrap_or(why);
    SignError::Failed(format!("{prefix}{why}"))
}

/// What makes a certificate an X509-SVID is not a composer's to replace: no peer would take the result (X509-SVID §4).
fn checked(attributes: X509Attributes) -> Result<X509Attributes, String> {
    for name in &attributes.dns_names {
        if name.is_empty() || !name.is_ascii() {
            return Err(format!("DNS name {name:?} is not ASCII text"));
        }
    }
    for (at, extension) in attributes.extensions.iter().enumerate() {
        let id = &extension.id;
        if certificate::is_own_extension(id.as_der()) {
            return Err(format!(
                "extension {id} is the server's own and cannot be replaced"
            ));
        }
        let before = attributes.extensions.iter().take(at);
        if { before }.any(|other| other.id == *id) {
            return Err(format!("extension {id} is there twice"));
        }
    }
    Ok(attributes)
}

fn check_claims(claims: &Map<String, Value>, id: &SpiffeId, now: i64) -> Result<(), String> {
    let subject = claims.get("sub").and_then(Value::as_str);
    if subject != Some(id.to_string().as_str()) {
        return Err(format!(
            "invalid JWT-SVID \"sub\" claim: expected \"{id}\" but got {subject:?}"
        ));
    }
    let audience = match claims.get("aud") {
        Some(Value::Array(all)) => all.iter().map(Value::as_str).collect(),
        Some(one) => vec![one.as_str()],
        None => Vec::new(),
    };
    if audience.is_empty() || audience.iter().any(|one| one.is_none_or(str::is_empty)) {
        return Err("invalid JWT-SVID \"aud\" claim: it has to name an audience".into());
    }
    match claims.get("exp").and_then(Value::as_i64) {
        Some(end) if end > now => {}
        Some(_) => return Err("invalid JWT-SVID \"exp\" claim: already expired".into()),
        None => return Err("invalid JWT-SVID \"exp\" claim: required but missing".into()),
    }
    match claims.get("nbf").map(Value::as_i64) {
        Some(Some(begin)) if begin > now => {
            Err("invalid JWT-SVID \"nbf\" claim: not yet valid".into())
        }
        Some(None) => Err("invalid JWT-SVID \"nbf\" claim: not a time".into()),
        _ => Ok(()),
    }
}

/// `uniqueid`: the subjects of workloads get an `x500UniqueIdentifier` of their SPIFFE ID.
#[derive(Clone, Copy, Debug)]
pub struct UniqueId;

impl Composer for UniqueId {
    fn name(&self) -> &str {
        "uniqueid"
    }

    fn x509_svid(
        &self,
        of: Holder<'_>,
        mut attributes: X509Attributes,
    ) -> Result<X509Attributes, String> {
        let Holder::Workload(id, _) = of else {
            return Ok(attributes);
        };
        let hash = digest(&SHA256, id.to_string().as_bytes());
        let value = hex(hash.as_ref().get(..16).unwrap_or_default());
        let kind: ObjectId = UNIQUE_ID
            .parse()
            .map_err(|error: NotAnOid| error.to_string())?;
        let extra = &mut attributes.subject.extra;
        match extra.iter_mut().find(|(other, _)| *other == kind) {
            Some((_, old)) => *old = value,
            None => extra.push((kind, value)),
        }
        Ok(attributes)
    }
}
