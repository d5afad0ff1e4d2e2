//! Attestations: statements about images (in-toto) in signed envelopes (DSSE 1.0).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;

use super::image::Image;
use super::key::PublicKey;

/// What the envelope `json` holds, if `key` signed it (DSSE 1.0).
pub(super) fn enveloped(json: &[u8], key: &PublicKey) -> Result<Value, String> {
    const IN_TOTO: &str = "application/vnd.in-toto+json";

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Envelope {
        payload_type: String,
        payload: String,
        signatures: Vec<Signature>,
    }
    #[derive(Deserialize)]
    struct Signature {
        sig: String,
    }

    let envelope: Envelope =
        serde_json::from_slice(json).map_err(|error| format!("the envelope: {error}"))?;
    let kind = &envelope.payload_type;
    if kind != IN_TOTO {
        return Err(format!(
            "invalid payloadType {kind} on envelope. Expected {IN_TOTO}"
        ));
    }
    let payload = STANDARD
        .decode(&envelope.payload)
        .map_err(|_| "the payload of the envelope is not base64")?;
    let mut message = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).into_bytes();
    message.extend(&payload);
    let is_good = |signature: &Signature| {
        STANDARD
            .decode(&signature.sig)
            .is_ok_and(|signature| key.made(&signature, &message))
    };
    if !envelope.signatures.iter().any(is_good) {
        return Err("no signature of the envelope is of the certificate's key".into());
    }
    serde_json::from_slice(&payload).map_err(|error| format!("the attestation: {error}"))
}

/// Whether the statement (in-toto) is about `image`.
pub(super) fn is_subject(statement: &Value, image: &Image) -> Result<(), String> {
    let subjects = statement.get("subject").and_then(Value::as_array);
    let names_it = |subject: &Value| {
        let digest = subject.pointer("/digest/sha256").and_then(Value::as_str);
        digest == Some(image.sha256.as_str())
    };
    if subjects.is_some_and(|subjects| subjects.iter().any(names_it)) {
        return Ok(());
    }
    Err("the attestation is of another image".into())
}
