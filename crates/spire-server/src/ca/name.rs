//! Distinguished names (RFC 5280 §4.1.2.4) as upstream writes them.

use ah_spire_wire::der::{self, Writer};
use x509_parser::x509::X509Name;

const COUNTRY: &[u8] = &[0x55, 0x04, 0x06];
const ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0a];
const ORGANIZATIONAL_UNIT: &[u8] = &[0x55, 0x04, 0x0b];
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const SERIAL_NUMBER: &[u8] = &[0x55, 0x04, 0x05];
const UNIQUE_ID: &[u8] = &[0x55, 0x04, 0x2d];

/// The subject of a certificate. What is empty is not written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// `C`
    pub country: Vec<String>,
    /// `O`
    pub organization: Vec<String>,
    /// `OU`
    pub organizational_unit: Vec<String>,
    /// `CN`
    pub common_name: String,
    /// `serialNumber`
    pub serial_number: String,
    /// `x500UniqueIdentifier`
    pub unique_id: String,
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
            several(w, COUNTRY, &self.country);
            several(w, ORGANIZATION, &self.organization);
            several(w, ORGANIZATIONAL_UNIT, &self.organizational_unit);
            for (kind, value) in [
                (COMMON_NAME, &self.common_name),
                (SERIAL_NUMBER, &self.serial_number),
                (UNIQUE_ID, &self.unique_id),
            ] {
                several(w, kind, std::slice::from_ref(value));
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
                COMMON_NAME => subject.common_name = value,
                SERIAL_NUMBER => subject.serial_number = value,
                UNIQUE_ID => subject.unique_id = value,
                _ => {}
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
