//! Structures of TPM 2.0 Part 2, as far as they are needed here.

use ah_identity_provider::KeyKind;
use aws_lc_rs::digest::{SHA256, digest};
use x509_parser::certificate::X509Certificate;
use x509_parser::public_key::PublicKey;

use crate::node::binary::{Reader, padded, without_zeros};

pub(super) const RSA: u16 = 0x0001;
const AES: u16 = 0x0006;
pub(super) const ALG_SHA256: u16 = 0x000b;
pub(super) const NULL: u16 = 0x0010;
pub(super) const RSASSA: u16 = 0x0014;
const RSAES: u16 = 0x0015;
pub(super) const ECDSA: u16 = 0x0018;
const ECDAA: u16 = 0x001a;
pub(super) const ECC: u16 = 0x0023;
const CFB: u16 = 0x0043;

/// TPMA_OBJECT
pub(super) const FIXED_TPM: u32 = 1 << 1;
pub(super) const FIXED_PARENT: u32 = 1 << 4;
pub(super) const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
const USER_WITH_AUTH: u32 = 1 << 6;
const ADMIN_WITH_POLICY: u32 = 1 << 7;
const NO_DA: u32 = 1 << 10;
pub(super) const RESTRICTED: u32 = 1 << 16;
pub(super) const DECRYPT: u32 = 1 << 17;
pub(super) const SIGN: u32 = 1 << 18;

/// What a key has that a TPM made and never gives out.
pub(super) const RESIDENT: u32 = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN;

/// PolicySecret of the endorsement hierarchy (TCG EK Credential Profile, B.6.2).
const EK_POLICY: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24,
    0xfd, 0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];

/// The exponent that 0 stands for.
const DEFAULT_EXPONENT: u32 = 65_537;

/// Writes `bytes` with their size in front (TPM2B).
pub(super) fn put_sized(out: &mut Vec<u8>, bytes: &[u8]) {
    let size = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&size.to_be_bytes());
    out.extend_from_slice(bytes);
}

impl<'a> Reader<'a> {
    /// Bytes with their size in front (TPM2B).
    pub(super) fn sized(&mut self) -> Result<&'a [u8], &'static str> {
        let size = usize::from(self.u16()?);
        self.take(size)
    }
}

/// A curve of NIST.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Curve {
    id: u16,
    bits: usize,
}

const CURVES: [Curve; 3] = [
    Curve { id: 3, bits: 256 },
    Curve { id: 4, bits: 384 },
    Curve { id: 5, bits: 521 },
];

/// A public key. Numbers are big-endian, without leading zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Rsa {
        modulus: Vec<u8>,
        exponent: u32,
    },
    /// The point is not compressed.
    Ecc {
        curve: Curve,
        point: Vec<u8>,
    },
}

impl Key {
    /// The public key in `certificate`, where it is of a kind that is taken.
    pub(super) fn of(certificate: &X509Certificate<'_>, kind: &KeyKind) -> Option<Self> {
        match (certificate.public_key().parsed().ok()?, kind) {
            (PublicKey::RSA(key), _) => {
                let exponent = padded(without_zeros(key.exponent), 4)?;
                Some(Self::Rsa {
                    modulus: without_zeros(key.modulus).to_vec(),
                    exponent: u32::from_be_bytes(exponent.try_into().ok()?),
                })
            }
            (PublicKey::EC(point), KeyKind::Ecdsa(bits)) => Some(Self::Ecc {
                curve: CURVES.into_iter().find(|curve| curve.bits == *bits)?,
                point: point.data().to_vec(),
            }),
            _ => None,
        }
    }
}

/// The public area of a key (TPMT_PUBLIC).
#[derive(Clone, Debug)]
pub(super) struct Public {
    /// As it came.
    pub(super) bytes: Vec<u8>,
    pub(super) key: Key,
    pub(super) attributes: u32,
    /// Algorithm and digest of signatures; none where they are left to each signature.
    pub(super) scheme: Option<(u16, u16)>,
    /// Whether its children are protected by AES-128 in CFB mode.
    pub(super) aes128: bool,
    name_alg: u16,
}

impl Public {
    /// The error is a text.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut reader = Reader::new(bytes);
        let kind = reader.u16()?;
        if kind != RSA && kind != ECC {
            return Err(format!(
                "a key of type {kind:#06x} is not taken, but RSA and ECC alone"
            ));
        }
        let name_alg = reader.u16()?;
        let attributes = reader.u32()?;
        let _policy = reader.sized()?;
        let symmetric = match reader.u16()? {
            NULL => None,
            algorithm => Some((algorithm, reader.u16()?, reader.u16()?)),
        };
        let scheme = match reader.u16()? {
            NULL => None,
            RSAES => Some((RSAES, NULL)),
            ECDAA => {
                let hash = reader.u16()?;
                let _count = reader.u16()?;
                Some((ECDAA, hash))
            }
            algorithm => Some((algorithm, reader.u16()?)),
        };
        let key = if kind == RSA {
            let _bits = reader.u16()?;
            let exponent = match reader.u32()? {
                0 => DEFAULT_EXPONENT,
                exponent => exponent,
            };
            let modulus = without_zeros(reader.sized()?).to_vec();
            Key::Rsa { modulus, exponent }
        } else {
            let id = reader.u16()?;
            if reader.u16()? != NULL {
                let _hash = reader.u16()?;
            }
            let (x, y) = (reader.sized()?, reader.sized()?);
            let curve = CURVES.into_iter().find(|curve| curve.id == id);
            let curve = curve.ok_or_else(|| format!("the curve {id:#06x} is not taken"))?;
            let length = curve.bits.div_ceil(8);
            let numbers = [x, y].map(|number| padded(without_zeros(number), length));
            let [Some(x), Some(y)] = numbers else {
                return Err("a number of the point is too large".into());
            };
            let point = [vec![0x04], x, y].concat();
            Key::Ecc { curve, point }
        };
        reader.end()?;
        Ok(Self {
            bytes: bytes.to_vec(),
            key,
            attributes,
            scheme,
            aes128: symmetric == Some((AES, 128, CFB)),
            name_alg,
        })
    }

    /// What the TPM calls it (Part 1, 16): the digest of its public area, with the digest's algorithm.
    pub(super) fn name(&self) -> Result<Vec<u8>, String> {
        if self.name_alg != ALG_SHA256 {
            return Err(format!(
                "its name is a digest of algorithm {:#06x}, and not SHA-256",
                self.name_alg
            ));
        }
        let digest = digest(&SHA256, &self.bytes);
        Ok([&ALG_SHA256.to_be_bytes(), digest.as_ref()].concat())
    }

    pub(super) fn has(&self, attributes: u32) -> bool {
        self.attributes & attributes == attributes
    }

    /// Whether it signs as is verified here: RSASSA-PKCS1-v1_5 or ECDSA, with SHA-256.
    pub(super) fn signs_with_sha256(&self) -> bool {
        let algorithm = match self.key {
            Key::Rsa { .. } => RSASSA,
            Key::Ecc { .. } => ECDSA,
        };
        self.has(SIGN) && self.scheme == Some((algorithm, ALG_SHA256))
    }
}

/// A key to be made.
struct Template {
    attributes: u32,
    policy: &'static [u8],
    scheme: Option<u16>,
}

impl Template {
    fn rsa(&self, unique: &[u8]) -> Vec<u8> {
        let mut out = self.head(RSA);
        out.extend_from_slice(&2048_u16.to_be_bytes());
        out.extend_from_slice(&0_u32.to_be_bytes());
        put_sized(&mut out, unique);
        out
    }

    fn ecc(&self) -> Vec<u8> {
        let mut out = self.head(ECC);
        let p256 = 3_u16;
        for word in [p256, NULL, 0, 0] {
            out.extend_from_slice(&word.to_be_bytes());
        }
        out
    }

    fn head(&self, kind: u16) -> Vec<u8> {
        let mut out = Vec::new();
        let words = |out: &mut Vec<u8>, words: &[u16]| {
            out.extend(words.iter().flat_map(|word| word.to_be_bytes()));
        };
        words(&mut out, &[kind, ALG_SHA256]);
        out.extend_from_slice(&self.attributes.to_be_bytes());
        put_sized(&mut out, self.policy);
        match self.scheme {
            None => words(&mut out, &[AES, 128, CFB, NULL]),
            Some(scheme) => words(&mut out, &[NULL, scheme, ALG_SHA256]),
        }
        out
    }
}

/// The storage root key whose children are keys of the type `kind`: templates H-1 and H-2 of the TCG EK Credential
/// Profile, as those who provision LDevID keys for SPIRE use them.
pub(super) fn storage_root(kind: u16) -> Vec<u8> {
    let template = Template {
        attributes: RESIDENT | USER_WITH_AUTH | NO_DA | RESTRICTED | DECRYPT,
        policy: &[],
        scheme: None,
    };
    if kind == RSA {
        template.rsa(&[])
    } else {
        template.ecc()
    }
}

/// The endorsement key: template L-1 of the TCG EK Credential Profile.
pub(super) fn endorsement() -> Vec<u8> {
    let template = Template {
        attributes: RESIDENT | ADMIN_WITH_POLICY | RESTRICTED | DECRYPT,
        policy: &EK_POLICY,
        scheme: None,
    };
    template.rsa(&[0; 256])
}

/// An attestation key, which signs what the TPM says alone.
pub(super) fn attestation() -> Vec<u8> {
    let template = Template {
        attributes: RESIDENT | USER_WITH_AUTH | RESTRICTED | SIGN,
        policy: &[],
        scheme: Some(RSASSA),
    };
    template.rsa(&[])
}

/// A signature (TPMT_SIGNATURE).
pub(super) enum Signature<'a> {
    Rsassa(&'a [u8]),
    Ecdsa { r: &'a [u8], s: &'a [u8] },
}

impl<'a> Signature<'a> {
    /// One with SHA-256. The error is a text.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let mut reader = Reader::new(bytes);
        let (algorithm, hash) = (reader.u16()?, reader.u16()?);
        let signature = match (algorithm, hash) {
            (RSASSA, ALG_SHA256) => Self::Rsassa(reader.sized()?),
            (ECDSA, ALG_SHA256) => Self::Ecdsa {
                r: reader.sized()?,
                s: reader.sized()?,
            },
            _ => {
                return Err(format!(
                    "a signature of algorithm {algorithm:#06x} with digest {hash:#06x} is not taken"
                ));
            }
        };
        reader.end()?;
        Ok(signature)
    }
}

/// The name of the key that a statement of a TPM is about (TPMS_ATTEST of TPM2_Certify). The error is a text.
pub(super) fn certified_name(statement: &[u8]) -> Result<&[u8], String> {
    /// What a restricted key signs begins with it only where the TPM itself wrote it.
    const GENERATED: u32 = 0xff54_4347;
    const CERTIFY: u16 = 0x8017;

    let mut reader = Reader::new(statement);
    if reader.u32()? != GENERATED {
        return Err("it is no statement of a TPM".into());
    }
    if reader.u16()? != CERTIFY {
        return Err("missing certify info".into());
    }
    let _signer = reader.sized()?;
    let _extra = reader.sized()?;
    let clock_and_firmware = 17 + 8;
    reader.take(clock_and_firmware)?;
    let name = reader.sized()?;
    let _qualified = reader.sized()?;
    reader.end()?;
    Ok(name)
}
