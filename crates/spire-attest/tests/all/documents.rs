//! Signed documents of platforms: SignedData (RFC 5652) as AWS and Azure write it, with values whose end is marked.

use aws_lc_rs::digest::{SHA256, digest};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::tokens::Issuer;

const DATA: &str = "06092a864886f70d010701";
const SHA_256: &str = "300d06096086480165030402010500";
const RSA: &str = "300d06092a864886f70d0101010500";

/// `content`, signed by `signer`, with `certificates` (DER) along.
pub(crate) fn signed(signer: &Issuer, content: &[u8], certificates: &[&[u8]]) -> Vec<u8> {
    let attributes = [
        attribute("06092a864886f70d010903", &hex(DATA)),
        attribute(
            "06092a864886f70d010904",
            &tlv(0x04, digest(&SHA256, content).as_ref()),
        ),
    ]
    .concat();
    signed_with(signer, content, certificates, &attributes)
}

/// The same with other signed attributes.
pub(crate) fn signed_with(
    signer: &Issuer,
    content: &[u8],
    certificates: &[&[u8]],
    attributes: &[u8],
) -> Vec<u8> {
    let (_, certificate) = X509Certificate::from_der(signer.certificate.der()).unwrap();
    let name = [
        certificate.issuer().as_raw(),
        &tlv(0x02, certificate.raw_serial()),
    ]
    .concat();
    let signature = signer.signature(&tlv(0x31, attributes));
    let signer = [
        hex("020101"),
        tlv(0x30, &name),
        hex(SHA_256),
        tlv(0xa0, attributes),
        hex(RSA),
        tlv(0x04, &signature),
    ]
    .concat();
    let (first, second) = content.split_at(content.len() / 2);
    let content = open(0x24, &[tlv(0x04, first), tlv(0x04, second)].concat());
    let data = [
        hex("020101"),
        tlv(0x31, &hex(SHA_256)),
        open(0x30, &[hex(DATA), open(0xa0, &content)].concat()),
        open(0xa0, &certificates.concat()),
        tlv(0x31, &tlv(0x30, &signer)),
    ]
    .concat();
    let data = open(0xa0, &open(0x30, &data));
    open(0x30, &[hex("06092a864886f70d010702"), data].concat())
}

/// A signed attribute with one value.
pub(crate) fn attribute(oid: &str, value: &[u8]) -> Vec<u8> {
    tlv(0x30, &[hex(oid), tlv(0x31, value)].concat())
}

pub(crate) fn hex(text: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digit).collect()
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    match content.len() {
        0..=0x7f => [&[tag, length[1]], content].concat(),
        0x80..=0xff => [&[tag, 0x81, length[1]], content].concat(),
        _ => [&[tag, 0x82, length[0], length[1]], content].concat(),
    }
}

fn open(tag: u8, content: &[u8]) -> Vec<u8> {
    [&[tag, 0x80], content, &[0, 0]].concat()
}
