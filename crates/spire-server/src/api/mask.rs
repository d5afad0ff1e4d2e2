//! What a caller does not want to see.

use ah_spire_wire::types::{
    Agent, AgentMask, Bundle, BundleMask, Entry, EntryMask, FederationRelationship,
    FederationRelationshipMask,
};

use crate::store;

/// Sets the fields to their default whose bit is not set.
macro_rules! keep {
    ($message:expr, $mask:expr, $($field:ident),+ $(,)?) => {
        if let Some(mask) = $mask {
            $(if !mask.$field { $message.$field = Default::default(); })+
        }
    };
}

pub(super) fn agent(mut agent: Agent, mask: Option<&AgentMask>) -> Agent {
    keep!(
        agent,
        mask,
        attestation_type,
        x509svid_serial_number,
        x509svid_expires_at,
        selectors,
        banned,
        can_reattest,
        agent_version,
    );
    agent
}

pub(super) fn entry(mut entry: Entry, mask: Option<&EntryMask>) -> Entry {
    keep!(
        entry,
        mask,
        spiffe_id,
        parent_id,
        selectors,
        x509_svid_ttl,
        federates_with,
        admin,
        downstream,
        expires_at,
        dns_names,
        revision_number,
        store_svid,
        jwt_svid_ttl,
        hint,
        created_at,
        additional_attributes,
    );
    entry
}

pub(super) fn bundle(mut bundle: Bundle, mask: Option<&BundleMask>) -> Bundle {
    keep!(
        bundle,
        mask,
        x509_authorities,
        jwt_authorities,
        refresh_hint,
        sequence_number,
        wit_authorities,
    );
    bundle
}

pub(super) fn relationship(
    mut relationship: FederationRelationship,
    mask: Option<&FederationRelationshipMask>,
) -> FederationRelationship {
    keep!(
        relationship,
        mask,
        bundle_endpoint_url,
        bundle_endpoint_profile,
        trust_domain_bundle,
    );
    relationship
}

/// The fields that an update takes over.
pub(super) fn update(mask: Option<&EntryMask>) -> store::EntryMask {
    let Some(mask) = mask else {
        return store::EntryMask::ALL;
    };
    store::EntryMask {
        spiffe_id: mask.spiffe_id,
        parent_id: mask.parent_id,
        selectors: mask.selectors,
        x509_svid_ttl: mask.x509_svid_ttl,
        jwt_svid_ttl: mask.jwt_svid_ttl,
        federates_with: mask.federates_with,
        admin: mask.admin,
        downstream: mask.downstream,
        expires_at: mask.expires_at,
        dns_names: mask.dns_names,
        store_svid: mask.store_svid,
        hint: mask.hint,
        additional_attributes: mask.additional_attributes,
    }
}
