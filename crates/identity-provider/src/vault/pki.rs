//! Certificates from the PKI engine: the request, the answer, and whom to trust by it (VA-2, VA-9 to VA-11).

use std::collections::BTreeMap;
use std::fmt;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::CertificateDer;
use serde::Deserialize;

use super::Secret;
use super::client::{Ask, Reply};
use super::config::{CertificateRequest, PkiPath};
use crate::{Code, Explained, PrivateKey, chain, pem};

#[derive(Deserialize)]
struct Answer {
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    certificate: String,
    issuing_ca: Option<String>,
    ca_chain: Option<Vec<String>>,
    private_key: Option<Secret>,
}

/// What was issued: a chain without a root, its key, and the authorities above it.
pub(super) struct Issued {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKey,
    pub(super) authorities: Vec<CertificateDer<'static>>,
    /// Seconds by which Vault's clock is ahead.
    pub(super) clock_ahead: Option<i64>,
}

/// The request for a certificate, and the key when it is made here.
pub(super) fn ask(
    path: &PkiPath,
    request: &CertificateRequest,
) -> Result<(Ask, Option<PrivateKey>), Explained> {
    let list = |items: Vec<String>| items.join(",");
    let (uris, dns) = (request.uris.join(","), request.dns.join(","));
    let ips = list(request.ips.iter().map(ToString::to_string).collect());
    let ttl = request.ttl.map(|ttl| format!("{}s", ttl.as_secs()));
    let mut fields = BTreeMap::from([
        ("common_name", request.common_name.as_str()),
        ("format", "pem"),
    ]);
    for (name, value) in [("uri_sans", &uris), ("alt_names", &dns), ("ip_sans", &ips)] {
        if !value.is_empty() {
            fields.insert(name, value);
        }
    }
    if let Some(ttl) = &ttl {
        fields.insert("ttl", ttl);
    }
    if !path.sign() {
        return Ok((Ask::post(path.to_string(), &fields), None));
    }
    let (key, csr) = signing_request(request)?;
    fields.insert("csr", &csr);
    Ok((Ask::post(path.to_string(), &fields), Some(key)))
}

/// A new P-256 key and a request for it. The names are in it too: a role may take them from there alone.
fn signing_request(request: &CertificateRequest) -> Result<(PrivateKey, String), Explained> {
    let failed = |what: &str, error: &dyn fmt::Display| {
        Explained::new(Code::Usage, format!("a certificate cannot hold {what}"))
            .cause(error)
            .hint("check --vault-cert-cn and --vault-cert-san-*")
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, request.common_name.as_str());
    for uri in &request.uris {
        let san = uri.as_str().try_into();
        params.subject_alt_names.push(SanType::URI(
            san.map_err(|error| failed(&format!("the URI {uri:?}"), &error))?,
        ));
    }
    // As with `issue`, a common name that is a host name is a SAN too.
    let own = Some(&request.common_name).filter(|name| host_like(name));
    for name in own.into_iter().chain(&request.dns) {
        let san = name.as_str().try_into();
        let san = SanType::DnsName(
            san.map_err(|error| failed(&format!("the DNS name {name:?}"), &error))?,
        );
        if !params.subject_alt_names.contains(&san) {
            params.subject_alt_names.push(san);
        }
    }
    let ips = request.ips.iter().copied().map(SanType::IpAddress);
    params.subject_alt_names.extend(ips);
    let made = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).and_then(|key| {
        let csr = params.serialize_request(&key)?.pem()?;
        Ok((PrivateKey::pkcs8(key.serialize_der()), csr))
    });
    made.map_err(|error| failed("these names", &error))
}

fn host_like(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-.*".contains(&byte);
    !name.is_empty() && name.bytes().all(plain) && name.split('.').all(|label| !label.is_empty())
}

/// The names asked for, for a person.
pub(super) fn names(request: &CertificateRequest) -> String {
    let mut names = vec![format!("common name {}", request.common_name)];
    let sans = request
        .uris
        .iter()
        .map(|uri| format!("URI:{uri}"))
        .chain(request.dns.iter().map(|name| format!("DNS:{name}")))
        .chain(request.ips.iter().map(|ip| format!("IP:{ip}")));
    names.extend(sans);
    names.join(", ")
}

/// What `reply` issued. `own` is the key made here.
pub(super) fn read(reply: &Reply, own: Option<PrivateKey>) -> Result<Issued, Explained> {
    let unusable = |what: &str, why: &dyn fmt::Display| {
        Explained::new(Code::Other, format!("vault issued {what} that cannot be used"))
            .cause(why)
            .hint("check the role's key_type and key_bits, and the mount's issuer: `vault read <mount>/issuer/default`")
    };
    let answer: Answer = reply.read().map_err(|failure| failure.explained())?;
    let Some(data) = answer.data else {
        return Err(unusable("nothing", &"the answer has no data"));
    };
    let certificates = |text: &str| {
        pem::certificates(text.as_bytes()).map_err(|error| unusable("a certificate", &error))
    };
    let mut all = certificates(&data.certificate)?;
    let mut authorities = Vec::new();
    for text in data.ca_chain.iter().flatten().chain(&data.issuing_ca) {
        for authority in certificates(text)? {
            if !authorities.contains(&authority) {
                authorities.push(authority);
            }
        }
    }
    all.extend(authorities.iter().cloned());
    let key = match (own, &data.private_key) {
        (Some(key), _) => key,
        (None, Some(key)) => pem::private_key(key.expose().as_bytes(), None)
            .map_err(|error| unusable("a private key", &error))?,
        (None, None) => return Err(unusable("no private key", &"the answer has none")),
    };
    let arranged = chain::arrange(&all, &key).map_err(|error| unusable("a certificate", &error))?;
    Ok(Issued {
        chain: arranged.chain,
        key,
        authorities,
        clock_ahead: reply.clock_ahead,
    })
}

#[derive(Deserialize)]
struct Authority {
    data: AuthorityData,
}

#[derive(Deserialize)]
struct AuthorityData {
    certificate: String,
    ca_chain: Option<Vec<String>>,
}

/// The request for the mount's own authority.
pub(super) fn ask_authority(path: &PkiPath) -> Ask {
    Ask::get(format!("{}/cert/ca", path.mount()))
}

/// The mount's own authorities. What makes no sense counts as none: they are a help and no need.
pub(super) fn read_authority(reply: &Reply) -> Vec<CertificateDer<'static>> {
    let Ok(Authority { data }) = reply.read::<Authority>() else {
        return Vec::new();
    };
    let texts = [data.certificate]
        .into_iter()
        .chain(data.ca_chain.into_iter().flatten());
    texts
        .filter_map(|text| pem::certificates(text.as_bytes()).ok())
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // VA-2: a key made here is sent to nobody; the request holds what the role may want to read from it.
    #[test]
    fn va_2_sign_sends_a_request_and_no_key() {
        let request = CertificateRequest {
            common_name: "a.example.com".to_owned(),
            uris: vec!["spiffe://example.org/ah/agent/a".to_owned()],
            dns: vec!["b.example.com".to_owned()],
            ips: vec!["127.0.0.1".parse().unwrap()],
            ttl: Some(std::time::Duration::from_secs(3600)),
        };
        let (ask, key) = ask(&"pki/sign/x".parse().unwrap(), &request).unwrap();
        assert!(key.is_some());
        let body = String::from_utf8(ask.body.unwrap().to_vec()).unwrap();
        assert!(!body.contains("PRIVATE KEY"), "{body}");
        for part in [
            "CERTIFICATE REQUEST",
            r#""ttl":"3600s""#,
            r#""ip_sans":"127.0.0.1""#,
        ] {
            assert!(body.contains(part), "{body}");
        }
    }
}
