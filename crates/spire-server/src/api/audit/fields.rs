//! What calls are about.

use ah_identity_provider::hex;
use ah_spire_wire::types;
use aws_lc_rs::digest::{SHA256, digest};

use super::Fields;

/// Hexadecimal; empty for nothing.
pub(in crate::api) fn sha256(bytes: &[u8]) -> String {
    match bytes {
        [] => String::new(),
        bytes => hex(digest(&SHA256, bytes).as_ref()),
    }
}

/// A SPIFFE ID as the caller gave it.
pub(in crate::api) fn id(id: Option<&types::Spiffeid>) -> Option<String> {
    id.map(|id| format!("spiffe://{}{}", id.trust_domain, id.path))
}

fn selectors(selectors: &[types::Selector]) -> String {
    let each = selectors
        .iter()
        .map(|it| format!("{}:{}", it.r#type, it.value));
    each.collect::<Vec<_>>().join(",")
}

pub(in crate::api) fn selector_match(wanted: Option<&types::SelectorMatch>) -> Fields {
    match wanted {
        None => Fields::default(),
        Some(wanted) => Fields::default()
            .with("by_selector_match", wanted.r#match().as_str_name())
            .with("by_selectors", selectors(&wanted.selectors)),
    }
}

pub(in crate::api) fn federates_match(wanted: Option<&types::FederatesWithMatch>) -> Fields {
    match wanted {
        None => Fields::default(),
        Some(wanted) => Fields::default()
            .with("federates_with_match", wanted.r#match().as_str_name())
            .with("federates_with", wanted.trust_domains.join(",")),
    }
}

/// What of an entry is written; all of it without a mask.
pub(in crate::api) fn entry(entry: &types::Entry, mask: Option<&types::EntryMask>) -> Fields {
    let takes = |field: fn(&types::EntryMask) -> bool| mask.is_none_or(field);
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    let mut fields = Fields::default().maybe("entry_id", some(entry.id.clone()));
    if takes(|mask| mask.spiffe_id) {
        fields = fields.maybe("spiffe_id", id(entry.spiffe_id.as_ref()));
    }
    if takes(|mask| mask.parent_id) {
        fields = fields.maybe("parent_id", id(entry.parent_id.as_ref()));
    }
    if takes(|mask| mask.selectors) {
        fields = fields.maybe("selectors", some(selectors(&entry.selectors)));
    }
    if takes(|mask| mask.x509_svid_ttl) {
        fields = fields.with("x509_svid_ttl", entry.x509_svid_ttl);
    }
    if takes(|mask| mask.jwt_svid_ttl) {
        fields = fields.with("jwt_svid_ttl", entry.jwt_svid_ttl);
    }
    if takes(|mask| mask.federates_with) {
        fields = fields.maybe("federates_with", some(entry.federates_with.join(",")));
    }
    if takes(|mask| mask.admin) {
        fields = fields.with("admin", entry.admin);
    }
    if takes(|mask| mask.downstream) {
        fields = fields.with("downstream", entry.downstream);
    }
    if takes(|mask| mask.expires_at) {
        fields = fields.with("expires_at", entry.expires_at);
    }
    if takes(|mask| mask.dns_names) {
        fields = fields.maybe("dns_name", some(entry.dns_names.join(",")));
    }
    if takes(|mask| mask.revision_number) {
        fields = fields.with("revision_number", entry.revision_number);
    }
    if takes(|mask| mask.store_svid) {
        fields = fields.with("store_svid", entry.store_svid);
    }
    if takes(|mask| mask.hint) {
        fields = fields.with("hint", entry.hint.clone());
    }
    if takes(|mask| mask.created_at) {
        fields = fields.with("created_at", entry.created_at);
    }
    fields
}

/// What of a bundle is written; all of it without a mask.
pub(in crate::api) fn bundle(bundle: &types::Bundle, mask: Option<&types::BundleMask>) -> Fields {
    let takes = |field: fn(&types::BundleMask) -> bool| mask.is_none_or(field);
    let mut fields = Fields::default().with("trust_domain_id", bundle.trust_domain.clone());
    if takes(|mask| mask.refresh_hint) {
        fields = fields.with("refresh_hint", bundle.refresh_hint);
    }
    if takes(|mask| mask.sequence_number) {
        fields = fields.with("sequence_number", bundle.sequence_number);
    }
    if takes(|mask| mask.jwt_authorities) {
        fields = fields.and(jwt_keys(&bundle.jwt_authorities));
    }
    if takes(|mask| mask.x509_authorities) {
        fields = fields.and(x509_authorities(&bundle.x509_authorities));
    }
    fields
}

/// What of a relationship is written; all of it without a mask.
pub(in crate::api) fn relationship(
    relationship: &types::FederationRelationship,
    mask: Option<&types::FederationRelationshipMask>,
) -> Fields {
    let takes = |field: fn(&types::FederationRelationshipMask) -> bool| mask.is_none_or(field);
    let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let mut fields = Fields::default().maybe("trust_domain_id", some(&relationship.trust_domain));
    if takes(|mask| mask.bundle_endpoint_url) {
        fields = fields.with(
            "bundle_endpoint_url",
            relationship.bundle_endpoint_url.clone(),
        );
    }
    if takes(|mask| mask.bundle_endpoint_profile) {
        use types::federation_relationship::BundleEndpointProfile::{HttpsSpiffe, HttpsWeb};
        fields = match &relationship.bundle_endpoint_profile {
            None => fields,
            Some(HttpsWeb(_)) => fields.with("bundle_endpoint_profile", "https_web"),
            Some(HttpsSpiffe(spiffe)) => fields
                .with("bundle_endpoint_profile", "https_spiffe")
                .with("endpoint_spiffe_id", spiffe.endpoint_spiffe_id.clone()),
        };
    }
    match &relationship.trust_domain_bundle {
        Some(given) if takes(|mask| mask.trust_domain_bundle) => {
            fields.and(bundle(given, None).under("bundle_"))
        }
        _ => fields,
    }
}

pub(in crate::api) fn jwt_keys(keys: &[types::JwtKey]) -> Fields {
    keys.iter()
        .enumerate()
        .fold(Fields::default(), |fields, (n, key)| {
            fields
                .with(format!("jwt_authority_expires_at.{n}"), key.expires_at)
                .with(format!("jwt_authority_key_id.{n}"), key.key_id.clone())
                .with(
                    format!("jwt_authority_public_key_sha256.{n}"),
                    sha256(&key.public_key),
                )
        })
}

pub(in crate::api) fn x509_authorities(authorities: &[types::X509Certificate]) -> Fields {
    authorities
        .iter()
        .enumerate()
        .fold(Fields::default(), |fields, (n, authority)| {
            let name = format!("x509_authorities_asn1_sha256.{n}");
            fields.with(name, sha256(&authority.asn1))
        })
}
