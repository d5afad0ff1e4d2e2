//! Certificates of signers, as Fulcio issues them.

use std::collections::HashMap;
use std::net::IpAddr;

use ah_spire_wire::der::{CONTEXT_CONSTRUCTED, OID, SEQUENCE, Writer};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::asn1_rs::{Any, Utf8String};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::key::{LogKey, PublicKey, sha256};
use super::roots::Roots;
use crate::node::x509pop::chain::signers;

/// Who let the signer in, as text (`1.3.6.1.4.1.57264.1.1`).
const ISSUER: &str = "1.3.6.1.4.1.57264.1.1";
/// The same as an ASN.1 text, which newer certificates may have alone.
const ISSUER_V2: &str = "1.3.6.1.4.1.57264.1.8";
/// A name of the signer that is no address.
const OTHER_NAME: &str = "1.3.6.1.4.1.57264.1.7";
/// The list of signed certificate timestamps (RFC 6962 §3.3), in DER.
const SCT_LIST: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0xd6, 0x79, 0x02, 0x04, 0x02];
const SHA256_ID: u8 = 4;

/// A signer's certificate that nobody believes yet.
pub(super) struct Signer<'a> {
    der: &'a CertificateDer<'static>,
    certificate: X509Certificate<'a>,
    pub(super) key: PublicKey,
    /// All of the subject's alternative names, in cosign's order.
    pub(super) subjects: Vec<String>,
    /// Empty where it has none.
    pub(super) issuer: String,
}

impl<'a> Signer<'a> {
    pub(super) fn read(der: &'a CertificateDer<'static>) -> Result<Self, String> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|error| format!("its certificate: {error}"))?;
        let key = PublicKey::new(certificate.public_key().raw);
        let key =
            key.map_err(|error| format!("invalid certificate found on signature: {error}"))?;
        let subjects = subjects(&certificate);
        let issuer = issuer(&certificate)?;
        Ok(Self {
            der,
            certificate,
            key,
            subjects,
            issuer,
        })
    }

    /// Whether it led to one of `roots` at `time`, over `between` or the roots' own intermediates; and unless `ignore_sct`,
    /// whether the logs of certificates have it.
    pub(super) fn verify(
        &self,
        between: &[CertificateDer<'static>],
        roots: &Roots,
        ignore_sct: bool,
        time: OffsetDateTime,
    ) -> Result<(), String> {
        let mut chain = vec![self.der.clone()];
        chain.extend(between.iter().chain(&roots.intermediates).cloned());
        let validity = self.certificate.validity();
        if !(validity.not_before.to_datetime()..=validity.not_after.to_datetime()).contains(&time) {
            return Err(format!(
                "the certificate was not valid at {time}: it is from {} to {}",
                validity.not_before, validity.not_after
            ));
        }
        let above = signers(&chain, &roots.authorities, time.into());
        let above = above.map_err(|error| error.why)?;
        let issuer = above
            .first()
            .ok_or("certificate chain must contain at least a certificate and its issuer")?;
        let usage = self.certificate.extended_key_usage();
        let usage = usage.map_err(|error| error.to_string())?;
        if !usage.is_some_and(|usage| usage.value.code_signing || usage.value.any) {
            return Err("the certificate is not for signing code".into());
        }
        if ignore_sct {
            return Ok(());
        }
        self.logged(issuer, &roots.ct_logs)
    }

    /// Whether each timestamp that it has is of one of `logs`, and there is one.
    fn logged(
        &self,
        issuer: &CertificateDer<'_>,
        logs: &HashMap<[u8; 32], LogKey>,
    ) -> Result<(), String> {
        let mut timestamps = Vec::new();
        for extension in self.certificate.extensions() {
            if let ParsedExtension::SCT(list) = extension.parsed_extension() {
                timestamps.extend(list);
            }
        }
        if timestamps.is_empty() {
            return Err("certificate does not include required embedded SCT".into());
        }
        let (_, issuer) = X509Certificate::from_der(issuer).map_err(|error| error.to_string())?;
        let issuer = sha256(issuer.public_key().raw);
        let tbs = without_timestamps(self.certificate.tbs_certificate.as_ref())
            .ok_or("the certificate has extensions that cannot be read")?;
        for sct in timestamps {
            let log = logs
                .get(sct.id.key_id)
                .ok_or("ctfe public key not found for payload")?;
            let moment = OffsetDateTime::from_unix_timestamp_nanos(
                i128::from(sct.timestamp).saturating_mul(1_000_000),
            );
            if !moment.is_ok_and(|moment| log.life.includes(moment)) {
                return Err(
                    "error verifying embedded SCT: the log's key was not in use then".into(),
                );
            }
            // RFC 6962 §3.2, for a certificate that is yet to be.
            let mut message = vec![sct.version.0, 0];
            message.extend(sct.timestamp.to_be_bytes());
            message.extend(1_u16.to_be_bytes());
            message.extend(issuer);
            let length = u32::try_from(tbs.len()).unwrap_or(u32::MAX).to_be_bytes();
            message.extend(length.into_iter().skip(1));
            message.extend(&tbs);
            let extensions = sct.extensions.0;
            message.extend(
                u16::try_from(extensions.len())
                    .unwrap_or(u16::MAX)
                    .to_be_bytes(),
            );
            message.extend(extensions);
            let fits = sct.version.0 == 0 && sct.signature.hash_alg_id == SHA256_ID;
            if !fits || !log.key.made(sct.signature.data, &message) {
                return Err("error verifying embedded SCT: it is not of the log's key".into());
            }
        }
        Ok(())
    }
}

fn subjects(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let names = &names.value.general_names;
    let of = |pick: fn(&GeneralName<'_>) -> Option<String>| names.iter().filter_map(pick);
    let mut subjects: Vec<String> = Vec::new();
    subjects.extend(of(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    }));
    subjects.extend(of(|name| match name {
        GeneralName::RFC822Name(address) => Some((*address).to_owned()),
        _ => None,
    }));
    subjects.extend(of(|name| match name {
        GeneralName::IPAddress(bytes) => ip(bytes).map(|ip| ip.to_string()),
        _ => None,
    }));
    subjects.extend(of(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    }));
    let mut others = of(|name| match name {
        GeneralName::OtherName(oid, value) if oid.to_id_string() == OTHER_NAME => {
            let (_, inner) = Any::from_der(value).ok()?;
            let (_, text) = Utf8String::from_der(inner.data).ok()?;
            Some(text.string())
        }
        GeneralName::OtherName(..) => Some(String::new()),
        _ => None,
    });
    if let (Some(one), None) = (others.next(), others.next()) {
        subjects.push(one);
    }
    subjects.retain(|subject| !subject.is_empty());
    subjects
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}

fn issuer(certificate: &X509Certificate<'_>) -> Result<String, String> {
    let value = |wanted: &str| {
        let mut all = certificate.extensions().iter();
        all.find(|extension| extension.oid.to_id_string() == wanted)
            .map(|extension| extension.value)
    };
    let text = |bytes: &[u8]| {
        let text = std::str::from_utf8(bytes).map(ToOwned::to_owned);
        text.map_err(|_| "the issuer in the certificate is not text".to_owned())
    };
    match (value(ISSUER), value(ISSUER_V2)) {
        (Some(issuer), _) => text(issuer),
        (None, Some(issuer)) => {
            let (_, issuer) = Any::from_der(issuer).map_err(|error| error.to_string())?;
            text(issuer.data)
        }
        (None, None) => Ok(String::new()),
    }
}

/// A TBSCertificate as the log saw it: without the list of timestamps (RFC 6962 §3.2).
fn without_timestamps(tbs: &[u8]) -> Option<Vec<u8>> {
    const EXTENSIONS: u8 = CONTEXT_CONSTRUCTED | 3;

    let [whole] = &parts(tbs)?[..] else {
        return None;
    };
    let mut kept = Vec::new();
    for part in parts(whole.content)? {
        if part.tag != EXTENSIONS {
            kept.push((part, None));
            continue;
        }
        let [list] = &parts(part.content)?[..] else {
            return None;
        };
        let mut extensions = Vec::new();
        for extension in parts(list.content)? {
            let inner = parts(extension.content)?;
            let oid = inner.first().filter(|oid| oid.tag == OID)?;
            if oid.content != SCT_LIST {
                extensions.push(extension.raw);
            }
        }
        kept.push((part, Some(extensions)));
    }
    let mut out = Writer::with_capacity(tbs.len());
    out.nested(SEQUENCE, |out| {
        for (part, extensions) in kept {
            let Some(extensions) = extensions else {
                out.raw(part.raw);
                continue;
            };
            out.nested(EXTENSIONS, |out| {
                out.sequence(|out| extensions.iter().for_each(|extension| out.raw(extension)));
            });
        }
    });
    Some(out.finish())
}

struct Part<'a> {
    tag: u8,
    raw: &'a [u8],
    content: &'a [u8],
}

/// DER values that follow each other.
fn parts(mut rest: &[u8]) -> Option<Vec<Part<'_>>> {
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let (after, value) = Any::from_der(rest).ok()?;
        let raw = rest.get(..rest.len().checked_sub(after.len())?)?;
        parts.push(Part {
            tag: *raw.first()?,
            raw,
            content: value.data,
        });
        rest = after;
    }
    Some(parts)
}
