//! Answers as JSON: protobuf's mapping with the proto's own names, and every field told.
//!
//! 64-bit numbers are strings and bytes are base64, as that mapping says; a message that is not set is left out.

use ah_spire_wire::server::debug::{GetInfoResponse, get_info_response::Cert};
use ah_spire_wire::server::localauthority::AuthorityState;
use ah_spire_wire::types;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

/// `<`, `>` and `&` as Go's encoder writes them.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "\\u0026")
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

pub(super) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

pub(super) fn count(count: i32) -> Value {
    json!({ "count": count })
}

fn id(id: &types::Spiffeid) -> Value {
    json!({ "trust_domain": id.trust_domain, "path": id.path })
}

pub(super) fn status(status: &types::Status) -> Value {
    json!({ "code": status.code, "message": status.message })
}

fn selectors(selectors: &[types::Selector]) -> Vec<Value> {
    let told = |one: &types::Selector| json!({ "type": one.r#type, "value": one.value });
    selectors.iter().map(told).collect()
}

/// An object without the messages that are not set.
fn set(value: Value) -> Value {
    let Value::Object(fields) = value else {
        return value;
    };
    let fields: Map<_, _> = fields.into_iter().filter(|(_, it)| !it.is_null()).collect();
    Value::Object(fields)
}

/// One result of a batch: its status and what it is about.
pub(super) fn result(status_: Option<&types::Status>, name: &str, about: Option<Value>) -> Value {
    let mut fields = Map::new();
    fields.extend(status_.map(|it| ("status".to_owned(), status(it))));
    fields.extend(about.map(|it| (name.to_owned(), it)));
    Value::Object(fields)
}

pub(super) fn agent(agent: &types::Agent) -> Value {
    set(json!({
        "id": agent.id.as_ref().map(id),
        "attestation_type": agent.attestation_type,
        "x509svid_serial_number": agent.x509svid_serial_number,
        "x509svid_expires_at": agent.x509svid_expires_at.to_string(),
        "selectors": selectors(&agent.selectors),
        "banned": agent.banned,
        "can_reattest": agent.can_reattest,
        "agent_version": agent.agent_version,
    }))
}

pub(super) fn entry(entry: &types::Entry) -> Value {
    let more = entry.additional_attributes.map(|more| {
        json!({
            "disable_x509_svid_prefetch": more.disable_x509_svid_prefetch,
            "jwt_svid_include_jti": more.jwt_svid_include_jti,
        })
    });
    set(json!({
        "id": entry.id,
        "spiffe_id": entry.spiffe_id.as_ref().map(id),
        "parent_id": entry.parent_id.as_ref().map(id),
        "selectors": selectors(&entry.selectors),
        "x509_svid_ttl": entry.x509_svid_ttl,
        "federates_with": entry.federates_with,
        "admin": entry.admin,
        "downstream": entry.downstream,
        "expires_at": entry.expires_at.to_string(),
        "dns_names": entry.dns_names,
        "revision_number": entry.revision_number.to_string(),
        "store_svid": entry.store_svid,
        "jwt_svid_ttl": entry.jwt_svid_ttl,
        "hint": entry.hint,
        "created_at": entry.created_at.to_string(),
        "additional_attributes": more,
    }))
}

pub(super) fn bundle(bundle: &types::Bundle) -> Value {
    let x509 =
        |ca: &types::X509Certificate| json!({ "asn1": base64(&ca.asn1), "tainted": ca.tainted });
    let key = |public_key: &[u8], key_id: &str, expires_at: i64, tainted: bool| {
        json!({
            "public_key": base64(public_key),
            "key_id": key_id,
            "expires_at": expires_at.to_string(),
            "tainted": tainted,
        })
    };
    let jwt = bundle.jwt_authorities.iter();
    let jwt = jwt.map(|it| key(&it.public_key, &it.key_id, it.expires_at, it.tainted));
    let wit = bundle.wit_authorities.iter();
    let wit = wit.map(|it| key(&it.public_key, &it.key_id, it.expires_at, it.tainted));
    json!({
        "trust_domain": bundle.trust_domain,
        "x509_authorities": bundle.x509_authorities.iter().map(x509).collect::<Vec<_>>(),
        "jwt_authorities": jwt.collect::<Vec<_>>(),
        "refresh_hint": bundle.refresh_hint.to_string(),
        "sequence_number": bundle.sequence_number.to_string(),
        "wit_authorities": wit.collect::<Vec<_>>(),
    })
}

pub(super) fn relationship(relationship: &types::FederationRelationship) -> Value {
    use types::federation_relationship::BundleEndpointProfile::{HttpsSpiffe, HttpsWeb};
    let (web, spiffe) = match &relationship.bundle_endpoint_profile {
        None => (None, None),
        Some(HttpsWeb(_)) => (Some(json!({})), None),
        Some(HttpsSpiffe(spiffe)) => {
            let id = &spiffe.endpoint_spiffe_id;
            (None, Some(json!({ "endpoint_spiffe_id": id })))
        }
    };
    set(json!({
        "trust_domain": relationship.trust_domain,
        "bundle_endpoint_url": relationship.bundle_endpoint_url,
        "https_web": web,
        "https_spiffe": spiffe,
        "trust_domain_bundle": relationship.trust_domain_bundle.as_ref().map(bundle),
    }))
}

pub(super) fn join_token(token: &types::JoinToken) -> Value {
    json!({ "value": token.value, "expires_at": token.expires_at.to_string() })
}

pub(super) fn jwt_svid(svid: &types::Jwtsvid) -> Value {
    set(json!({
        "token": svid.token,
        "id": svid.id.as_ref().map(id),
        "expires_at": svid.expires_at.to_string(),
        "issued_at": svid.issued_at.to_string(),
        "hint": svid.hint,
    }))
}

/// As Go prints the structure: numbers are numbers, and what is empty is left out.
pub(super) fn wit_svid(svid: &types::Witsvid) -> Value {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let date = |seconds: i64| (seconds != 0).then_some(seconds);
    set(json!({
        "token": some(&svid.token),
        "id": svid.id.as_ref().map(id),
        "expires_at": date(svid.expires_at),
        "issued_at": date(svid.issued_at),
        "hint": some(&svid.hint),
    }))
}

pub(super) fn logger(logger: &types::Logger) -> Value {
    json!({
        "current_level": logger.current_level().as_str_name(),
        "launch_level": logger.launch_level().as_str_name(),
    })
}

pub(super) fn authority(state: &AuthorityState) -> Value {
    json!({
        "authority_id": state.authority_id,
        "expires_at": state.expires_at.to_string(),
        "upstream_authority_subject_key_id": state.upstream_authority_subject_key_id,
    })
}

pub(super) fn info(info: &GetInfoResponse) -> Value {
    let cert = |cert: &Cert| {
        set(json!({
            "id": cert.id.as_ref().map(id),
            "expires_at": cert.expires_at.to_string(),
            "subject": cert.subject,
        }))
    };
    json!({
        "svid_chain": info.svid_chain.iter().map(cert).collect::<Vec<_>>(),
        "uptime": info.uptime,
        "agents_count": info.agents_count,
        "federated_bundles_count": info.federated_bundles_count,
        "entries_count": info.entries_count,
    })
}
