//! `entry sync`: the entries of a file, and no others of the same owner.
//!
//! An entry that was made so is known by its ID, `sync.OWNER.DIGEST`; the digest is of parent, SPIFFE ID and selectors,
//! which are what makes an entry another one. Entries with other IDs are never touched.

use std::collections::BTreeMap;

use ah_spire_plugin::goflag::FlagSet;
use ah_spire_plugin::hcl::{self, Object, Scalar, Value as Hcl};
use ah_spire_wire::server::entry::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, BatchUpdateEntryRequest, list_entries_request,
};
use ah_spire_wire::types::{Entry, Spiffeid, Status};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{Call, Failure, code_name, entry, entry_file};

/// Entries changed in one request.
const BATCH: usize = 200;

pub(super) fn flags(flags: FlagSet) -> FlagSet {
    flags
        .string("file", "", "Path to the entries that there are to be, as JSON or HCL ('-' for stdin)")
        .string("owner", "default", "Whose entries these are; those of other owners and those made by hand stay as they are")
        .bool("dryRun", false, "Tells what would be done and does nothing")
}

/// What has to be done.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    create: Vec<Entry>,
    update: Vec<Entry>,
    delete: Vec<Entry>,
    unchanged: usize,
}

pub(super) async fn sync(call: &mut Call<'_>) -> Result<(), Failure> {
    let path = call
        .flags
        .nonempty("file")
        .ok_or("a file is required (-file)")?;
    let owner = call.flags.string("owner");
    if owner.is_empty()
        || !owner
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    {
        return Err("an owner is of letters, digits and dashes (-owner)".into());
    }
    let document = document(&entry_file::text(path)?)
        .map_err(|failure| failure.during(&format!("parse {path}")))?;
    let wanted = entry_file::declared(&document)?;
    let stored = entry::all(call, list_entries_request::Filter::default()).await?;
    let plan = plan(owner, wanted, stored)?;
    let dry = call.flags.bool("dryRun");
    let failed = if dry {
        Vec::new()
    } else {
        apply(call, &plan).await?
    };
    report(call, &plan, &failed, dry)
}

/// JSON when it begins with a brace, else HCL.
fn document(text: &str) -> Result<Value, Failure> {
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(|error| Failure::new(error.to_string()));
    }
    let object = hcl::parse(text).map_err(|error| Failure::new(error.to_string()))?;
    Ok(of_object(&object))
}

fn of_object(object: &Object) -> Value {
    let mut fields = Map::new();
    for item in &object.items {
        let Some((name, labels)) = item.keys.split_first() else {
            continue;
        };
        let value = labels.iter().rev().fold(
            of_hcl(&item.value),
            |value, label| json!({ label.name.as_str(): value }),
        );
        fields.insert(name.name.clone(), value);
    }
    Value::Object(fields)
}

fn of_hcl(value: &Hcl) -> Value {
    match value {
        Hcl::Object(object) => of_object(object),
        Hcl::List(list) => list.values.iter().map(of_hcl).collect(),
        Hcl::Literal(literal) => match &literal.scalar {
            Scalar::Bool(truth) => Value::Bool(*truth),
            Scalar::Text(text) => Value::String(text.to_string()),
            Scalar::Float(text) => Value::String(text.clone()),
            Scalar::Number(text) => match text.parse::<i64>() {
                Ok(number) => number.into(),
                Err(_) => Value::String(text.to_string()),
            },
        },
    }
}

fn plan(owner: &str, wanted: Vec<Entry>, stored: Vec<Entry>) -> Result<Plan, Failure> {
    let prefix = format!("sync.{owner}.");
    let mut ours: BTreeMap<String, Entry> = stored
        .into_iter()
        .filter(|entry| entry.id.starts_with(&prefix))
        .map(|entry| (entry.id.clone(), entry))
        .collect();
    let mut seen = BTreeMap::new();
    let mut plan = Plan::default();
    for (at, mut entry) in wanted.into_iter().enumerate() {
        entry
            .selectors
            .sort_by(|a, b| (&a.r#type, &a.value).cmp(&(&b.r#type, &b.value)));
        entry.selectors.dedup();
        entry.id = format!("{prefix}{}", digest(&entry));
        if let Some(first) = seen.insert(entry.id.clone(), at + 1) {
            return Err(Failure(format!(
                "entries {first} and {} have the same parent, SPIFFE ID and selectors; keep one of them",
                at + 1
            )));
        }
        match ours.remove(&entry.id) {
            None => plan.create.push(entry),
            Some(stored) if settled(&stored) == settled(&entry) => plan.unchanged += 1,
            Some(_) => plan.update.push(entry),
        }
    }
    plan.delete = ours.into_values().collect();
    Ok(plan)
}

/// What of an entry the file decides, in an order that means nothing.
fn settled(entry: &Entry) -> Entry {
    let mut settled = Entry {
        revision_number: 0,
        created_at: 0,
        selectors: Vec::new(),
        ..entry.clone()
    };
    settled.federates_with.sort_unstable();
    settled.additional_attributes = Some(entry.additional_attributes.unwrap_or_default());
    settled
}

fn digest(entry: &Entry) -> String {
    let id = |id: &Option<Spiffeid>| {
        let id = id.clone().unwrap_or_default();
        format!("spiffe://{}{}\n", id.trust_domain, id.path)
    };
    let mut hash = Sha256::new();
    hash.update(id(&entry.parent_id));
    hash.update(id(&entry.spiffe_id));
    for selector in &entry.selectors {
        hash.update(format!("{}:{}\n", selector.r#type, selector.value));
    }
    let digest = hash.finalize();
    digest
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// What could not be done. New entries come before old ones go, so that nobody is left without an identity between.
async fn apply(call: &mut Call<'_>, plan: &Plan) -> Result<Vec<String>, Failure> {
    let mut client = call.server.entries().await?;
    let mut failed = Vec::new();
    let mut judge = |verb: &str, entry: &Entry, status: Option<Status>| {
        let status = status.unwrap_or_default();
        if status.code != 0 {
            let code = code_name(status.code.into());
            failed.push(format!(
                "Failed to {verb} entry {} ({}) (code: {code}, msg: {:?})",
                entry.id,
                name(entry),
                status.message
            ));
        }
    };
    for entries in plan.create.chunks(BATCH) {
        let request = BatchCreateEntryRequest {
            entries: entries.to_vec(),
            output_mask: None,
        };
        let results = client
            .batch_create_entry(request)
            .await?
            .into_inner()
            .results;
        for (entry, result) in entries.iter().zip(results) {
            judge("create", entry, result.status);
        }
    }
    for entries in plan.update.chunks(BATCH) {
        let request = BatchUpdateEntryRequest {
            entries: entries.to_vec(),
            input_mask: None,
            output_mask: None,
        };
        let results = client
            .batch_update_entry(request)
            .await?
            .into_inner()
            .results;
        for (entry, result) in entries.iter().zip(results) {
            judge("update", entry, result.status);
        }
    }
    for entries in plan.delete.chunks(BATCH) {
        let request = BatchDeleteEntryRequest {
            ids: entries.iter().map(|entry| entry.id.clone()).collect(),
        };
        let results = client
            .batch_delete_entry(request)
            .await?
            .into_inner()
            .results;
        for (entry, result) in entries.iter().zip(results) {
            judge("delete", entry, result.status);
        }
    }
    Ok(failed)
}

fn name(entry: &Entry) -> String {
    let id = entry.spiffe_id.clone().unwrap_or_default();
    format!("spiffe://{}{}", id.trust_domain, id.path)
}

fn report(call: &mut Call<'_>, plan: &Plan, failed: &[String], dry: bool) -> Result<(), Failure> {
    let out = &mut call.out;
    if out.is_json() {
        let ids = |entries: &[Entry]| entries.iter().map(|it| it.id.clone()).collect::<Vec<_>>();
        out.json(&json!({
            "created": ids(&plan.create),
            "updated": ids(&plan.update),
            "deleted": ids(&plan.delete),
            "unchanged": plan.unchanged,
            "dry_run": dry,
            "failed": failed,
        }));
    } else {
        let verbs = if dry {
            ["Would create", "Would update", "Would delete"]
        } else {
            ["Create", "Update", "Delete"]
        };
        for (verb, entries) in verbs.iter().zip([&plan.create, &plan.update, &plan.delete]) {
            for entry in entries {
                out.line(&format!("{verb} {} {}", entry.id, name(entry)));
            }
        }
        out.line(&format!(
            "{} to create, {} to update, {} to delete, {} unchanged",
            plan.create.len(),
            plan.update.len(),
            plan.delete.len(),
            plan.unchanged
        ));
        failed.iter().for_each(|line| out.error_line(line));
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err("failed to synchronize one or more entries".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hcl_and_json_say_the_same() {
        let hcl = r#"entries = [ { spiffe_id = "spiffe://a.org/w" parent_id = "spiffe://a.org/p" selectors = ["unix:uid:0"] x509_svid_ttl = 60 admin = true } ]"#;
        let json = r#"{"entries":[{"spiffeId":"spiffe://a.org/w","parentId":"spiffe://a.org/p","selectors":["unix:uid:0"],"x509SvidTtl":60,"admin":true}]}"#;
        let read = |text: &str| entry_file::declared(&document(text).unwrap()).unwrap();
        assert_eq!(read(hcl), read(json));
        assert_eq!(read(json)[0].x509_svid_ttl, 60);
        let wrong = document(r#"{"entries":[{"spifeId":"x"}]}"#).unwrap();
        let failure = entry_file::declared(&wrong).unwrap_err();
        assert_eq!(failure.0, "entry 1: \"spifeId\" is no field of an entry");
    }

    #[test]
    fn the_same_entry_twice_is_a_mistake() {
        let text = r#"{"entries":[
            {"spiffeId":"spiffe://a.org/w","parentId":"spiffe://a.org/p","selectors":["a:b","c:d"]},
            {"spiffeId":"spiffe://a.org/w","parentId":"spiffe://a.org/p","selectors":["c:d","a:b"],"admin":true}
        ]}"#;
        let wanted = entry_file::declared(&document(text).unwrap()).unwrap();
        let failure = plan("x", wanted, Vec::new()).unwrap_err();
        assert!(
            failure
                .0
                .starts_with("entries 1 and 2 have the same parent"),
            "{}",
            failure.0
        );
    }
}
