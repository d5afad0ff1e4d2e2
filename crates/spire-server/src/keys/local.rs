//! Keys in this process.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, KeyPair as _, RSA_PKCS1_SHA256,
};
use rustls_pki_types::PrivateKeyDer;
use zeroize::Zeroizing;

use super::{KeyError, KeyType, SigningKey};

const CURVES: [(&EcdsaSigningAlgorithm, KeyType); 2] = [
    (&ECDSA_P256_SHA256_ASN1_SIGNING, KeyType::EcP256),
    (&ECDSA_P384_SHA384_ASN1_SIGNING, KeyType::EcP384),
];

enum Pair {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair),
}

/// A private key in the memory of this process, where aws-lc wipes it when it goes.
pub struct LocalKey {
    id: String,
    kind: KeyType,
    spki: Vec<u8>,
    pair: Pair,
}

impl LocalKey {
    /// Makes a key. RSA takes seconds of a core.
    pub fn generate(id: &str, kind: KeyType) -> Result<Self, KeyError> {
        let pair = match kind {
            KeyType::Rsa2048 => RsaKeyPair::generate(KeySize::Rsa2048).map(Pair::Rsa),
            KeyType::Rsa4096 => RsaKeyPair::generate(KeySize::Rsa4096).map(Pair::Rsa),
            KeyType::EcP256 => {
                EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map(Pair::Ec)
            }
            KeyType::EcP384 => {
                EcdsaKeyPair::generate(&ECDSA_P384_SHA384_ASN1_SIGNING).map(Pair::Ec)
            }
        };
        let pair = pair.map_err(|_| failed(id, "cannot be made"))?;
        Self::new(id, kind, pair)
    }

    /// Reads an unencrypted PKCS #8 key (RFC 5208) of one of the types.
    pub fn from_pkcs8(id: &str, pkcs8: &[u8]) -> Result<Self, KeyError> {
        for (curve, kind) in CURVES {
            if let Ok(pair) = EcdsaKeyPair::from_pkcs8(curve, pkcs8) {
                return Self::new(id, kind, Pair::Ec(pair));
            }
        }
        let pair = RsaKeyPair::from_pkcs8(pkcs8).map_err(|_| {
            failed(
                id,
                "is damaged, or none of RSA 2048, RSA 4096, EC P-256 and EC P-384",
            )
        })?;
        let kind = match pair.public_modulus_len() {
            256 => KeyType::Rsa2048,
            512 => KeyType::Rsa4096,
            _ => return Err(failed(id, "is an RSA key of neither 2048 nor 4096 bits")),
        };
        Self::new(id, kind, Pair::Rsa(pair))
    }

    /// Reads a key in any of the usual forms. RSA keys of other sizes sign like those of 4096 bits, and are called so.
    pub fn from_private_key(id: &str, key: &PrivateKeyDer<'_>) -> Result<Self, KeyError> {
        for (curve, kind) in CURVES {
            if let Ok(pair) = EcdsaKeyPair::from_private_key_der(curve, key.secret_der()) {
                return Self::new(id, kind, Pair::Ec(pair));
            }
        }
        let pair = match key {
            PrivateKeyDer::Pkcs1(pkcs1) => RsaKeyPair::from_der(pkcs1.secret_pkcs1_der()),
            _ => RsaKeyPair::from_pkcs8(key.secret_der()),
        };
        let pair = pair.map_err(|_| failed(id, "is none of RSA, EC P-256 and EC P-384"))?;
        let kind = match pair.public_modulus_len() {
            256 => KeyType::Rsa2048,
            _ => KeyType::Rsa4096,
        };
        Self::new(id, kind, Pair::Rsa(pair))
    }

    fn new(id: &str, kind: KeyType, pair: Pair) -> Result<Self, KeyError> {
        let spki: Result<PublicKeyX509Der<'_>, _> = match &pair {
            Pair::Rsa(pair) => pair.public_key().as_der(),
            Pair::Ec(pair) => pair.public_key().as_der(),
        };
        let spki = spki.map_err(|_| failed(id, "has no public half"))?;
        let spki = spki.as_ref().to_vec();
        Ok(Self {
            id: id.to_owned(),
            kind,
            spki,
            pair,
        })
    }

    /// PKCS #8, DER.
    pub fn to_pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let encoded = match &self.pair {
            Pair::Rsa(pair) => AsDer::<Pkcs8V1Der<'_>>::as_der(pair)
                .map(|der| Zeroizing::new(der.as_ref().to_vec())),
            Pair::Ec(pair) => pair
                .to_pkcs8v1()
                .map(|der| Zeroizing::new(der.as_ref().to_vec())),
        };
        encoded.map_err(|_| failed(&self.id, "cannot be encoded"))
    }
}

fn failed(id: &str, why: &str) -> KeyError {
    KeyError::Failed(format!("key \"{id}\" {why}"))
}

impl SigningKey for LocalKey {
    fn id(&self) -> &str {
        &self.id
    }

    fn key_type(&self) -> KeyType {
        self.kind
    }

    fn spki(&self) -> &[u8] {
        &self.spki
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Ec(pair) => pair
                .sign(&random, message)
                .map(|signature| signature.as_ref().to_vec()),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .map(|()| signature)
            }
        }
        .map_err(|_| failed(&self.id, "did not sign"))
    }
}
