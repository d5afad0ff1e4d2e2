//! `entry create`, `update`, `show`, `count` and `delete`

use ah_spire_plugin::goflag::{FlagSet, Flags};
use ah_spire_wire::server::entry::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, BatchUpdateEntryRequest, CountEntriesRequest,
    GetEntryRequest, ListEntriesRequest, count_entries_request, list_entries_request,
};
use ah_spire_wire::spiffe_id_to_wire;
use ah_spire_wire::types::entry::AdditionalAttributes;
use ah_spire_wire::types::{Entry, FederatesWithMatch, SelectorMatch, Spiffeid, Status};
use serde_json::{Value, json};

use super::matching::{self, counted};
use super::output::Output;
use super::{Call, Failure, code_name, entry_file, json as told};
use crate::{ids, moment};

/// Entries asked for at a time.
const PAGE: i32 = 500;

const SELECTOR: &str = "A colon-delimited type:value selector. Can be used more than once";
const DOWNSTREAM: &str =
    "A boolean value that, when set, indicates that the entry describes a downstream SPIRE server";
const NO_PREFETCH: &str = "disableX509SVIDPrefetch";
const WITH_JTI: &str = "jwtSVIDIncludeJTI";

/// The fields of an entry, for `create` and `update`.
fn field_flags(flags: FlagSet) -> FlagSet {
    flags
        .string("parentID", "", "The SPIFFE ID of this record's parent")
        .string("spiffeID", "", "The SPIFFE ID that this record represents")
        .int("x509SVIDTTL", 0, "The lifetime, in seconds, for x509-SVIDs issued based on this registration entry.")
        .int("jwtSVIDTTL", 0, "The lifetime, in seconds, for JWT-SVIDs issued based on this registration entry.")
        .string("data", "", "Path to a file containing registration JSON (optional). If set to '-', read the JSON from stdin.")
        .list("selector", SELECTOR)
        .list("federatesWith", "SPIFFE ID of a trust domain to federate with. Can be used more than once")
        .bool("admin", false, "If set, the SPIFFE ID in this entry will be granted access to the SPIRE Server's management APIs")
        .bool("storeSVID", false, "A boolean value that, when set, indicates that the resulting issued SVID from this entry must be stored through an SVIDStore plugin")
        .bool("downstream", false, DOWNSTREAM)
        .int("entryExpiry", 0, "An expiry, from epoch in seconds, for the resulting registration entry to be pruned")
        .list("dns", "A DNS name that will be included in SVIDs issued based on this entry, where appropriate. Can be used more than once")
        .string("hint", "", "The entry hint, used to disambiguate entries with the same SPIFFE ID")
        .bool(NO_PREFETCH, false, "A boolean value that, when set, disables prefetching X509 SVID for this entry")
        .bool(WITH_JTI, false, "A boolean value that, when set, includes a unique 'jti' claim in JWT-SVIDs issued for this entry and bypasses the agent JWT-SVID cache")
}

pub(super) fn create_flags(flags: FlagSet) -> FlagSet {
    field_flags(flags)
        .string("entryID", "", "A custom ID for this registration entry (optional). If not set, a new entry ID will be generated")
        .bool("node", false, "If set, this entry will be applied to matching nodes rather than workloads")
}

pub(super) fn update_flags(flags: FlagSet) -> FlagSet {
    field_flags(flags).string(
        "entryID",
        "",
        "The Registration Entry ID of the record to update",
    )
}

pub(super) fn filter_flags(flags: FlagSet, what: &str) -> FlagSet {
    flags
        .string("parentID", "", &format!("The Parent ID of the records to {what}"))
        .string("spiffeID", "", &format!("The SPIFFE ID of the records to {what}"))
        .bool("downstream", false, DOWNSTREAM)
        .list("selector", SELECTOR)
        .list("federatesWith", "SPIFFE ID of a trust domain an entry is federate with. Can be used more than once")
        .string("matchFederatesWithOn", "superset", "The match mode used when filtering by federates with. Options: exact, any, superset and subset")
        .string("matchSelectorsOn", "superset", "The match mode used when filtering by selectors. Options: exact, any, superset and subset")
        .string("hint", "", &format!("The Hint of the records to {what} (optional)"))
}

pub(super) fn show_flags(flags: FlagSet) -> FlagSet {
    filter_flags(flags, "show").string("entryID", "", "The Entry ID of the records to show")
}

pub(super) fn delete_flags(flags: FlagSet) -> FlagSet {
    flags
        .string("entryID", "", "The Registration Entry ID of the record to delete.")
        .string("file", "", "Path to a file containing a JSON structure for batch deletion (optional). If set to '-', read from stdin.")
}

pub(super) async fn create(call: &mut Call<'_>) -> Result<(), Failure> {
    let flags = call.flags;
    let entries = match flags.nonempty("data") {
        Some(path) => entry_file::entries(path)?,
        None => vec![created(flags)?],
    };
    let request = BatchCreateEntryRequest {
        entries: entries.clone(),
        output_mask: None,
    };
    let answer = call
        .server
        .entries()
        .await?
        .batch_create_entry(request)
        .await?;
    let results = answer.into_inner().results;
    let results = results.into_iter().map(|it| (it.status, it.entry));
    report(&mut call.out, "create", entries, results)
}

pub(super) async fn update(call: &mut Call<'_>) -> Result<(), Failure> {
    let flags = call.flags;
    let mut client = call.server.entries();
    let entries = match flags.nonempty("data") {
        Some(path) => entry_file::entries(path)?,
        None => {
            let mut entry = updated(flags)?;
            if let Some(given) = entry.additional_attributes {
                // The wire has no mask for the single attributes: those that are not given keep their values.
                let id = entry.id.clone();
                let request = GetEntryRequest {
                    id,
                    output_mask: None,
                };
                let what = "failed to fetch existing entry to merge additional attributes";
                let mut connected = client.await?;
                let stored = connected.get_entry(request).await;
                let stored = stored.map_err(|error| Failure::from(error).during(what))?;
                let stored = stored
                    .into_inner()
                    .additional_attributes
                    .unwrap_or_default();
                entry.additional_attributes = Some(AdditionalAttributes {
                    disable_x509_svid_prefetch: given.disable_x509_svid_prefetch
                        || stored.disable_x509_svid_prefetch,
                    jwt_svid_include_jti: given.jwt_svid_include_jti || stored.jwt_svid_include_jti,
                });
                client = call.server.entries();
            }
            vec![entry]
        }
    };
    let request = BatchUpdateEntryRequest {
        entries: entries.clone(),
        input_mask: None,
        output_mask: None,
    };
    let answer = client.await?.batch_update_entry(request).await?;
    let results = answer.into_inner().results;
    let results = results.into_iter().map(|it| (it.status, it.entry));
    report(&mut call.out, "update", entries, results)
}

pub(super) async fn show(call: &mut Call<'_>) -> Result<(), Failure> {
    let flags = call.flags;
    let mut entries = match flags.nonempty("entryID") {
        Some(id) => {
            let other = ["parentID", "spiffeID"]
                .iter()
                .any(|name| flags.nonempty(name).is_some());
            if other || !flags.list("selector").is_empty() {
                return Err("the -entryID flag can't be combined with others".into());
            }
            let request = GetEntryRequest {
                id: id.to_owned(),
                output_mask: None,
            };
            let what = format!("error fetching entry ID {id}");
            let entry = call.server.entries().await;
            let entry = entry
                .map_err(|failure| failure.during(&what))?
                .get_entry(request)
                .await;
            let entry = entry.map_err(|error| Failure::from(error).during(&what))?;
            vec![entry.into_inner()]
        }
        None => {
            let filter = filter(flags)?.into_list();
            let all = all(call, filter).await;
            all.map_err(|failure| failure.during("error fetching entries"))?
        }
    };
    sort(&mut entries);
    if call.out.is_json() {
        let entries: Vec<Value> = entries.iter().map(told::entry).collect();
        call.out
            .json(&json!({ "entries": entries, "next_page_token": "" }));
        return Ok(());
    }
    let noun = counted(entries.len(), "entry", "entries");
    call.out.line(&format!("Found {} {noun}", entries.len()));
    for entry in &entries {
        call.out.text(&printed(entry));
    }
    Ok(())
}

/// Every entry that matches.
pub(super) async fn all(
    call: &mut Call<'_>,
    filter: list_entries_request::Filter,
) -> Result<Vec<Entry>, Failure> {
    let mut client = call.server.entries().await?;
    let mut found = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListEntriesRequest {
            filter: Some(filter.clone()),
            output_mask: None,
            page_size: PAGE,
            page_token,
        };
        let page = client.list_entries(request).await?.into_inner();
        found.extend(page.entries);
        if page.next_page_token.is_empty() {
            return Ok(found);
        }
        page_token = page.next_page_token;
    }
}

pub(super) async fn count(call: &mut Call<'_>) -> Result<(), Failure> {
    let filter = filter(call.flags)?;
    let request = CountEntriesRequest {
        filter: Some(count_entries_request::Filter {
            by_spiffe_id: filter.by_spiffe_id,
            by_parent_id: filter.by_parent_id,
            by_selectors: filter.by_selectors,
            by_federates_with: filter.by_federates_with,
            by_hint: filter.by_hint,
            by_downstream: filter.by_downstream,
        }),
    };
    let count = call.server.entries().await?.count_entries(request).await?;
    let count = count.into_inner().count;
    if call.out.is_json() {
        call.out.json(&told::count(count));
    } else {
        let noun = if count == 1 { "entry" } else { "entries" };
        call.out.line(&format!("{count} registration {noun}"));
    }
    Ok(())
}

pub(super) async fn delete(call: &mut Call<'_>) -> Result<(), Failure> {
    let ids = match (call.flags.nonempty("file"), call.flags.nonempty("entryID")) {
        (Some(path), _) => entry_file::ids(path)?,
        (None, Some(id)) => vec![id.to_owned()],
        (None, None) => return Err("an entry ID is required".into()),
    };
    let request = BatchDeleteEntryRequest { ids };
    let answer = call
        .server
        .entries()
        .await?
        .batch_delete_entry(request)
        .await?;
    let results = answer.into_inner().results;
    if call.out.is_json() {
        let one = |it: &ah_spire_wire::server::entry::batch_delete_entry_response::Result| {
            told::result(it.status.as_ref(), "id", Some(json!(it.id)))
        };
        let results: Vec<Value> = results.iter().map(one).collect();
        call.out.json(&json!({ "results": results }));
        return Ok(());
    }
    let (mut deleted, mut failed) = (0_usize, 0_usize);
    for result in &results {
        let status = result.status.clone().unwrap_or_default();
        if status.code == 0 {
            deleted += 1;
            call.out
                .line(&format!("Deleted entry with ID: {}", result.id));
        } else {
            failed += 1;
            call.out.error_line(&format!(
                "Failed to delete entry with ID {} ({})",
                result.id,
                why(&status)
            ));
        }
    }
    if deleted > 0 {
        call.out.text("\n\n");
    }
    if failed == 0 {
        call.out
            .text(&format!("Deleted {deleted} entries successfully"));
        return Ok(());
    }
    call.out.text("\n\n");
    call.out.text(&if deleted == 0 {
        format!("Failed to delete {failed} entries")
    } else {
        format!("Deleted {deleted} entries successfully, but failed to delete {failed} entries")
    });
    Err("failed to delete one or more entries".into())
}

fn why(status: &Status) -> String {
    format!(
        "code: {}, msg: {:?}",
        code_name(status.code.into()),
        status.message
    )
}

/// Prints what became of `entries`: those that did not pass are told from the request.
fn report(
    out: &mut Output,
    verb: &str,
    entries: Vec<Entry>,
    results: impl Iterator<Item = (Option<Status>, Option<Entry>)>,
) -> Result<(), Failure> {
    let results: Vec<(Status, Entry)> = entries
        .into_iter()
        .zip(results)
        .map(|(asked, (status, entry))| {
            let status = status.unwrap_or_default();
            let entry = entry.filter(|_| status.code == 0);
            (status, entry.unwrap_or(asked))
        })
        .collect();
    if out.is_json() {
        let one = |(status, entry): &(Status, Entry)| {
            told::result(Some(status), "entry", Some(told::entry(entry)))
        };
        let results: Vec<Value> = results.iter().map(one).collect();
        out.json(&json!({ "results": results }));
        return Ok(());
    }
    let mut failed = false;
    for (status, entry) in &results {
        if status.code == 0 {
            out.text(&printed(entry));
        } else {
            failed = true;
            out.error_line(&format!(
                "Failed to {verb} the following entry ({}):",
                why(status)
            ));
            out.error_text(&printed(entry));
        }
    }
    if failed {
        return Err(Failure(format!("failed to {verb} one or more entries")));
    }
    Ok(())
}

fn created(flags: &Flags) -> Result<Entry, Failure> {
    let node = flags.bool("node");
    if flags.list("selector").is_empty() {
        return Err("at least one selector is required".into());
    }
    if node && !flags.list("federatesWith").is_empty() {
        return Err("node entries can not federate".into());
    }
    if flags.nonempty("parentID").is_none() && !node {
        return Err("a parent ID is required if the node flag is not set".into());
    }
    let mut entry = fields(flags)?;
    entry.parent_id = if node {
        let id = entry.spiffe_id.as_ref();
        let domain = id.map(|id| id.trust_domain.clone()).unwrap_or_default();
        Some(Spiffeid {
            trust_domain: domain,
            path: "/spire/server".to_owned(),
        })
    } else {
        parsed(flags, "parentID")?
    };
    Ok(entry)
}

fn updated(flags: &Flags) -> Result<Entry, Failure> {
    if flags.nonempty("entryID").is_none() {
        return Err("entry ID is required".into());
    }
    if flags.list("selector").is_empty() {
        return Err("at least one selector is required".into());
    }
    if flags.nonempty("parentID").is_none() {
        return Err("a parent ID is required".into());
    }
    let parent_id = parsed(flags, "parentID")?;
    Ok(Entry {
        parent_id,
        ..fields(flags)?
    })
}

fn parsed(flags: &Flags, name: &str) -> Result<Option<Spiffeid>, Failure> {
    Ok(Some(spiffe_id_to_wire(&ids::parse(flags.string(name))?)))
}

/// Everything but the parent.
fn fields(flags: &Flags) -> Result<Entry, Failure> {
    if flags.nonempty("spiffeID").is_none() {
        return Err("a SPIFFE ID is required".into());
    }
    let ttl = |name: &str, negative: &str, what: &str| {
        let seconds = flags.int(name);
        if seconds < 0 {
            return Err(Failure::new(negative));
        }
        i32::try_from(seconds).map_err(|error| Failure::because(what, error))
    };
    let x509_svid_ttl = ttl(
        "x509SVIDTTL",
        "a positive x509-SVID TTL is required",
        "invalid value for X509 SVID TTL",
    )?;
    let jwt_svid_ttl = ttl(
        "jwtSVIDTTL",
        "a positive JWT-SVID TTL is required",
        "invalid value for JWT SVID TTL",
    )?;
    let more = AdditionalAttributes {
        disable_x509_svid_prefetch: flags.bool(NO_PREFETCH),
        jwt_svid_include_jti: flags.bool(WITH_JTI),
    };
    let selectors: Result<_, _> = flags
        .list("selector")
        .iter()
        .map(|text| matching::selector(text))
        .collect();
    Ok(Entry {
        id: flags.string("entryID").to_owned(),
        spiffe_id: parsed(flags, "spiffeID")?,
        parent_id: None,
        selectors: selectors?,
        x509_svid_ttl,
        federates_with: flags.list("federatesWith").to_vec(),
        admin: flags.bool("admin"),
        downstream: flags.bool("downstream"),
        expires_at: flags.int("entryExpiry"),
        dns_names: flags.list("dns").to_vec(),
        revision_number: 0,
        store_svid: flags.bool("storeSVID"),
        jwt_svid_ttl,
        hint: flags.string("hint").to_owned(),
        created_at: 0,
        additional_attributes: (more != AdditionalAttributes::default()).then_some(more),
    })
}

/// What `show` and `count` ask for.
struct Filter {
    by_spiffe_id: Option<Spiffeid>,
    by_parent_id: Option<Spiffeid>,
    by_selectors: Option<SelectorMatch>,
    by_federates_with: Option<FederatesWithMatch>,
    by_hint: Option<String>,
    by_downstream: Option<bool>,
}

impl Filter {
    fn into_list(self) -> list_entries_request::Filter {
        list_entries_request::Filter {
            by_spiffe_id: self.by_spiffe_id,
            by_parent_id: self.by_parent_id,
            by_selectors: self.by_selectors,
            by_federates_with: self.by_federates_with,
            by_hint: self.by_hint,
            by_downstream: self.by_downstream,
        }
    }
}

fn filter(flags: &Flags) -> Result<Filter, Failure> {
    let id = |name: &str, what: &str| {
        let Some(text) = flags.nonempty(name) else {
            return Ok(None);
        };
        let id = ids::parse(text).map(|id| Some(spiffe_id_to_wire(&id)));
        id.map_err(|why| Failure(format!("error parsing {what} {text:?}: {why}")))
    };
    let unknown = |how: &str| Failure(format!("match behavior \"{how}\" unknown"));
    Ok(Filter {
        by_parent_id: id("parentID", "parent ID")?,
        by_spiffe_id: id("spiffeID", "SPIFFE ID")?,
        by_selectors: matching::selectors(
            flags.list("selector"),
            flags.string("matchSelectorsOn"),
            unknown,
            |_| "error parsing selectors".to_owned(),
        )?,
        by_federates_with: matching::domains(
            flags.list("federatesWith"),
            flags.string("matchFederatesWithOn"),
        )?,
        by_hint: flags.nonempty("hint").map(str::to_owned),
        by_downstream: Some(flags.bool("downstream")),
    })
}

/// By SPIFFE ID, then parent, TTLs and selectors, so that the same entries are always told alike.
pub(super) fn sort(entries: &mut [Entry]) {
    for entry in entries.iter_mut() {
        entry
            .selectors
            .sort_by(|a, b| (&a.r#type, &a.value).cmp(&(&b.r#type, &b.value)));
    }
    entries.sort_by_cached_key(|entry| {
        let id = |id: &Option<Spiffeid>| {
            let id = id.clone().unwrap_or_default();
            (id.trust_domain, id.path)
        };
        let selectors: Vec<_> = entry
            .selectors
            .iter()
            .map(|it| (it.r#type.clone(), it.value.clone()))
            .collect();
        (
            id(&entry.spiffe_id),
            id(&entry.parent_id),
            entry.x509_svid_ttl,
            entry.jwt_svid_ttl,
            selectors.len(),
            selectors,
        )
    });
}

/// An entry for people, with an empty line after it.
fn printed(entry: &Entry) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        out.push_str(&format!("{name:<24}: {value}\n"));
    };
    let id = |id: &Option<Spiffeid>| {
        let id = id.as_ref();
        id.map_or_else(String::new, |id| {
            format!("spiffe://{}{}", id.trust_domain, id.path)
        })
    };
    let ttl = |seconds: i32| match seconds {
        0 => "default".to_owned(),
        seconds => seconds.to_string(),
    };
    let entry_id = Some(entry.id.as_str()).filter(|id| !id.is_empty());
    line("Entry ID", entry_id.unwrap_or("(none)"));
    line("SPIFFE ID", &id(&entry.spiffe_id));
    line("Parent ID", &id(&entry.parent_id));
    line("Revision", &entry.revision_number.to_string());
    if entry.downstream {
        line("Downstream", "true");
    }
    line("X509-SVID TTL", &ttl(entry.x509_svid_ttl));
    line("JWT-SVID TTL", &ttl(entry.jwt_svid_ttl));
    if entry.expires_at != 0 {
        line("Expiration time", &moment::utc(entry.expires_at));
    }
    for selector in &entry.selectors {
        line(
            "Selector",
            &format!("{}:{}", selector.r#type, selector.value),
        );
    }
    for domain in &entry.federates_with {
        line("FederatesWith", domain);
    }
    for name in &entry.dns_names {
        line("DNS name", name);
    }
    if entry.admin {
        line("Admin", "true");
    }
    if entry.store_svid {
        line("StoreSvid", "true");
    }
    if !entry.hint.is_empty() {
        line("Hint", &entry.hint);
    }
    let more = entry.additional_attributes.unwrap_or_default();
    if more.disable_x509_svid_prefetch {
        line("DisableX509SvidPrefetch", "true");
    }
    if more.jwt_svid_include_jti {
        line("JwtSvidIncludeJti", "true");
    }
    out.push('\n');
    out
}
