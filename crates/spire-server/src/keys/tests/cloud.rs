//! What stand-ins for the key services of clouds have in common.

use aws_lc_rs::digest::{Digest, SHA256, SHA384};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING,
    ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    RSA_PKCS1_SHA256,
};
use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Value, json};

/// A key that signs digests.
pub(super) enum CloudKey {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair),
}

impl CloudKey {
    pub(super) fn rsa(bits: u64) -> Self {
        let size = match bits {
            2048 => KeySize::Rsa2048,
            4096 => KeySize::Rsa4096,
            other => panic!("{other}"),
        };
        Self::Rsa(RsaKeyPair::generate(size).unwrap())
    }

    /// Its signatures are `fixed` (both numbers one after the other), or ASN.1.
    pub(super) fn ec(bits: u64, fixed: bool) -> Self {
        let algorithm = match (bits, fixed) {
            (256, true) => &ECDSA_P256_SHA256_FIXED_SIGNING,
            (256, false) => &ECDSA_P256_SHA256_ASN1_SIGNING,
            (384, true) => &ECDSA_P384_SHA384_FIXED_SIGNING,
            (384, false) => &ECDSA_P384_SHA384_ASN1_SIGNING,
            other => panic!("{other:?}"),
        };
        Self::Ec(EcdsaKeyPair::generate(algorithm).unwrap())
    }

    pub(super) fn spki(&self) -> Vec<u8> {
        let spki: PublicKeyX509Der<'_> = match self {
            Self::Rsa(key) => key.public_key().as_der().unwrap(),
            Self::Ec(key) => key.public_key().as_der().unwrap(),
        };
        spki.as_ref().to_vec()
    }

    pub(super) fn sign(&self, digest: &[u8]) -> Vec<u8> {
        let by = if digest.len() == 48 { &SHA384 } else { &SHA256 };
        let digest = Digest::import_less_safe(digest, by).unwrap();
        match self {
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign_digest(&RSA_PKCS1_SHA256, &digest, &mut signature)
                    .unwrap();
                signature
            }
            Self::Ec(key) => key.sign_digest(&digest).unwrap().as_ref().to_vec(),
        }
    }
}

pub(super) fn answer(body: Value) -> Response<Bytes> {
    Response::new(body.to_string().into())
}

pub(super) fn refusal(status: StatusCode, message: &str) -> Response<Bytes> {
    let mut response = answer(json!({ "error": { "code": "Refused", "message": message } }));
    *response.status_mut() = status;
    response
}
