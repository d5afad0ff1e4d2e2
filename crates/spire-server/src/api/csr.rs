//! Certificate signing requests.

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

/// What a request whose signature holds asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Csr {
    /// SubjectPublicKeyInfo, DER.
    pub(super) spki: Vec<u8>,
    /// URI SANs.
    pub(super) uris: Vec<String>,
    /// DNS SANs.
    pub(super) dns_names: Vec<String>,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadCsr {
    #[error("not a DER-encoded PKCS #10 request")]
    Malformed,
    #[error("the signature was not made with the key in the request")]
    Signature,
}

impl Csr {
    /// Reads a PKCS #10 request (RFC 2986) and checks that its maker holds the key.
    pub(super) fn read(der: &[u8]) -> Result<Self, BadCsr> {
        let (rest, csr) = X509CertificationRequest::from_der(der).map_err(|_| BadCsr::Malformed)?;
        if !rest.is_empty() {
            return Err(BadCsr::Malformed);
        }
        csr.verify_signature().map_err(|_| BadCsr::Signature)?;
        let info = &csr.certification_request_info;
        let mut read = Self {
            spki: info.subject_pki.raw.to_vec(),
            uris: Vec::new(),
            dns_names: Vec::new(),
        };
        for extension in csr.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(names) = extension else {
                continue;
            };
            for name in &names.general_names {
                match name {
                    GeneralName::URI(uri) => read.uris.push((*uri).to_owned()),
                    GeneralName::DNSName(name) => read.dns_names.push((*name).to_owned()),
                    _ => {}
                }
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn request() -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["w.example.org".to_owned()]).unwrap();
        let uri = "spiffe://example.org/w".try_into().unwrap();
        params.subject_alt_names.push(SanType::URI(uri));
        params.serialize_request(&key).unwrap().der().to_vec()
    }

    #[test]
    fn names_and_key_are_read() {
        let csr = Csr::read(&request()).unwrap();
        assert_eq!(csr.uris, ["spiffe://example.org/w"]);
        assert_eq!(csr.dns_names, ["w.example.org"]);
        assert!(!csr.spki.is_empty());
    }

    // Hostile input: every truncation, every byte changed.
    #[test]
    fn a_damaged_request_is_refused_without_a_panic() {
        let good = request();
        for end in 0..good.len() {
            assert!(Csr::read(&good[..end]).is_err(), "{end}");
        }
        // What the signature does not cover (headers, the name of its algorithm) may change and say the same.
        let read = Csr::read(&good);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x20;
            let changed = Csr::read(&bad);
            assert!(changed.is_err() || changed == read, "{at}");
        }
        let mut long = good.clone();
        long.push(0);
        assert_eq!(Csr::read(&long), Err(BadCsr::Malformed));
        assert_eq!(Csr::read(&vec![0x30; 1 << 20]), Err(BadCsr::Malformed));
    }
}
