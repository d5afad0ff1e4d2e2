//! Tokens of platforms: an RSA key that signs them, with a certificate of it.

use std::time::SystemTime;

use ah_testkit::ca::{KeyType, TestCa, TestLeaf};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

pub(crate) struct Issuer {
    pub(crate) certificate: TestLeaf,
    key: RsaKeyPair,
}

impl Issuer {
    pub(crate) fn new() -> Self {
        let ca = TestCa::new("platform.example");
        Self::with(ca.leaf().key_type(KeyType::Rsa2048).issue())
    }

    /// The holder of `certificate`, which is of an RSA key.
    pub(crate) fn with(certificate: TestLeaf) -> Self {
        let key = certificate.key();
        let key = RsaKeyPair::from_pkcs8(key.der().secret_der()).unwrap();
        Self { certificate, key }
    }

    /// A token with the key's name `one`.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.sign_as(&json!({"alg": "RS256", "kid": "one"}), claims)
    }

    pub(crate) fn sign_as(&self, header: &Value, claims: &Value) -> String {
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let signed = format!("{}.{}", encode(header), encode(claims));
        let signature = self.signature(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// RSASSA-PKCS1-v1_5 with SHA-256.
    pub(crate) fn signature(&self, bytes: &[u8]) -> Vec<u8> {
        let mut signature = vec![0; self.key.public_modulus_len()];
        let random = SystemRandom::new();
        let signs = self
            .key
            .sign(&RSA_PKCS1_SHA256, &random, bytes, &mut signature);
        signs.unwrap();
        signature
    }

    /// PKCS #1, as `RSA PUBLIC KEY`.
    pub(crate) fn public_key_pem(&self) -> String {
        pem("RSA PUBLIC KEY", self.key.public_key().as_ref())
    }
}

pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        STANDARD.encode(der)
    )
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap().as_secs()
}
