//! A secret for one TPM (TPM 2.0 Part 1, 24 "Credential Protection"), all with SHA-256 and AES-128, as the endorsement
//! key of the default template has it.

use ah_spire_wire::rsa_spki;
use aws_lc_rs::cipher::{AES_128, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rand;
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use zeroize::Zeroizing;

use crate::node::messages::Bytes;
use crate::node::tpm_devid::messages::Activation;
use crate::node::tpm_devid::structures::{Key, put_sized};

/// Bytes of an AES-128 key.
const SEED: usize = 16;

/// Encloses `secret` so that the TPM with the endorsement key `ek` alone can open it, and does so only while it holds
/// a key of the name `name`. The error is a text.
pub(super) fn enclose(ek: &Key, name: &[u8], secret: &[u8]) -> Result<Activation, &'static str> {
    let mut seed = Zeroizing::new([0; SEED]);
    rand::fill(seed.as_mut_slice()).map_err(|_| "the system gives no random numbers")?;
    Ok(Activation {
        credential: Bytes(credential(&seed, name, secret)?),
        secret: Bytes(encrypted(ek, seed.as_slice())?),
    })
}

/// TPMS_ID_OBJECT
fn credential(seed: &[u8; SEED], name: &[u8], secret: &[u8]) -> Result<Vec<u8>, &'static str> {
    let failed = "AES failed";
    let mut identity = Vec::new();
    put_sized(&mut identity, secret);
    let key = kdfa(seed, "STORAGE", name, SEED);
    let key = UnboundCipherKey::new(&AES_128, &key).map_err(|_| failed)?;
    let key = EncryptingKey::cfb128(key).map_err(|_| failed)?;
    // The key was made for this, and encrypts nothing else.
    let zeros = EncryptionContext::Iv128(FixedLength::from([0; 16]));
    key.less_safe_encrypt(&mut identity, zeros)
        .map_err(|_| failed)?;
    let key = kdfa(seed, "INTEGRITY", &[], 32);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let integrity = hmac::sign(&key, &[&identity, name].concat());
    let mut out = Vec::new();
    put_sized(&mut out, integrity.as_ref());
    out.append(&mut identity);
    Ok(out)
}

/// TPMU_ENCRYPTED_SECRET
fn encrypted(ek: &Key, seed: &[u8]) -> Result<Vec<u8>, &'static str> {
    const LABEL: &[u8] = b"IDENTITY\0";

    let failed = "the endorsement key is no RSA key of 2048 bits or more";
    let Key::Rsa { modulus, exponent } = ek else {
        return Err(failed);
    };
    let spki = rsa_spki(modulus, &exponent.to_be_bytes()).map_err(|_| failed)?;
    let key = PublicEncryptingKey::from_der(&spki).map_err(|_| failed)?;
    let key = OaepPublicEncryptingKey::new(key).map_err(|_| failed)?;
    let mut out = vec![0; key.ciphertext_size()];
    let written = key.encrypt(&OAEP_SHA256_MGF1SHA256, seed, &mut out, Some(LABEL));
    let length = written.map_err(|_| failed)?.len();
    out.truncate(length);
    Ok(out)
}

/// KDFa (Part 1, 11.4.10.2) for `length` bytes, 32 at most.
fn kdfa(key: &[u8], label: &str, context: &[u8], length: usize) -> Zeroizing<Vec<u8>> {
    let bits = u32::try_from(length.saturating_mul(8)).unwrap_or_default();
    let mut hmac = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    let counter = 1_u32;
    hmac.update(&counter.to_be_bytes());
    hmac.update(label.as_bytes());
    hmac.update(&[0]);
    hmac.update(context);
    hmac.update(&bits.to_be_bytes());
    let block = hmac.sign();
    Zeroizing::new(block.as_ref().iter().take(length).copied().collect())
}
