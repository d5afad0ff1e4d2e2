//! What the tokens of platforms have in common.

use std::time::{Duration, SystemTime};

use ah_spire_wire::jwt::date;
use serde_json::{Map, Value};

/// Whether `now` is within the life of a token that has an end, give or take `leeway` (RFC 7519 §4.1.4 to §4.1.6).
pub(super) fn in_time(
    claims: &Map<String, Value>,
    now: SystemTime,
    leeway: Duration,
) -> Result<(), String> {
    let of = |name| date(claims, name).map_err(|error| error.to_string());
    let end = of("exp")?.ok_or("token missing exp claim")?;
    if end.checked_add(leeway).is_none_or(|end| now > end) {
        return Err("token has expired".into());
    }
    for name in ["nbf", "iat"] {
        let early = |at: SystemTime| now.checked_add(leeway).is_some_and(|soon| at > soon);
        if of(name)?.is_some_and(early) {
            return Err(format!("token not valid yet ({name} is in the future)"));
        }
    }
    Ok(())
}

/// Who a token is for: one, or several (RFC 7519 §4.1.3).
pub(super) fn audience(claims: &Map<String, Value>) -> Vec<&str> {
    match claims.get("aud") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}
