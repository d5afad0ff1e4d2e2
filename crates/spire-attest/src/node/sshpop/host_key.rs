//! The host's private key (PROTOCOL.key of OpenSSH, or PEM as older hosts have it).

use ah_identity_provider::pem::{self, PemError};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeyPairComponents, PublicKeyComponents};
use aws_lc_rs::signature::{EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA512};
use rustls_pki_types::PrivateKeyDer;
use zeroize::Zeroizing;

use crate::node::binary::{Reader, padded};
use crate::node::messages::{Bytes, NONCE};
use crate::node::sshpop::key::{Curve, ED25519, PublicKey, RSA, RSA_SHA512};
use crate::node::sshpop::messages::Signature;
use crate::node::sshpop::wire::put_mpint;

/// A private key that can sign.
pub(super) enum HostKey {
    Rsa(Box<RsaKeyPair>),
    Ecdsa(Curve, EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl HostKey {
    /// The key in the file that `text` is of. The error is a text.
    pub(super) fn read(text: &[u8]) -> Result<Self, String> {
        match pem::secret_block(text, "OPENSSH PRIVATE KEY") {
            Ok(Some(block)) => Self::read_openssh(&block),
            Ok(None) => Self::read_pem(text),
            Err(error) => Err(error.to_string()),
        }
    }

    fn read_openssh(block: &[u8]) -> Result<Self, String> {
        let mut reader = Reader::new(block);
        if reader.take(15)? != b"openssh-key-v1\0" {
            return Err("it is no key of OpenSSH's format, version 1".into());
        }
        let (cipher, _kdf, _options) = (reader.text()?, reader.string()?, reader.string()?);
        if cipher != "none" {
            return Err(format!(
                "it has a passphrase ({cipher}); take it off with: ssh-keygen -p -N '' -f FILE"
            ));
        }
        if reader.u32()? != 1 {
            return Err("it holds more than one key".into());
        }
        let _public = reader.string()?;
        let mut private = Reader::new(reader.string()?);
        reader.end()?;
        if private.u32()? != private.u32()? {
            return Err("it is damaged".into());
        }
        let damaged = "it is damaged, or of a size that is not taken";
        let kind = private.text()?;
        if kind == RSA {
            return rsa(&mut private)?.ok_or_else(|| damaged.into());
        }
        if kind == ED25519 {
            let (public, both) = (private.string()?, private.string()?);
            let seed = both.strip_suffix(public).ok_or(damaged)?;
            let pair = Ed25519KeyPair::from_seed_and_public_key(seed, public);
            return pair.map(Self::Ed25519).map_err(|_| damaged.into());
        }
        let curve = Curve::ALL.into_iter().find(|it| it.algorithm() == kind);
        let curve = curve.ok_or_else(|| format!("a key of type {kind:?} is not taken"))?;
        let (_name, point, number) = (private.string()?, private.string()?, private.mpint()?);
        let number = padded(number, curve.length()).map(Zeroizing::new);
        let number = number.ok_or(damaged)?;
        let pair = EcdsaKeyPair::from_private_key_and_public_key(curve.signing(), &number, point);
        let pair = pair.map_err(|_| damaged)?;
        Ok(Self::Ecdsa(curve, pair))
    }

    fn read_pem(text: &[u8]) -> Result<Self, String> {
        let key = pem::private_key(text, None).map_err(|error| match error {
            PemError::NoKey(_) => "it holds no private key".to_owned(),
            other => other.to_string(),
        })?;
        let der = key.der();
        let rsa = match &der {
            PrivateKeyDer::Pkcs8(key) => RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()).ok(),
            PrivateKeyDer::Pkcs1(key) => RsaKeyPair::from_der(key.secret_pkcs1_der()).ok(),
            _ => None,
        };
        if let Some(pair) = rsa {
            return Ok(Self::Rsa(Box::new(pair)));
        }
        for curve in Curve::ALL {
            let pair = EcdsaKeyPair::from_private_key_der(curve.signing(), der.secret_der());
            if let Ok(pair) = pair {
                return Ok(Self::Ecdsa(curve, pair));
            }
        }
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_der());
        pair.map(Self::Ed25519)
            .map_err(|_| "it is damaged, or of a kind that is not taken".into())
    }

    pub(super) fn public(&self) -> PublicKey {
        match self {
            Self::Rsa(pair) => {
                let key = pair.public_key();
                PublicKey::Rsa {
                    modulus: key.modulus().big_endian_without_leading_zero().to_vec(),
                    exponent: key.exponent().big_endian_without_leading_zero().to_vec(),
                }
            }
            Self::Ecdsa(curve, pair) => PublicKey::Ecdsa {
                curve: *curve,
                point: pair.public_key().as_ref().to_vec(),
            },
            Self::Ed25519(pair) => PublicKey::Ed25519(pair.public_key().as_ref().to_vec()),
        }
    }

    /// The proof for `both` nonces.
    pub(super) fn sign(&self, both: &[u8]) -> Result<Signature, &'static str> {
        let failed = "signing failed";
        let (format, blob) = match self {
            Self::Rsa(pair) => {
                let mut blob = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA512, &SystemRandom::new(), both, &mut blob)
                    .map_err(|_| failed)?;
                (RSA_SHA512, blob)
            }
            Self::Ecdsa(curve, pair) => {
                let signature = pair.sign(&SystemRandom::new(), both);
                let signature = signature.map_err(|_| failed)?;
                let halves = signature.as_ref().split_at_checked(curve.length());
                let (r, s) = halves.ok_or(failed)?;
                let mut blob = Vec::new();
                put_mpint(&mut blob, r);
                put_mpint(&mut blob, s);
                (curve.algorithm(), blob)
            }
            Self::Ed25519(pair) => {
                let signature = pair.try_sign(both).map_err(|_| failed)?;
                (ED25519, signature.as_ref().to_vec())
            }
        };
        Ok(Signature {
            format: format.to_owned(),
            blob: Bytes(blob),
            rest: None,
        })
    }
}

/// An RSA key of OpenSSH's fields; none where they do not fit each other.
fn rsa(private: &mut Reader<'_>) -> Result<Option<HostKey>, &'static str> {
    let (n, e, d) = (private.mpint()?, private.mpint()?, private.mpint()?);
    let (inverse, p, q) = (private.mpint()?, private.mpint()?, private.mpint()?);
    let (of_p, of_q) = (remainder(d, &less_one(p)), remainder(d, &less_one(q)));
    let components = KeyPairComponents {
        public_key: PublicKeyComponents { n, e },
        d,
        p,
        q,
        dP: of_p.as_slice(),
        dQ: of_q.as_slice(),
        qInv: inverse,
    };
    let pair = RsaKeyPair::from_components(&components).ok();
    Ok(pair.map(|pair| HostKey::Rsa(Box::new(pair))))
}

/// `odd` less one.
fn less_one(odd: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut even = Zeroizing::new(odd.to_vec());
    if let Some(last) = even.last_mut() {
        *last &= 0xfe;
    }
    even
}

/// `number` modulo `modulus`, both big-endian, by long division: the file has neither of the two exponents that
/// RSA with primes takes (RFC 8017 §3.2), and aws-lc-rs makes none.
fn remainder(number: &[u8], modulus: &[u8]) -> Zeroizing<Vec<u8>> {
    let modulus = [&[0], modulus].concat();
    let modulus = Zeroizing::new(modulus);
    let mut rest = Zeroizing::new(vec![0_u8; modulus.len()]);
    for byte in number {
        for place in (0..8).rev() {
            let mut carry = (byte >> place) & 1;
            for digit in rest.iter_mut().rev() {
                (*digit, carry) = ((*digit << 1) | carry, *digit >> 7);
            }
            if *rest >= *modulus {
                let mut borrow = false;
                for (digit, less) in rest.iter_mut().zip(modulus.iter()).rev() {
                    let (half, under) = digit.overflowing_sub(*less);
                    let (whole, again) = half.overflowing_sub(u8::from(borrow));
                    *digit = whole;
                    borrow = under || again;
                }
            }
        }
    }
    rest
}

/// What is signed: the digest of the server's nonce and the agent's.
pub(super) fn combine(server: &[u8], agent: &[u8]) -> Result<Vec<u8>, &'static str> {
    if server.len() != NONCE {
        return Err("failed to combine nonces: invalid challenge nonce size");
    }
    if agent.len() != NONCE {
        return Err("failed to combine nonces: invalid response nonce size");
    }
    let both = digest(&SHA256, &[server, agent].concat());
    Ok(both.as_ref().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remainders_are_those_of_numbers() {
        for (number, modulus) in [
            (0_u64, 6_u64),
            (5, 6),
            (6, 6),
            (u64::MAX, 0xff_fffe),
            (77, 1),
        ] {
            let bytes = modulus.to_be_bytes();
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            let rest = remainder(&number.to_be_bytes(), &bytes[zeros..]);
            let rest = rest.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
            assert_eq!(rest, number % modulus, "{number} {modulus}");
        }
    }
}
