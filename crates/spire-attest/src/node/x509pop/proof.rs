//! Proof of possession: a signature over two nonces, one of each side.

use ah_identity_provider::{KeyKind, PrivateKey};
use ah_spire_wire::der::Writer;
use aws_lc_rs::digest::{self, Digest, SHA256, SHA384};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair as RsaKeyPair;
use aws_lc_rs::signature::{
    self, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair, RsaPssSaltLength, UnparsedPublicKey,
    VerificationAlgorithm,
};
use rustls_pki_types::PrivateKeyDer;

use crate::node::binary::without_zeros;
use crate::node::messages::{Bytes, NONCE, nonce};
use crate::node::x509pop::messages::{Challenge, EcdsaSignature, Nonce, Response, RsaSignature};

/// A curve that keys may be on, with the algorithms of its proof: ECDSA over a SHA-256 digest, whatever the curve.
#[derive(Clone, Copy)]
enum Curve {
    P256,
    P384,
    P521,
}

impl Curve {
    const ALL: [Self; 3] = [Self::P256, Self::P384, Self::P521];

    fn verification(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::P256 => &signature::ECDSA_P256_SHA256_ASN1,
            Self::P384 => &signature::ECDSA_P384_SHA256_ASN1,
            Self::P521 => &signature::ECDSA_P521_SHA256_ASN1,
        }
    }

    fn signing(self) -> &'static EcdsaSigningAlgorithm {
        match self {
            Self::P256 => &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
            Self::P384 => &signature::ECDSA_P384_SHA384_FIXED_SIGNING,
            Self::P521 => &signature::ECDSA_P521_SHA256_FIXED_SIGNING,
        }
    }

    /// The digest to sign. For P-384 there is no signing with SHA-256: ECDSA reads the digest as a number, which
    /// leading zeros leave as it is.
    fn digest(self, both: &[u8]) -> Option<Digest> {
        let digest = digest::digest(&SHA256, both);
        if !matches!(self, Self::P384) {
            return Some(digest);
        }
        let mut wide = vec![0; SHA384.output_len().checked_sub(SHA256.output_len())?];
        wide.extend_from_slice(digest.as_ref());
        Digest::import_less_safe(&wide, &SHA384).ok()
    }
}

/// The public key of a leaf.
pub(in crate::node) enum PublicKey {
    Rsa(Vec<u8>),
    Ecdsa(PublicPoint),
}

/// A point on a curve.
pub(in crate::node) struct PublicPoint {
    curve: Curve,
    point: Vec<u8>,
}

impl PublicKey {
    /// The key of `kind` whose bits in SubjectPublicKeyInfo are `bits`, where it can prove anything here.
    pub(super) fn new(kind: &KeyKind, bits: &[u8]) -> Option<Self> {
        let curve = match kind {
            KeyKind::Rsa(_) => return Some(Self::Rsa(bits.to_vec())),
            KeyKind::Ecdsa(256) => Curve::P256,
            KeyKind::Ecdsa(384) => Curve::P384,
            KeyKind::Ecdsa(521) => Curve::P521,
            _ => return None,
        };
        let point = bits.to_vec();
        Some(Self::Ecdsa(PublicPoint { curve, point }))
    }

    /// Whether `signed` is a signature of this key over `data`, with SHA-256: RSASSA-PKCS1-v1_5, or ECDSA in DER.
    pub(in crate::node) fn signed(&self, data: &[u8], signed: &[u8]) -> bool {
        let algorithm: &'static dyn VerificationAlgorithm = match self {
            Self::Rsa(_) => &signature::RSA_PKCS1_2048_8192_SHA256,
            Self::Ecdsa(point) => point.curve.verification(),
        };
        let key = UnparsedPublicKey::new(algorithm, self.bits());
        key.verify(data, signed).is_ok()
    }

    fn bits(&self) -> &[u8] {
        match self {
            Self::Rsa(bits) => bits,
            Self::Ecdsa(point) => &point.point,
        }
    }

    /// A challenge that the holder of the private key can answer.
    pub(super) fn challenge(&self) -> Result<Challenge, &'static str> {
        let nonce = Some(Nonce {
            nonce: Bytes(nonce()?),
        });
        Ok(match self {
            Self::Rsa(_) => Challenge {
                rsa_signature: nonce,
                ecdsa_signature: None,
            },
            Self::Ecdsa(_) => Challenge {
                rsa_signature: None,
                ecdsa_signature: nonce,
            },
        })
    }

    /// Whether `response` answers `challenge`, and if not, why.
    pub(super) fn verify(
        &self,
        challenge: &Challenge,
        response: &Response,
    ) -> Result<(), &'static str> {
        match self {
            Self::Rsa(key) => {
                let challenge = challenge.rsa_signature.as_ref();
                let challenge = challenge.ok_or("expecting RSA challenge")?;
                let response = response.rsa_signature.as_ref();
                verify_rsa(key, challenge, response.ok_or("expecting RSA response")?)
            }
            Self::Ecdsa(key) => {
                let challenge = challenge.ecdsa_signature.as_ref();
                let challenge = challenge.ok_or("expecting ECDSA challenge")?;
                let response = response.ecdsa_signature.as_ref();
                verify_ecdsa(key, challenge, response.ok_or("expecting ECDSA response")?)
            }
        }
    }
}

fn verify_rsa(key: &[u8], challenge: &Nonce, response: &RsaSignature) -> Result<(), &'static str> {
    let both = combine(challenge, &response.nonce)?;
    let signature = &response.signature.0;
    // Go signs with the longest salt there is room for, and in FIPS mode, as we do, with one of the digest's length.
    let long =
        &const { signature::RSA_PSS_2048_8192_SHA256.with_pss_salt_length(RsaPssSaltLength::Max) };
    let verifies = |algorithm: &'static dyn VerificationAlgorithm| {
        let key = UnparsedPublicKey::new(algorithm, key);
        key.verify(&both, signature).is_ok()
    };
    if verifies(long) || verifies(&signature::RSA_PSS_2048_8192_SHA256) {
        Ok(())
    } else {
        Err("RSA signature verify failed")
    }
}

fn verify_ecdsa(
    key: &PublicPoint,
    challenge: &Nonce,
    response: &EcdsaSignature,
) -> Result<(), &'static str> {
    let both = combine(challenge, &response.nonce)?;
    let failed = "ECDSA signature verify failed";
    let signature = ecdsa_der(&response.r.0, &response.s.0);
    let key = UnparsedPublicKey::new(key.curve.verification(), &key.point);
    key.verify(&both, &signature).map_err(|_| failed)
}

/// A private key that can prove itself.
pub(super) enum Prover {
    Rsa(Box<RsaKeyPair>),
    Ecdsa(PrivatePoint),
}

/// A private key on a curve.
pub(super) struct PrivatePoint {
    curve: Curve,
    pair: EcdsaKeyPair,
}

impl Prover {
    /// The prover of `key`, where it is of a kind that can be proven.
    pub(super) fn new(key: &PrivateKey) -> Option<Self> {
        let der = key.der();
        let rsa = match &der {
            PrivateKeyDer::Pkcs8(key) => RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()).ok(),
            PrivateKeyDer::Pkcs1(key) => RsaKeyPair::from_der(key.secret_pkcs1_der()).ok(),
            _ => None,
        };
        if let Some(pair) = rsa {
            return Some(Self::Rsa(Box::new(pair)));
        }
        Curve::ALL.into_iter().find_map(|curve| {
            let pair =
                EcdsaKeyPair::from_private_key_der(curve.signing(), der.secret_der()).ok()?;
            Some(Self::Ecdsa(PrivatePoint { curve, pair }))
        })
    }

    /// Whether `public` is the other half.
    pub(super) fn matches(&self, public: &PublicKey) -> bool {
        let own = match self {
            Self::Rsa(pair) => pair.public_key().as_ref(),
            Self::Ecdsa(point) => point.pair.public_key().as_ref(),
        };
        own == public.bits()
    }

    /// The answer to `challenge`, or why there is none.
    pub(super) fn respond(&self, challenge: &Challenge) -> Result<Response, &'static str> {
        let own = Bytes(nonce()?);
        let broken = "signing failed";
        match self {
            Self::Rsa(pair) => {
                let challenge = challenge.rsa_signature.as_ref();
                let both = combine(challenge.ok_or("expecting RSA challenge")?, &own)?;
                let mut signature = vec![0; pair.public_modulus_len()];
                let algorithm = &signature::RSA_PSS_SHA256;
                pair.sign(algorithm, &SystemRandom::new(), &both, &mut signature)
                    .map_err(|_| broken)?;
                Ok(Response {
                    rsa_signature: Some(RsaSignature {
                        nonce: own,
                        signature: Bytes(signature),
                    }),
                    ecdsa_signature: None,
                })
            }
            Self::Ecdsa(point) => {
                let challenge = challenge.ecdsa_signature.as_ref();
                let both = combine(challenge.ok_or("expecting ECDSA challenge")?, &own)?;
                let digest = point.curve.digest(&both).ok_or(broken)?;
                let signature = point.pair.sign_digest(&digest).map_err(|_| broken)?;
                let fixed = signature.as_ref();
                let (r, s) = fixed
                    .split_at_checked(fixed.len() / 2)
                    .ok_or("signing failed")?;
                Ok(Response {
                    rsa_signature: None,
                    ecdsa_signature: Some(EcdsaSignature {
                        nonce: own,
                        r: Bytes(without_zeros(r).to_vec()),
                        s: Bytes(without_zeros(s).to_vec()),
                    }),
                })
            }
        }
    }
}

/// What is signed: the server's nonce, then the agent's.
fn combine(challenge: &Nonce, response: &Bytes) -> Result<Vec<u8>, &'static str> {
    if challenge.nonce.0.len() != NONCE {
        return Err("invalid challenge nonce");
    }
    if response.0.len() != NONCE {
        return Err("invalid response nonce");
    }
    Ok([challenge.nonce.0.as_slice(), &response.0].concat())
}

/// Both numbers of an ECDSA signature (big-endian) in DER (RFC 3279 §2.2.3).
pub(in crate::node) fn ecdsa_der(r: &[u8], s: &[u8]) -> Vec<u8> {
    let mut out = Writer::with_capacity(r.len().saturating_add(s.len()).saturating_add(16));
    out.sequence(|out| {
        out.unsigned(r);
        out.unsigned(s);
    });
    out.finish()
}
