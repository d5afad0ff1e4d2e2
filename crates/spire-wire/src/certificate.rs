//! Certificates as `GetInfo` of server and agent describes them.

use spiffe::SpiffeId;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::X509Name;

/// What an operator wants to know of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Its SPIFFE ID, if it has one.
    pub id: Option<SpiffeId>,
    /// `notAfter`, Unix seconds.
    pub expires_at: i64,
    /// As RFC 4514 §2.1 writes it: the last element first.
    pub subject: String,
}

/// A chain (DER, leaf first) with the one of `roots` that it ends in.
///
/// # Errors
/// A certificate of the chain cannot be read.
pub fn described_chain<'a>(
    chain: impl IntoIterator<Item = &'a [u8]>,
    roots: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Vec<Certificate>, String> {
    let mut described = Vec::new();
    let mut issuer = Vec::new();
    for der in chain {
        let cert = read(der)?;
        issuer = cert.issuer().as_raw().to_vec();
        described.push(one(&cert));
    }
    let root = roots.into_iter().find_map(|der| {
        let root = read(der).ok()?;
        (root.subject().as_raw() == issuer).then(|| one(&root))
    });
    described.extend(root);
    Ok(described)
}

fn read(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    X509Certificate::from_der(der)
        .map(|(_, cert)| cert)
        .map_err(|error| error.to_string())
}

fn one(cert: &X509Certificate<'_>) -> Certificate {
    let names = cert.subject_alternative_name().ok().flatten();
    let id = names.and_then(|names| {
        names
            .value
            .general_names
            .iter()
            .find_map(|name| match name {
                GeneralName::URI(uri) => SpiffeId::new(uri).ok(),
                _ => None,
            })
    });
    Certificate {
        id,
        expires_at: cert.validity().not_after.timestamp(),
        subject: name(cert.subject()),
    }
}

fn name(name: &X509Name<'_>) -> String {
    let elements = name.iter_attributes().map(|attribute| {
        let oid = attribute.attr_type().to_id_string();
        let key = match oid.as_str() {
            "2.5.4.3" => "CN",
            "2.5.4.5" => "SERIALNUMBER",
            "2.5.4.6" => "C",
            "2.5.4.7" => "L",
            "2.5.4.8" => "ST",
            "2.5.4.9" => "STREET",
            "2.5.4.10" => "O",
            "2.5.4.11" => "OU",
            "2.5.4.17" => "POSTALCODE",
            other => other,
        };
        format!("{key}={}", escaped(attribute.as_str().unwrap_or_default()))
    });
    let mut elements: Vec<String> = elements.collect();
    elements.reverse();
    elements.join(",")
}

fn escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let last = value.chars().count().saturating_sub(1);
    for (at, character) in value.chars().enumerate() {
        let escape = match character {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => true,
            '#' => at == 0,
            ' ' => at == 0 || at == last,
            _ => false,
        };
        if escape {
            out.push('\\');
        }
        out.push(character);
    }
    out
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

    use super::*;

    #[test]
    fn a_chain_is_described_with_its_root() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CountryName, "US");
        params
            .distinguished_name
            .push(DnType::OrganizationName, "a, #b ");
        let uri = "spiffe://example.org/spire/agent/a".try_into().unwrap();
        params.subject_alt_names = vec![SanType::URI(uri)];
        let der = params.self_signed(&key).unwrap().der().to_vec();
        let chain = described_chain([der.as_slice()], [der.as_slice()]).unwrap();
        assert_eq!(chain.len(), 2);
        assert_eq!(chain[0], chain[1]);
        assert_eq!(chain[0].subject, r"O=a\, #b\ ,C=US");
        let id = chain[0].id.as_ref().unwrap();
        assert_eq!(id.path(), "/spire/agent/a");
        assert!(described_chain([b"no".as_slice()], []).is_err());
        assert_eq!(described_chain([], [der.as_slice()]).unwrap(), []);
    }
}
