//! Public keys, and what they verify.

use aws_lc_rs::signature::{
    self, EcdsaSigningAlgorithm, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
    VerificationAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::node::binary::{Reader, padded};
use crate::node::sshpop::messages::Signature;

pub(super) const RSA: &str = "ssh-rsa";
pub(super) const RSA_SHA256: &str = "rsa-sha2-256";
pub(super) const RSA_SHA512: &str = "rsa-sha2-512";
pub(super) const ED25519: &str = "ssh-ed25519";

const SERVED: &str = "taken are RSA, ECDSA on NIST's curves and Ed25519";

/// A curve of NIST, with the algorithms of SSH (RFC 5656 §6.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Curve {
    P256,
    P384,
    P521,
}

impl Curve {
    pub(super) const ALL: [Self; 3] = [Self::P256, Self::P384, Self::P521];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::P256 => "nistp256",
            Self::P384 => "nistp384",
            Self::P521 => "nistp521",
        }
    }

    /// Of its keys, and of their signatures.
    pub(super) fn algorithm(self) -> &'static str {
        match self {
            Self::P256 => "ecdsa-sha2-nistp256",
            Self::P384 => "ecdsa-sha2-nistp384",
            Self::P521 => "ecdsa-sha2-nistp521",
        }
    }

    /// Length of a number, in bytes.
    pub(super) fn length(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    pub(super) fn signing(self) -> &'static EcdsaSigningAlgorithm {
        match self {
            Self::P256 => &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
            Self::P384 => &signature::ECDSA_P384_SHA384_FIXED_SIGNING,
            Self::P521 => &signature::ECDSA_P521_SHA512_FIXED_SIGNING,
        }
    }

    fn verification(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::P256 => &signature::ECDSA_P256_SHA256_FIXED,
            Self::P384 => &signature::ECDSA_P384_SHA384_FIXED,
            Self::P521 => &signature::ECDSA_P521_SHA512_FIXED,
        }
    }
}

/// A public key. Numbers are big-endian, without leading zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PublicKey {
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    /// The point is not compressed.
    Ecdsa {
        curve: Curve,
        point: Vec<u8>,
    },
    Ed25519(Vec<u8>),
}

/// Whether signatures over SHA-1 count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sha1 {
    Refused,
    Taken,
}

impl PublicKey {
    /// A key that stands alone. The error is a text.
    pub(super) fn read(blob: &[u8]) -> Result<Self, String> {
        let mut reader = Reader::new(blob);
        let kind = reader.text()?;
        if certified(kind).is_some() {
            return Err("it is a certificate, not a key".into());
        }
        let key = Self::read_fields(kind, &mut reader)?;
        reader.end()?;
        Ok(key)
    }

    /// The fields of a key of `kind`, as they stand in keys and certificates.
    pub(super) fn read_fields(kind: &str, reader: &mut Reader<'_>) -> Result<Self, String> {
        if kind == RSA {
            let (exponent, modulus) = (reader.mpint()?.to_vec(), reader.mpint()?.to_vec());
            return Ok(Self::Rsa { modulus, exponent });
        }
        if kind == ED25519 {
            return Ok(Self::Ed25519(reader.string()?.to_vec()));
        }
        let curve = Curve::ALL.into_iter().find(|it| it.algorithm() == kind);
        let curve =
            curve.ok_or_else(|| format!("a key of type {kind:?} is not taken; {SERVED}"))?;
        if reader.string()? != curve.name().as_bytes() {
            return Err(format!("the curve of a key is not that of its type {kind}"));
        }
        let point = reader.string()?.to_vec();
        Ok(Self::Ecdsa { curve, point })
    }

    /// Whether `signature` is of this key, and over `data`. The error is a text.
    pub(super) fn verify(
        &self,
        data: &[u8],
        signature: &Signature,
        sha1: Sha1,
    ) -> Result<(), String> {
        let (format, blob) = (signature.format.as_str(), signature.blob.0.as_slice());
        let other = || format!("a signature of type {format:?} is not of this key's type");
        let verified = match self {
            Self::Rsa { modulus, exponent } => {
                let algorithm: &RsaParameters = match format {
                    RSA_SHA256 => &signature::RSA_PKCS1_2048_8192_SHA256,
                    RSA_SHA512 => &signature::RSA_PKCS1_2048_8192_SHA512,
                    RSA if sha1 == Sha1::Taken => {
                        &signature::RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY
                    }
                    RSA => return Err("it is a signature over SHA-1 (ssh-rsa)".into()),
                    _ => return Err(other()),
                };
                let key = RsaPublicKeyComponents {
                    n: modulus,
                    e: exponent,
                };
                key.verify(algorithm, data, blob)
            }
            Self::Ecdsa { curve, point } if format == curve.algorithm() => {
                let numbers = numbers(*curve, blob)?;
                UnparsedPublicKey::new(curve.verification(), point).verify(data, &numbers)
            }
            Self::Ed25519(key) if format == ED25519 => {
                UnparsedPublicKey::new(&signature::ED25519, key).verify(data, blob)
            }
            _ => return Err(other()),
        };
        verified.map_err(|_| "signature does not verify".to_owned())
    }
}

/// Both numbers of an ECDSA signature (RFC 5656 §3.1.2), each as long as the curve's.
fn numbers(curve: Curve, blob: &[u8]) -> Result<Vec<u8>, String> {
    let mut reader = Reader::new(blob);
    let (r, s) = (reader.mpint()?, reader.mpint()?);
    reader.end()?;
    let both = [padded(r, curve.length()), padded(s, curve.length())];
    let [Some(r), Some(s)] = both else {
        return Err("a number in the signature is too large".into());
    };
    Ok([r, s].concat())
}

/// A signature as it stands in a certificate.
pub(super) fn read_signature(blob: &[u8]) -> Result<Signature, String> {
    let mut reader = Reader::new(blob);
    let format = reader.text()?.to_owned();
    let blob = reader.string()?.to_vec();
    reader.end()?;
    Ok(Signature {
        format,
        blob: crate::node::messages::Bytes(blob),
        rest: None,
    })
}

/// The kind of key in a certificate of the kind `kind`; none where that is no kind of certificate.
pub(super) fn certified(kind: &str) -> Option<&str> {
    kind.strip_suffix("-cert-v01@openssh.com")
}

/// The bytes in the first line of `text` that has a key, as in `authorized_keys` of sshd(8): options, type, base64,
/// comment. The type and that inside have to be the same.
pub(super) fn in_line(text: &str) -> Option<Vec<u8>> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| {
            let words = words(line);
            let mut pairs = words.windows(2).take(2);
            pairs.find_map(|pair| {
                let [kind, base64] = pair else { return None };
                let blob = STANDARD.decode(base64).ok()?;
                let same = Reader::new(&blob).string() == Ok(kind.as_bytes());
                same.then_some(blob)
            })
        })
}

/// `line` at its spaces, but for those inside quotes.
fn words(line: &str) -> Vec<&str> {
    let mut quoted = false;
    let mut before = ' ';
    let splits = |c: char| {
        quoted ^= c == '"' && before != '\\';
        before = c;
        !quoted && (c == ' ' || c == '\t')
    };
    line.split(splits).filter(|word| !word.is_empty()).collect()
}
