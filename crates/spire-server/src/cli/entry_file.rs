//! Entries in files: the JSON that `-data` and `-file` take.
//!
//! The keys are those of `spire.common.RegistrationEntry`, in any case, with or without underscores: upstream's own
//! documents have both `spiffe_id` and `entryExpiry`.

use std::io::Read as _;

use ah_spire_wire::spiffe_id_to_wire;
use ah_spire_wire::types::entry::AdditionalAttributes;
use ah_spire_wire::types::{Entry, Selector};
use serde_json::{Map, Value};

use super::{Failure, matching};
use crate::ids;

/// Files above this size are refused, in bytes.
const MOST: u64 = 64 * 1024 * 1024;

/// `{"entries": […]}`
pub(super) fn entries(path: &str) -> Result<Vec<Entry>, Failure> {
    from_document(&document(path)?)
}

/// `{"ids": […]}`
pub(super) fn ids(path: &str) -> Result<Vec<String>, Failure> {
    let document = document(path)?;
    let fields = Fields::of(&document, "the document")?;
    fields.texts("ids")
}

/// The whole of a file, or of standard input for `-`.
pub(super) fn text(path: &str) -> Result<String, Failure> {
    let mut text = String::new();
    let read = if path == "-" {
        std::io::stdin().lock().take(MOST).read_to_string(&mut text)
    } else {
        let file = std::fs::File::open(path)
            .map_err(|error| Failure::because(&format!("open {path}"), error))?;
        file.take(MOST).read_to_string(&mut text)
    };
    read.map_err(|error| Failure::because(&format!("read {path}"), error))?;
    Ok(text)
}

fn document(path: &str) -> Result<Value, Failure> {
    let text = text(path)?;
    serde_json::from_str(&text).map_err(|error| Failure::because(&format!("parse {path}"), error))
}

pub(super) fn from_document(document: &Value) -> Result<Vec<Entry>, Failure> {
    let fields = Fields::of(document, "the document")?;
    let Some(entries) = fields.list("entries")? else {
        return Ok(Vec::new());
    };
    entries
        .iter()
        .enumerate()
        .map(|(at, one)| entry(one).map_err(|failure| failure.during(&format!("entry {}", at + 1))))
        .collect()
}

/// As [`from_document`], and a field that an entry does not have is a mistake.
pub(super) fn declared(document: &Value) -> Result<Vec<Entry>, Failure> {
    let fields = Fields::of(document, "the document")?;
    for (at, one) in fields.list("entries")?.into_iter().flatten().enumerate() {
        let unknown = Fields::of(one, "it").and_then(|fields| {
            let known = |key: &String| FIELDS.iter().any(|field| letters(field) == letters(key));
            match fields.0.keys().find(|key| !known(key)) {
                None => Ok(()),
                Some(key) => Err(Failure(format!("{key:?} is no field of an entry"))),
            }
        });
        unknown.map_err(|failure| failure.during(&format!("entry {}", at + 1)))?;
    }
    from_document(document)
}

const FIELDS: [&str; 13] = [
    "spiffe_id",
    "parent_id",
    "selectors",
    "x509_svid_ttl",
    "jwt_svid_ttl",
    "federates_with",
    "admin",
    "downstream",
    "entry_expiry",
    "dns_names",
    "store_svid",
    "hint",
    "additional_attributes",
];

fn entry(value: &Value) -> Result<Entry, Failure> {
    let fields = Fields::of(value, "it")?;
    let id = |name, what: &str| {
        let text = fields.text(name)?;
        let id = ids::parse(&text).map_err(|why| Failure::because(what, why))?;
        Ok::<_, Failure>(Some(spiffe_id_to_wire(&id)))
    };
    let mut selectors = Vec::new();
    for one in fields.list("selectors")?.into_iter().flatten() {
        if let Some(text) = one.as_str() {
            selectors.push(matching::selector(text)?);
            continue;
        }
        let one = Fields::of(one, "a selector")?;
        selectors.push(Selector {
            r#type: one.text("type")?,
            value: one.text("value")?,
        });
    }
    let mut federates_with = Vec::new();
    for domain in fields.texts("federates_with")? {
        let domain = ids::trust_domain(&domain)
            .map_err(|why| Failure::because("invalid federated trust domain", why))?;
        federates_with.push(domain.to_string());
    }
    let more = match fields.get("additional_attributes") {
        None => None,
        Some(more) => {
            let more = Fields::of(more, "additional_attributes")?;
            Some(AdditionalAttributes {
                disable_x509_svid_prefetch: more.truth("disable_x509_svid_prefetch")?,
                jwt_svid_include_jti: more.truth("jwt_svid_include_jti")?,
            })
        }
    };
    Ok(Entry {
        id: fields.text("entry_id")?,
        spiffe_id: id("spiffe_id", "invalid SPIFFE ID")?,
        parent_id: id("parent_id", "invalid parent ID")?,
        selectors,
        x509_svid_ttl: fields.ttl("x509_svid_ttl")?,
        jwt_svid_ttl: fields.ttl("jwt_svid_ttl")?,
        federates_with,
        admin: fields.truth("admin")?,
        downstream: fields.truth("downstream")?,
        expires_at: fields.number("entry_expiry")?,
        dns_names: fields.texts("dns_names")?,
        revision_number: 0,
        store_svid: fields.truth("store_svid")?,
        hint: fields.text("hint")?,
        created_at: 0,
        additional_attributes: more,
    })
}

/// An object whose keys are found by their letters alone.
pub(super) struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    pub(super) fn of(value: &'a Value, what: &str) -> Result<Self, Failure> {
        value
            .as_object()
            .map(Self)
            .ok_or_else(|| Failure(format!("{what} is no JSON object")))
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        let wanted = letters(name);
        let found = self.0.iter().find(|(key, _)| letters(key) == wanted);
        found
            .map(|(_, value)| value)
            .filter(|value| !value.is_null())
    }

    pub(super) fn list(&self, name: &str) -> Result<Option<&'a Vec<Value>>, Failure> {
        self.get(name)
            .map(|value| value.as_array().ok_or_else(|| wrong(name, "a list")))
            .transpose()
    }

    fn texts(&self, name: &str) -> Result<Vec<String>, Failure> {
        let list = self.list(name)?.into_iter().flatten();
        list.map(|one| one.as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .ok_or_else(|| wrong(name, "a list of strings"))
    }

    pub(super) fn text(&self, name: &str) -> Result<String, Failure> {
        self.get(name).map_or(Ok(String::new()), |value| {
            let text = value.as_str().map(str::to_owned);
            text.ok_or_else(|| wrong(name, "a string"))
        })
    }

    fn truth(&self, name: &str) -> Result<bool, Failure> {
        self.get(name).map_or(Ok(false), |value| {
            value.as_bool().ok_or_else(|| wrong(name, "true or false"))
        })
    }

    fn number(&self, name: &str) -> Result<i64, Failure> {
        self.get(name).map_or(Ok(0), |value| {
            value.as_i64().ok_or_else(|| wrong(name, "a whole number"))
        })
    }

    fn ttl(&self, name: &str) -> Result<i32, Failure> {
        let seconds = self.number(name)?;
        i32::try_from(seconds).map_err(|_| wrong(name, "a number of seconds below 2^31"))
    }
}

fn letters(key: &str) -> String {
    key.chars()
        .filter(|c| *c != '_')
        .map(|c| c.to_ascii_lowercase())
        .collect()
}

fn wrong(name: &str, wanted: &str) -> Failure {
    Failure(format!("\"{name}\" is not {wanted}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    // Inventory section 6: `entry create -data` takes camel and snake case.
    #[test]
    fn keys_are_found_however_they_are_written() {
        let snake = json!({ "entries": [{
            "spiffe_id": "spiffe://example.org/w", "parent_id": "spiffe://example.org/p",
            "selectors": [{ "type": "unix", "value": "uid:1" }], "x509_svid_ttl": 60,
            "entryExpiry": 7, "federates_with": ["spiffe://other.org"],
            "additional_attributes": { "jwt_svid_include_jti": true },
        }] });
        let camel = json!({ "entries": [{
            "spiffeId": "spiffe://example.org/w", "parentID": "spiffe://example.org/p",
            "selectors": [{ "type": "unix", "value": "uid:1" }], "x509SvidTtl": 60,
            "entry_expiry": 7, "federatesWith": ["other.org"],
            "additionalAttributes": { "jwtSvidIncludeJti": true },
        }] });
        let read = from_document(&snake).unwrap();
        assert_eq!(read, from_document(&camel).unwrap());
        assert_eq!(read[0].expires_at, 7);
        assert_eq!(read[0].federates_with, ["other.org"]);
        assert!(read[0].additional_attributes.unwrap().jwt_svid_include_jti);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_entry() {
        let bad = json!({ "entries": [
            { "spiffe_id": "spiffe://a.org/w", "parent_id": "spiffe://a.org/p" },
            { "spiffe_id": "http://a.org/w" },
        ] });
        let failure = from_document(&bad).unwrap_err();
        assert_eq!(
            failure.0,
            "entry 2: invalid SPIFFE ID: scheme is missing or invalid"
        );
        let bad = json!({ "entries": [{ "spiffe_id": 1 }] });
        assert_eq!(
            from_document(&bad).unwrap_err().0,
            "entry 1: \"spiffe_id\" is not a string"
        );
        assert!(from_document(&json!([])).is_err());
        assert_eq!(from_document(&json!({})).unwrap(), []);
    }
}
