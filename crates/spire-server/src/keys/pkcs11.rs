//! Key manager `pkcs11`: keys in a hardware security module, or whatever else has a PKCS #11 module (version 2.40).
//!
//! The keys are made on the token, sensitive and not extractable, and sign there. They are labelled `SERVER-UUID-ID`;
//! the UUID is of version 7, which tells the newer of two.

mod session;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ah_spire_wire::der::{self, Writer};
use ah_spire_wire::{KeyKind, curve_oid, ec_spki, rsa_spki};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, ObjectClass};
use cryptoki::session::Session;
use tokio::sync::Semaphore;
use uuid::Uuid;

use self::session::{Fault, Sessions};
use super::identifier::{Identifier, name_of, parts_of};
use super::remote::{Held, Place, digest_of, ecdsa_der, kind_of};
use super::{KeyError, KeyType};

/// So many calls go to the module at a time. Those of a module that hangs hold their threads until it answers.
const CALLS: usize = 16;

/// Which module and token, and whose keys they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pkcs11Settings {
    /// The module, a shared library.
    pub module: PathBuf,
    /// The token.
    pub token: TokenName,
    /// Where the user's PIN is.
    pub pin: Pin,
    /// Letters, digits, `.`, `_` and `-`: it is the begin of all labels.
    pub server: Identifier,
}

/// By what a token is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenName {
    /// Its label, wherever it is.
    Label(String),
    /// The number of its slot.
    Slot(u64),
}

/// Where a PIN is. It is read for each login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pin {
    /// The first line of a file.
    File(PathBuf),
    /// A variable of the environment.
    Variable(String),
}

/// The keys of one server on a token.
pub struct Pkcs11 {
    sessions: Arc<Sessions>,
    server: String,
    calls: Arc<Semaphore>,
}

impl Pkcs11 {
    /// The token of `settings`. The module is loaded, and nothing is asked of it yet. Blocks.
    ///
    /// # Errors
    /// The module cannot be loaded.
    pub fn new(settings: Pkcs11Settings) -> Result<Self, KeyError> {
        let server = settings.server.read()?;
        Ok(Self {
            sessions: Arc::new(Sessions::new(
                settings.module,
                settings.token,
                settings.pin,
            )?),
            server,
            calls: Arc::new(Semaphore::new(CALLS)),
        })
    }

    /// Does `work` where it may block.
    async fn call<T: Send + 'static>(
        &self,
        work: impl Fn(&Session) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, KeyError> {
        let gone = || KeyError::Failed("PKCS #11: the call was interrupted".into());
        let permit = self.calls.clone().acquire_owned().await;
        let permit = permit.map_err(|_| gone())?;
        let sessions = self.sessions.clone();
        let done = tokio::task::spawn_blocking(move || {
            let done = sessions.with(work);
            drop(permit);
            done
        });
        done.await.map_err(|_| gone())?
    }
}

#[tonic::async_trait]
impl Place for Pkcs11 {
    async fn list(&self) -> Result<Vec<Held>, KeyError> {
        let server = self.server.clone();
        let listed = self.call(move |session| {
            let mut all = Vec::new();
            let publics = [
                Attribute::Class(ObjectClass::PUBLIC_KEY),
                Attribute::Token(true),
            ];
            for object in session.find_objects(&publics)? {
                let label = session.get_attributes(object, &[AttributeType::Label])?;
                let Some(Attribute::Label(label)) = label.into_iter().next() else {
                    continue;
                };
                let Ok(label) = String::from_utf8(label) else {
                    continue;
                };
                // A public half alone is of a deletion that did not come to its end.
                if let Some((unique, id)) = parts_of(&server, &label)
                    && session
                        .find_objects(&named(ObjectClass::PRIVATE_KEY, &label))?
                        .len()
                        == 1
                {
                    all.push((label.clone(), id.to_owned(), unique, read(session, object)?));
                }
            }
            Ok(all)
        });
        let listed = listed.await?.into_iter();
        let held = listed.map(|(label, id, unique, spki)| held(label, &id, unique, spki));
        held.collect()
    }

    async fn create(&self, id: &str, kind: KeyType) -> Result<Held, KeyError> {
        let unique = Uuid::now_v7();
        let label = name_of(&self.server, unique, id);
        let named = label.clone();
        let spki = self.call(move |session| generate(session, &named, unique, kind));
        held(label, id, unique, spki.await?)
    }

    async fn sign(&self, key: &Held, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let (label, kind) = (key.handle.clone(), key.kind);
        // Tokens hash for RSA, and there alone all of them can.
        let data = match kind {
            KeyType::EcP256 | KeyType::EcP384 => digest_of(kind, message),
            KeyType::Rsa2048 | KeyType::Rsa4096 => message.to_vec(),
        };
        let signature = self.call(move |session| {
            let found = session.find_objects(&named(ObjectClass::PRIVATE_KEY, &label))?;
            let [object] = found.as_slice() else {
                return Err(Fault::Missing(label.clone()));
            };
            let mechanism = match kind {
                KeyType::EcP256 | KeyType::EcP384 => Mechanism::Ecdsa,
                KeyType::Rsa2048 | KeyType::Rsa4096 => Mechanism::Sha256RsaPkcs,
            };
            Ok(session.sign(&mechanism, *object, &data)?)
        });
        let signature = signature.await?;
        Ok(match kind {
            KeyType::EcP256 | KeyType::EcP384 => ecdsa_der(&signature),
            KeyType::Rsa2048 | KeyType::Rsa4096 => signature,
        })
    }

    async fn delete(&self, handle: &str) -> Result<(), KeyError> {
        let label = handle.to_owned();
        let deleted = self.call(move |session| {
            for class in [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY] {
                for object in session.find_objects(&named(class, &label))? {
                    session.destroy_object(object)?;
                }
            }
            Ok(())
        });
        deleted.await
    }
}

fn named(class: ObjectClass, label: &str) -> [Attribute; 3] {
    [
        Attribute::Class(class),
        Attribute::Token(true),
        Attribute::Label(label.as_bytes().to_vec()),
    ]
}

fn held(label: String, id: &str, unique: Uuid, spki: Vec<u8>) -> Result<Held, KeyError> {
    let kind = kind_of(&spki).ok_or_else(|| {
        KeyError::Failed(format!(
            "PKCS #11: key {label} is none of RSA 2048, RSA 4096, EC P-256 and EC P-384"
        ))
    })?;
    let made = unique.get_timestamp().map(|at| {
        let (seconds, nanos) = at.to_unix();
        SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
    });
    Ok(Held {
        handle: label,
        id: id.to_owned(),
        kind,
        spki,
        made: made.flatten().unwrap_or(SystemTime::UNIX_EPOCH),
    })
}

fn generate(session: &Session, label: &str, unique: Uuid, kind: KeyType) -> Result<Vec<u8>, Fault> {
    let both = [
        Attribute::Token(true),
        Attribute::Label(label.as_bytes().to_vec()),
        Attribute::Id(unique.as_bytes().to_vec()),
    ];
    let mut public = both.to_vec();
    public.extend([Attribute::Private(false), Attribute::Verify(true)]);
    let mut private = both.to_vec();
    private.extend([
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
    ]);
    let rsa = |bits: u64| {
        [
            Attribute::ModulusBits(bits.into()),
            Attribute::PublicExponent(vec![1, 0, 1]),
        ]
    };
    let mechanism = match kind {
        KeyType::Rsa2048 => {
            public.extend(rsa(2048));
            Mechanism::RsaPkcsKeyPairGen
        }
        KeyType::Rsa4096 => {
            public.extend(rsa(4096));
            Mechanism::RsaPkcsKeyPairGen
        }
        KeyType::EcP256 => {
            public.push(Attribute::EcParams(curve(KeyKind::EcP256)));
            Mechanism::EccKeyPairGen
        }
        KeyType::EcP384 => {
            public.push(Attribute::EcParams(curve(KeyKind::EcP384)));
            Mechanism::EccKeyPairGen
        }
    };
    let (object, _) = session.generate_key_pair(&mechanism, &public, &private)?;
    read(session, object)
}

fn curve(kind: KeyKind) -> Vec<u8> {
    let mut oid = Writer::default();
    oid.primitive(der::OID, curve_oid(kind).unwrap_or_default());
    oid.finish()
}

/// SubjectPublicKeyInfo of a public key.
fn read(session: &Session, object: cryptoki::object::ObjectHandle) -> Result<Vec<u8>, Fault> {
    let wanted = [
        AttributeType::Modulus,
        AttributeType::PublicExponent,
        AttributeType::EcParams,
        AttributeType::EcPoint,
    ];
    // What a key has none of is left out.
    let (mut numbers, mut on_curve) = ((None, None), (None, None));
    for attribute in session.get_attributes(object, &wanted)? {
        match attribute {
            Attribute::Modulus(n) => numbers.0 = Some(n),
            Attribute::PublicExponent(e) => numbers.1 = Some(e),
            Attribute::EcParams(params) => on_curve.0 = Some(params),
            Attribute::EcPoint(point) => on_curve.1 = Some(point),
            _ => {}
        }
    }
    let spki = match (numbers, on_curve) {
        ((Some(n), Some(e)), _) => rsa_spki(&n, &e),
        (_, (Some(params), Some(point))) => {
            let kinds = [KeyKind::EcP256, KeyKind::EcP384];
            let kind = kinds.into_iter().find(|kind| curve(*kind) == params);
            ec_spki(kind.unwrap_or(KeyKind::Ed25519), point_of(&point))
        }
        _ => return Err(Fault::Strange("a public key without its numbers".into())),
    };
    spki.map_err(|error| Fault::Strange(format!("a public key that cannot be used: {error}")))
}

/// A point is in an OCTET STRING; modules that are older than that rule leave it out.
fn point_of(attribute: &[u8]) -> &[u8] {
    match attribute {
        [0x04, length, point @ ..] if usize::from(*length) == point.len() => point,
        bare => bare,
    }
}
