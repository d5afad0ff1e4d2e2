//! What the two halves say.

use serde::{Deserialize, Serialize};

use crate::node::messages::Bytes;

/// The payload. Areas and blobs are as in TPM 2.0 Part 2, without the size in front of them.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct AttestationRequest {
    /// DER, leaf first.
    #[serde(rename = "DevIDCert")]
    pub(super) devid_cert: Option<Vec<Bytes>>,
    /// TPMT_PUBLIC
    #[serde(rename = "DevIDPub")]
    pub(super) devid_pub: Bytes,
    /// DER
    #[serde(rename = "EKCert")]
    pub(super) ek_cert: Bytes,
    /// TPMT_PUBLIC
    #[serde(rename = "EKPub")]
    pub(super) ek_pub: Bytes,
    /// TPMT_PUBLIC
    #[serde(rename = "AKPub")]
    pub(super) ak_pub: Bytes,
    /// TPMS_ATTEST
    #[serde(rename = "CertifiedDevID")]
    pub(super) certified_devid: Bytes,
    /// TPMT_SIGNATURE
    #[serde(rename = "CertificationSignature")]
    pub(super) certification_signature: Bytes,
}

/// What the server sends.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct ChallengeRequest {
    /// A nonce.
    #[serde(rename = "DevID")]
    pub(super) devid: Bytes,
    #[serde(rename = "CredActivation")]
    pub(super) activation: Option<Activation>,
}

/// A secret that one TPM gives out.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Activation {
    /// TPMS_ID_OBJECT
    #[serde(rename = "Credential")]
    pub(super) credential: Bytes,
    /// TPMU_ENCRYPTED_SECRET
    #[serde(rename = "Secret")]
    pub(super) secret: Bytes,
}

/// What the agent answers.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct ChallengeResponse {
    /// The LDevID key's signature over the nonce: RSASSA-PKCS1-v1_5, or ECDSA in DER, with SHA-256.
    #[serde(rename = "DevID")]
    pub(super) devid: Bytes,
    /// The secret.
    #[serde(rename = "CredActivation")]
    pub(super) activation: Bytes,
}
