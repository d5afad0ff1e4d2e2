//! The flags of the commands for entries, and what they ask for.

use ah_spire_plugin::goflag::{FlagSet, Flags};
use ah_spire_wire::server::entry::list_entries_request;
use ah_spire_wire::spiffe_id_to_wire;
use ah_spire_wire::types::entry::AdditionalAttributes;
use ah_spire_wire::types::{Entry, FederatesWithMatch, SelectorMatch, Spiffeid};

use crate::cli::{Failure, matching};
use crate::ids;

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

pub(in crate::cli) fn create_flags(flags: FlagSet) -> FlagSet {
    field_flags(flags)
        .string("entryID", "", "A custom ID for this registration entry (optional). If not set, a new entry ID will be generated")
        .bool("node", false, "If set, this entry will be applied to matching nodes rather than workloads")
}

pub(in crate::cli) fn update_flags(flags: FlagSet) -> FlagSet {
    field_flags(flags).string(
        "entryID",
        "",
        "The Registration Entry ID of the record to update",
    )
}

pub(in crate::cli) fn filter_flags(flags: FlagSet, what: &str) -> FlagSet {
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

pub(in crate::cli) fn show_flags(flags: FlagSet) -> FlagSet {
    filter_flags(flags, "show").string("entryID", "", "The Entry ID of the records to show")
}

pub(in crate::cli) fn delete_flags(flags: FlagSet) -> FlagSet {
    flags
        .string("entryID", "", "The Registration Entry ID of the record to delete.")
        .string("file", "", "Path to a file containing a JSON structure for batch deletion (optional). If set to '-', read from stdin.")
}

pub(super) fn created(flags: &Flags) -> Result<Entry, Failure> {
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

pub(super) fn updated(flags: &Flags) -> Result<Entry, Failure> {
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
pub(super) struct Filter {
    pub(super) by_spiffe_id: Option<Spiffeid>,
    pub(super) by_parent_id: Option<Spiffeid>,
    pub(super) by_selectors: Option<SelectorMatch>,
    pub(super) by_federates_with: Option<FederatesWithMatch>,
    pub(super) by_hint: Option<String>,
    pub(super) by_downstream: Option<bool>,
}

impl Filter {
    pub(super) fn into_list(self) -> list_entries_request::Filter {
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

pub(super) fn filter(flags: &Flags) -> Result<Filter, Failure> {
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
