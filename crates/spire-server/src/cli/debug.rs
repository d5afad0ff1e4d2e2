//! `debug getinfo`

use ah_spire_wire::server::debug::GetInfoRequest;

use super::{Call, Failure, json};
use crate::moment;

pub(super) async fn getinfo(call: &mut Call<'_>) -> Result<(), Failure> {
    let info = call
        .server
        .debug()
        .await?
        .get_info(GetInfoRequest {})
        .await?;
    let info = info.into_inner();
    let out = &mut call.out;
    if out.is_json() {
        out.json(&json::info(&info));
        return Ok(());
    }
    out.line("Server Debug Info:");
    out.line(&format!(
        "  Uptime:                  {}",
        duration(info.uptime)
    ));
    out.line(&format!("  Registered Agents:       {}", info.agents_count));
    out.line(&format!(
        "  Registration Entries:    {}",
        info.entries_count
    ));
    out.line(&format!(
        "  Federated Bundles:       {}",
        info.federated_bundles_count
    ));
    if !info.svid_chain.is_empty() {
        out.line("  SVID Chain:");
    }
    for (at, cert) in info.svid_chain.iter().enumerate() {
        let id = cert.id.as_ref();
        let id = id.map(|id| format!("spiffe://{}{}", id.trust_domain, id.path));
        let id = id.as_deref().unwrap_or("(none)");
        out.line(&format!("    [{at}] SPIFFE ID:  {id}"));
        out.line(&format!("        Subject:    {}", cert.subject));
        let expires = moment::rfc3339(cert.expires_at);
        out.line(&format!("        Expires At: {expires}"));
    }
    Ok(())
}

/// Seconds as Go prints a duration: `1h2m3s`.
fn duration(seconds: i32) -> String {
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, minutes) => format!("{minutes}m{rest}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{rest}s"),
    }
}
