//! `x509pop`, in old files `x509_pop` (SR-2): the node has a certificate, and proves that it has its key.
//!
//! The payload is the certificate chain. The server verifies it against its CA bundle (`external_pki`) or its own trust
//! bundle (`spiffe`), and sends a nonce. The agent adds a nonce of its own and signs both: RSASSA-PSS with SHA-256, or
//! ECDSA over the SHA-256 of both on P-256, P-384 or P-521. Messages are JSON, byte for byte as SPIRE writes them.
//!
//! Where this is stricter than upstream: a leaf must not be a CA unless it stands in the bundle itself, a payload has
//! at most 1 MiB, a chain at most six intermediates in use, an RSA key at least 2048 bits, in `spiffe` mode the SVID
//! must be of the server's own trust domain, and an empty bundle trusts nobody.

mod agent;
pub(in crate::node) mod certificate;
pub(crate) mod chain;
mod config;
mod messages;
pub(in crate::node) mod proof;
mod server;
pub(in crate::node) mod values;

pub use agent::{X509PopAgent, X509PopConversation};
pub use config::{X509PopAgentConfig, X509PopServerConfig};
pub use server::{Authorities, X509PopServer};

#[cfg(test)]
mod tests {
    use ah_identity_provider::pem;
    use serde_json::Value;

    use super::certificate::Certificate;
    use super::messages::{AttestationData, Challenge, Response};
    use crate::node::messages::{read, write};

    /// Messages of SPIRE 1.14.1's own packages; `tests/all/x509pop/upstream.rs` has the rest.
    fn cases() -> Vec<Value> {
        let text = include_str!("../../tests/fixtures/x509pop.json");
        serde_json::from_str(text).unwrap()
    }

    fn text<'a>(case: &'a Value, field: &str) -> &'a str {
        case[field].as_str().unwrap()
    }

    #[test]
    fn messages_are_written_as_they_were_read() {
        for case in cases() {
            let payload: AttestationData = read(text(&case, "payload").as_bytes()).unwrap();
            assert_eq!(write(&payload), text(&case, "payload").as_bytes());
            let challenge: Challenge = read(text(&case, "challenge").as_bytes()).unwrap();
            assert_eq!(write(&challenge), text(&case, "challenge").as_bytes());
            let response: Response = read(text(&case, "response").as_bytes()).unwrap();
            assert_eq!(write(&response), text(&case, "response").as_bytes());
        }
    }

    #[test]
    fn answers_of_its_agents_verify_and_nothing_like_them_does() {
        for case in cases() {
            let chain = pem::certificates(text(&case, "chain").as_bytes()).unwrap();
            let leaf = Certificate::read(chain.first().unwrap()).unwrap();
            let key = leaf.key.unwrap();
            let challenge: Challenge = read(text(&case, "challenge").as_bytes()).unwrap();
            let response: Response = read(text(&case, "response").as_bytes()).unwrap();
            assert_eq!(
                key.verify(&challenge, &response),
                Ok(()),
                "{}",
                case["name"]
            );

            let mut changes: Vec<fn(&mut Challenge, &mut Response)> = vec![];
            if response.rsa_signature.is_some() {
                changes.push(|c, _| c.rsa_signature.as_mut().unwrap().nonce.0[0] ^= 1);
                changes.push(|_, r| r.rsa_signature.as_mut().unwrap().nonce.0[31] ^= 1);
                changes.push(|_, r| r.rsa_signature.as_mut().unwrap().signature.0[9] ^= 1);
                changes.push(|_, r| r.rsa_signature.as_mut().unwrap().signature.0.push(0));
                changes.push(|_, r| r.rsa_signature.as_mut().unwrap().signature.0.clear());
            } else {
                changes.push(|c, _| c.ecdsa_signature.as_mut().unwrap().nonce.0[0] ^= 1);
                changes.push(|_, r| r.ecdsa_signature.as_mut().unwrap().nonce.0[31] ^= 1);
                changes.push(|_, r| r.ecdsa_signature.as_mut().unwrap().r.0[9] ^= 1);
                changes.push(|_, r| r.ecdsa_signature.as_mut().unwrap().s.0.push(0));
                changes.push(|_, r| r.ecdsa_signature.as_mut().unwrap().s.0.clear());
            }
            for change in changes {
                let (mut challenge, mut response) = (challenge.clone(), response.clone());
                change(&mut challenge, &mut response);
                assert!(
                    key.verify(&challenge, &response).is_err(),
                    "{}",
                    case["name"]
                );
            }
        }
    }
}
