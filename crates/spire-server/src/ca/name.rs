//! Distinguished names (RFC 5280 §4.1.2.4) as upstream writes them.

use ah_spire_wire::der::{self, Writer};
use x509_parser::x509::X509Name;

use super::compose::ObjectId;

const COUNTRY: &[u8] = &[0x55, 0x04, 0x06];
const ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0a];
const ORGANIZATIONAL_UNIT: &[u8] = &[0x55, 0x04, 0x0b];
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const SERIAL_NUMBER: &[u8] = &[0x55, 0x04, 0x05];
const LOCALITY: &[u8] = &[0x55, 0x04, 0x07];
const PROVINCE: &[u8] = &[0x55, 0x04, 0x08];
const STREET_ADDRESS: &[u8] = &[0x55, 0x04, 0x09];
const POSTAL_CODE: &[u8] = &[0x55, 0x04, 0x11];

/// The subject of a certificate. What is empty is not written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// `C`
    pub country: Vec<String>,
    /// `O`
    pub organization: Vec<String>,
    /// `OU`
    pub organizational_unit: Vec<String>,
    /// `L`
    pub locality: Vec<String>,
    /// `ST`
    pub province: Vec<String>,
    /// `street`
    pub street_address: Vec<String>,
    /// `postalCode`
    pub postal_code: Vec<String>,
    /// `CN`
    pub common_name: String,
    /// `serialNumber`
    pub serial_number: String,
    /// Anything else. One of a kind that is named above stands in its place.
    pub extra: Vec<(ObjectId, String)>,
}

impl Subject {
    /// `C=US, O=…`
    pub(super) fn us(organization: &str) -> Self {
        Self {
            country: vec!["US".into()],
            organization: vec![organization.into()],
            ..Self::default()
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn write(&self, w: &mut Writer) {
        w.sequence(|w| {
            let one = std::slice::from_ref;
            for (kind, values) in [
                (COUNTRY, self.country.as_slice()),
                (ORGANIZATION, &self.organization),
                (ORGANIZATIONAL_UNIT, &self.organizational_unit),
                (LOCALITY, &self.locality),
                (PROVINCE, &self.province),
                (STREET_ADDRESS, &self.street_address),
                (POSTAL_CODE, &self.postal_code),
                (COMMON_NAME, one(&self.common_name)),
                (SERIAL_NUMBER, one(&self.serial_number)),
            ] {
                if !self.extra.iter().any(|(other, _)| other.as_der() == kind) {
                    several(w, kind, values);
                }
            }
            for (kind, value) in &self.extra {
                several(w, kind.as_der(), one(value));
            }
        });
    }

    /// The attributes of a name that are known here.
    pub(super) fn read(name: &X509Name<'_>) -> Self {
        let mut subject = Self::default();
        for attribute in name.iter_attributes() {
            let Ok(value) = attribute.as_str() else {
                continue;
            };
            let value = value.to_owned();
            match attribute.attr_type().as_bytes() {
                COUNTRY => subject.country.push(value),
                ORGANIZATION => subject.organization.push(value),
                ORGANIZATIONAL_UNIT => subject.organizational_unit.push(value),
                LOCALITY => subject.locality.push(value),
                PROVINCE => subject.province.push(value),
                STREET_ADDRESS => subject.street_address.push(value),
                POSTAL_CODE => subject.postal_code.push(value),
                COMMON_NAME => subject.common_name = value,
                SERIAL_NUMBER => subject.serial_number = value,
                _ => {
                    let kind = attribute.attr_type().to_id_string().parse();
                    subject.extra.extend(kind.ok().map(|kind| (kind, value)));
                }
            }
        }
        subject
    }
}

/// All values of one kind are one relative name.
fn several(w: &mut Writer, kind: &[u8], values: &[String]) {
    let mut encoded: Vec<Vec<u8>> = values
        .iter()
        .filter(|value| !value.is_empty())
        .map(|value| {
            let mut one = Writer::with_capacity(value.len().saturating_add(16));
            one.sequence(|w| {
                w.primitive(der::OID, kind);
                w.primitive(string_tag(value), value.as_bytes());
            });
            one.finish()
        })
        .collect();
    if encoded.is_empty() {
        return;
    }
    encoded.sort_unstable();
    w.nested(der::SET, |w| {
        for one in &encoded {
            w.raw(one);
        }
    });
}

/// PrintableString where that can hold it, else UTF8String.
fn string_tag(value: &str) -> u8 {
    let printable = |byte: u8| byte.is_ascii_alphanumeric() || b" '()+,-./:=?".contains(&byte);
    if value.bytes().all(printable) {
        0x13
    } else {
        0x0c
    }
}
