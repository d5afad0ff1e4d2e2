//! Signed documents of platforms: SignedData of CMS, once PKCS #7 (RFC 5652 §5), with one signer and RSA.
//!
//! Platforms write it in BER, with values whose end is marked instead of told, so this reads both forms.

use aws_lc_rs::digest::{Algorithm as Digest, SHA256, SHA384, SHA512, digest};
use aws_lc_rs::signature::{
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    UnparsedPublicKey, VerificationAlgorithm,
};
use x509_parser::prelude::{FromDer, X509Certificate};

/// How deep values may stand in each other.
const MAX_DEPTH: u8 = 16;

const SIGNED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];
const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
const CONTENT_TYPE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x03];
const MESSAGE_DIGEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x04];
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const INTEGER: u8 = 0x02;
const OID: u8 = 0x06;
const OCTETS: u8 = 0x04;
const OCTETS_IN_PARTS: u8 = 0x24;
/// `[0]` and `[1]`, constructed
const FIRST: u8 = 0xa0;

/// A digest with its signature, by the names that stand in a document.
struct Suite {
    digest: &'static [u8],
    /// The signature's algorithm where it names the digest too.
    rsa: &'static [u8],
    computes: &'static Digest,
    verifies: &'static dyn VerificationAlgorithm,
}

static SUITES: [Suite; 3] = [
    Suite {
        digest: &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01],
        rsa: &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b],
        computes: &SHA256,
        verifies: &RSA_PKCS1_2048_8192_SHA256,
    },
    Suite {
        digest: &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02],
        rsa: &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0c],
        computes: &SHA384,
        verifies: &RSA_PKCS1_2048_8192_SHA384,
    },
    Suite {
        digest: &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03],
        rsa: &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0d],
        computes: &SHA512,
        verifies: &RSA_PKCS1_2048_8192_SHA512,
    },
];

/// A signed document that nobody believes yet.
pub(super) struct Signed {
    content: Vec<u8>,
    /// The certificates that came with it, DER.
    pub(super) certificates: Vec<Vec<u8>>,
    /// Of the signer's certificate: the issuer (DER), and the serial number.
    issuer: Vec<u8>,
    serial: Vec<u8>,
    suite: &'static Suite,
    /// What was signed.
    signed: Vec<u8>,
    signature: Vec<u8>,
}

impl Signed {
    /// Reads a document that has its content within it.
    ///
    /// # Errors
    /// Says what it lacks.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        read(bytes).map_err(|why| format!("it is no signed document (RFC 5652): {why}"))
    }

    /// Whether `certificate` (DER) is the one that the document names as the signer's.
    pub(super) fn names(&self, certificate: &[u8]) -> bool {
        X509Certificate::from_der(certificate).is_ok_and(|(_, certificate)| {
            certificate.issuer().as_raw() == self.issuer && certificate.raw_serial() == self.serial
        })
    }

    /// The content, if the key of `certificate` (DER) signed it and the document says so.
    ///
    /// # Errors
    /// It did not.
    pub(super) fn verified(&self, certificate: &[u8]) -> Result<&[u8], String> {
        if !self.names(certificate) {
            return Err("another certificate is named as the signer's".into());
        }
        let (_, certificate) =
            X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
        let key = UnparsedPublicKey::new(self.suite.verifies, certificate.public_key().raw);
        key.verify(&self.signed, &self.signature)
            .map_err(|_| "the signature is not of the signer's key".to_owned())?;
        Ok(&self.content)
    }
}

fn read(bytes: &[u8]) -> Result<Signed, String> {
    let outer = all(bytes)?.expect(SEQUENCE, "ContentInfo")?;
    let mut outer = outer.parts()?;
    outer.is_oid(SIGNED_DATA, "SignedData")?;
    let data = outer.next(FIRST, "content")?.only(SEQUENCE, "SignedData")?;
    let mut data = data.parts()?;
    data.next(INTEGER, "version")?;
    data.next(SET, "digestAlgorithms")?;

    let mut encapsulated = data.next(SEQUENCE, "encapContentInfo")?.parts()?;
    encapsulated.is_oid(DATA, "content of the type data")?;
    let content = encapsulated.next(FIRST, "eContent")?.parts()?.one()?;
    let content = content.octets()?;

    let mut certificates = Vec::new();
    if let Some(set) = data.optional(FIRST) {
        for certificate in set.parts()?.0 {
            certificates.push(certificate.raw.to_vec());
        }
    }
    data.optional(FIRST + 1);
    let signer = data
        .next(SET, "signerInfos")?
        .only(SEQUENCE, "SignerInfo")?;
    let mut signer = signer.parts()?;
    signer.next(INTEGER, "version")?;
    let mut named = signer.next(SEQUENCE, "issuerAndSerialNumber")?.parts()?;
    let issuer = named.next(SEQUENCE, "issuer")?.raw.to_vec();
    let serial = named.next(INTEGER, "serialNumber")?.content.to_vec();
    let mut algorithm = signer.next(SEQUENCE, "digestAlgorithm")?.parts()?;
    let algorithm = algorithm.next(OID, "digest")?.content;
    let suite = SUITES.iter().find(|suite| suite.digest == algorithm);
    let suite = suite.ok_or("its digest is none of SHA-256, SHA-384 and SHA-512")?;

    let attributes = signer.optional(FIRST);
    let mut algorithm = signer.next(SEQUENCE, "signatureAlgorithm")?.parts()?;
    let algorithm = algorithm.next(OID, "signature")?.content;
    if algorithm != RSA && algorithm != suite.rsa {
        return Err("its signature is not RSASSA-PKCS1-v1_5".into());
    }
    let signature = signer.next(OCTETS, "signature")?.content.to_vec();
    let signed = match attributes {
        None => content.clone(),
        Some(attributes) => {
            let digest = digest(suite.computes, &content);
            attests(&attributes, digest.as_ref())?;
            // They are signed as the SET that they are (RFC 5652 §5.4).
            let (_, rest) = attributes.raw.split_first().ok_or("no attributes")?;
            [&[SET], rest].concat()
        }
    };
    Ok(Signed {
        content,
        certificates,
        issuer,
        serial,
        suite,
        signed,
        signature,
    })
}

/// Whether signed attributes are about data with this digest (RFC 5652 §5.3).
fn attests(attributes: &Tlv<'_>, digest: &[u8]) -> Result<(), String> {
    if !attributes.definite {
        return Err("its signed attributes are not in DER".into());
    }
    let (mut typed, mut digested) = (false, false);
    for attribute in attributes.parts()?.0 {
        let mut attribute = attribute.expect(SEQUENCE, "Attribute")?.parts()?;
        let kind = attribute.next(OID, "attrType")?.content;
        let values = attribute.next(SET, "attrValues")?;
        if kind == CONTENT_TYPE {
            typed = values.only(OID, "contentType")?.content == DATA;
        } else if kind == MESSAGE_DIGEST {
            digested = values.only(OCTETS, "messageDigest")?.content == digest;
        }
    }
    match (typed, digested) {
        (true, true) => Ok(()),
        (false, _) => Err("its signed attributes are about content of another type".into()),
        (_, false) => Err("its signed attributes are about other content".into()),
    }
}

/// A value with its tag.
#[derive(Clone, Copy)]
struct Tlv<'a> {
    tag: u8,
    definite: bool,
    /// With tag and length.
    raw: &'a [u8],
    content: &'a [u8],
}

/// Values that follow each other.
struct Parts<'a>(std::collections::VecDeque<Tlv<'a>>);

/// The value that is all of `bytes`, but for what follows it.
fn all(bytes: &[u8]) -> Result<Tlv<'_>, String> {
    tlv(bytes, 0).map(|(value, _)| value)
}

/// The value that `bytes` begin with, and what follows it.
fn tlv(bytes: &[u8], depth: u8) -> Result<(Tlv<'_>, &[u8]), String> {
    let short = || "it ends too soon".to_owned();
    if depth > MAX_DEPTH {
        return Err("its values stand too deep in each other".into());
    }
    let (&tag, rest) = bytes.split_first().ok_or_else(short)?;
    if tag & 0x1f == 0x1f {
        return Err("it has a tag of several bytes".into());
    }
    let (&first, mut rest) = rest.split_first().ok_or_else(short)?;
    if first == 0x80 {
        if tag & 0x20 == 0 {
            return Err("a primitive value has no length".into());
        }
        let start = rest;
        loop {
            if let Some(after) = rest.strip_prefix(&[0, 0]) {
                let content = start.len().saturating_sub(rest.len());
                let whole = bytes.len().saturating_sub(after.len());
                let value = Tlv {
                    tag,
                    definite: false,
                    raw: bytes.get(..whole).ok_or_else(short)?,
                    content: start.get(..content).ok_or_else(short)?,
                };
                return Ok((value, after));
            }
            (_, rest) = tlv(rest, depth.saturating_add(1))?;
        }
    }
    let mut length = usize::from(first);
    if first > 0x80 {
        let (size, after) = rest
            .split_at_checked(usize::from(first & 0x7f))
            .filter(|(size, _)| size.len() <= 4)
            .ok_or_else(short)?;
        rest = after;
        length = size
            .iter()
            .fold(0, |length, byte| (length << 8) | usize::from(*byte));
    }
    let (content, after) = rest.split_at_checked(length).ok_or_else(short)?;
    let whole = bytes.len().saturating_sub(after.len());
    let value = Tlv {
        tag,
        definite: true,
        raw: bytes.get(..whole).ok_or_else(short)?,
        content,
    };
    Ok((value, after))
}

impl<'a> Tlv<'a> {
    fn expect(self, tag: u8, what: &str) -> Result<Self, String> {
        if self.tag == tag {
            return Ok(self);
        }
        Err(format!("{what} is missing"))
    }

    fn parts(&self) -> Result<Parts<'a>, String> {
        let mut parts = std::collections::VecDeque::new();
        let mut rest = self.content;
        while !rest.is_empty() {
            let (part, after) = tlv(rest, 0)?;
            parts.push_back(part);
            rest = after;
        }
        Ok(Parts(parts))
    }

    fn only(&self, tag: u8, what: &str) -> Result<Self, String> {
        self.parts()?.one()?.expect(tag, what)
    }

    /// Bytes, in one piece or several (X.690 §8.7).
    fn octets(&self) -> Result<Vec<u8>, String> {
        match self.tag {
            OCTETS => Ok(self.content.to_vec()),
            OCTETS_IN_PARTS => {
                let mut bytes = Vec::new();
                for part in self.parts()?.0 {
                    bytes.extend_from_slice(part.expect(OCTETS, "OCTET STRING")?.content);
                }
                Ok(bytes)
            }
            _ => Err("its content is no OCTET STRING".into()),
        }
    }
}

impl<'a> Parts<'a> {
    fn next(&mut self, tag: u8, what: &str) -> Result<Tlv<'a>, String> {
        let part = self.0.pop_front();
        part.ok_or_else(|| format!("{what} is missing"))?
            .expect(tag, what)
    }

    fn optional(&mut self, tag: u8) -> Option<Tlv<'a>> {
        self.0.front().filter(|part| part.tag == tag)?;
        self.0.pop_front()
    }

    fn one(mut self) -> Result<Tlv<'a>, String> {
        match (self.0.pop_front(), self.0.pop_front()) {
            (Some(one), None) => Ok(one),
            (None, _) => Err("something is missing".into()),
            _ => Err("there are several where one is taken".into()),
        }
    }

    fn is_oid(&mut self, oid: &[u8], what: &str) -> Result<(), String> {
        if self.next(OID, what)?.content == oid {
            return Ok(());
        }
        Err(format!("it is not {what}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Signed::parse(&bytes);
        }

        #[test]
        fn a_broken_document_is_read_without_a_panic(at in 0_usize..1000, byte in any::<u8>()) {
            // The beginning of a SignedData in BER.
            let mut bytes = [
                &[0x30, 0x80, 0x06, 0x09][..], SIGNED_DATA, &[0xa0, 0x80, 0x30, 0x80, 0x02, 0x01, 0x01, 0x31, 0x00],
                &[0x30, 0x80, 0x06, 0x09], DATA, &[0xa0, 0x80, 0x24, 0x80, 0x04, 0x02, 0x68, 0x69], &[0; 16],
            ].concat();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = Signed::parse(&bytes);
        }
    }

    #[test]
    fn values_without_a_length_may_not_stand_in_each_other_without_end() {
        let deep = [0x30, 0x80].repeat(10_000);
        let error = Signed::parse(&deep).err().unwrap();
        assert!(error.contains("too deep"), "{error}");
    }
}
