//! Whether a key is in a TPM that its maker vouches for. All errors are texts of upstream's, with what follows.

use std::time::SystemTime;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::AttestError;
use crate::node::binary::without_zeros;
use crate::node::messages::nonce;
use crate::node::tpm_devid::activation::enclose;
use crate::node::tpm_devid::messages::{Activation, AttestationRequest};
use crate::node::tpm_devid::structures::{
    DECRYPT, Key, Public, RESIDENT, RESTRICTED, SIGN, Signature, certified_name,
};
use crate::node::x509pop::certificate::Certificate;
use crate::node::x509pop::chain::{Root, signers};

const AGENT: &str = "use an agent with the tpm_devid attestor";
const PROVISION: &str = "provision the LDevID key in the node's TPM: a signing key with fixedTPM, fixedParent and sensitiveDataOrigin, RSASSA or ECDSA with SHA-256";

/// The key in a certificate, as TPMs have keys.
pub(super) fn key_of(der: &[u8], certificate: &Certificate) -> Option<Key> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    Key::of(&parsed, &certificate.facts.key)
}

/// The key of an LDevID certificate, with what its TPM says of it.
pub(super) struct Residency {
    ek: Key,
    ak: Public,
}

impl Residency {
    /// Judges what `data` says of the TPM of `devid`, the key in the certificate; all but that it holds the attestation key.
    pub(super) fn judge(
        data: &AttestationRequest,
        devid: &Key,
        roots: &[Root],
        now: SystemTime,
    ) -> Result<Self, AttestError> {
        for (bytes, what) in [
            (&data.ak_pub, "attestation key public blob"),
            (&data.devid_pub, "DevID key public blob"),
            (&data.ek_cert, "endorsement certificate"),
            (&data.ek_pub, "endorsement key public blob"),
        ] {
            if bytes.0.is_empty() {
                return Err(AttestError::invalid(format!("missing {what}"), AGENT));
            }
        }
        let public = |bytes: &[u8], what: &str| {
            Public::read(bytes).map_err(|error| {
                let text = format!("cannot decode {what} key public blob: {error}");
                AttestError::invalid(text, AGENT)
            })
        };
        let ek_cert = Certificate::read(&data.ek_cert.0).map_err(|error| {
            let text = format!("cannot parse endorsement certificate: {error}");
            AttestError::invalid(
                text,
                "look at it: tpm2_nvread 0x01c00002 | openssl x509 -inform der -text",
            )
        })?;
        let devid_public = public(&data.devid_pub.0, "DevID")?;
        let ak = public(&data.ak_pub.0, "attestation")?;
        let ek = public(&data.ek_pub.0, "endorsement")?;
        is_endorsed(&data.ek_cert.0, &ek_cert, &ek)?;
        signers(&[CertificateDer::from(data.ek_cert.0.as_slice())], roots, now).map_err(
            |untrusted| {
                AttestError::refused(
                    format!(
                        "cannot verify EK signature: endorsement certificate verification failed: {}",
                        untrusted.why
                    ),
                    "add the CAs of the TPM's maker, those between too, to endorsement_ca_path on the server",
                )
            },
        )?;
        let elsewhere = |why: String| {
            AttestError::refused(
                format!("cannot verify that DevID is in the same TPM than AK: {why}"),
                PROVISION,
            )
        };
        if devid_public.key != *devid {
            return Err(elsewhere(
                "the key that the TPM certified is not the one in the DevID certificate".into(),
            ));
        }
        if !devid_public.has(RESIDENT | SIGN) {
            return Err(elsewhere(
                "the DevID key was not made by the TPM, or may leave it".into(),
            ));
        }
        certifies(&ak, data, &devid_public).map_err(elsewhere)?;
        Ok(Self { ek: ek.key, ak })
    }

    /// A secret, and what it is enclosed in for the TPM.
    pub(super) fn challenge(&self) -> Result<(Vec<u8>, Activation), AttestError> {
        let fault = |error: String| {
            AttestError::internal(
                format!("cannot generate credential activation challenge: {error}"),
                "see the system's log: getrandom(2) fails",
            )
        };
        let secret = nonce().map_err(|error| fault(error.into()))?;
        let name = self.ak.name().map_err(fault)?;
        let enclosed = enclose(&self.ek, &name, &secret).map_err(|error| fault(error.into()))?;
        Ok((secret, enclosed))
    }
}

/// Whether `answer` is the secret that was enclosed.
pub(super) fn activated(secret: &[u8], answer: &[u8]) -> Result<(), AttestError> {
    verify_slices_are_equal(secret, answer).map_err(|_| {
        AttestError::refused(
            "credential activation failed: nonces are different",
            "the attestation key is not in the TPM of the endorsement certificate",
        )
    })
}

/// The endorsement key is of the template that everybody uses, and the one in its certificate.
fn is_endorsed(der: &[u8], certificate: &Certificate, ek: &Public) -> Result<(), AttestError> {
    let differs = |why: &str| {
        AttestError::refused(
            format!(
                "public key in EK certificate differs from public key created via EK template: {why}"
            ),
            "the TPM's certificate at 0x01c00002 has to be that of its RSA endorsement key of the default template (L-1)",
        )
    };
    match key_of(der, certificate) {
        Some(key @ Key::Rsa { .. }) if key == ek.key => {}
        Some(Key::Rsa { .. }) => return Err(differs("modulus or exponent mismatch")),
        _ => return Err(differs("key from certificate is not an RSA key")),
    }
    if !ek.has(RESIDENT | RESTRICTED | DECRYPT) || ek.has(SIGN) || !ek.aes128 {
        return Err(differs("it is not of the default template"));
    }
    Ok(())
}

/// Whether `ak` says that `devid` is beside it, and cannot say what its TPM does not know.
fn certifies(ak: &Public, data: &AttestationRequest, devid: &Public) -> Result<(), String> {
    let Key::Rsa { modulus, exponent } = &ak.key else {
        return Err("only RSA keys are supported".into());
    };
    if !ak.has(SIGN) {
        return Err("not a signing key".into());
    }
    if !ak.has(RESIDENT | RESTRICTED) || ak.has(DECRYPT) {
        return Err(
            "the attestation key was not made by the TPM, or signs what is not the TPM's".into(),
        );
    }
    if !ak.signs_with_sha256() {
        return Err("the attestation key does not sign by RSASSA with SHA-256".into());
    }
    let statement = &data.certified_devid.0;
    let signature = match Signature::read(&data.certification_signature.0)? {
        Signature::Rsassa(signature) => signature,
        Signature::Ecdsa { .. } => return Err("the signature is not of the attestation key".into()),
    };
    let exponent = exponent.to_be_bytes();
    let key = RsaPublicKeyComponents {
        n: modulus.as_slice(),
        e: without_zeros(&exponent),
    };
    key.verify(&RSA_PKCS1_2048_8192_SHA256, statement, signature)
        .map_err(|_| "the signature of the attestation key does not verify")?;
    if certified_name(statement)? != devid.name()? {
        return Err("certify failed".into());
    }
    Ok(())
}
