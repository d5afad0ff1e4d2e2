//! Entries as they are told.

use ah_spire_wire::types::{Entry, Spiffeid};

use crate::moment;

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
pub(super) fn printed(entry: &Entry) -> String {
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
