//! `debug getinfo`

use std::fmt::Write as _;
use std::time::Duration;

use ah_spire_plugin::duration;
use ah_spire_plugin::goflag::Flags;
use ah_spire_wire::Channel;
use ah_spire_wire::agent::debug::debug_client::DebugClient;
use ah_spire_wire::agent::debug::get_info_response::Cert;
use ah_spire_wire::agent::debug::{GetInfoRequest, GetInfoResponse};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::failure::Failure;
use super::{admin, gotext, output};

pub(super) async fn getinfo(flags: &Flags) -> Result<(), Failure> {
    let channel = admin::connect(flags).await?;
    let mut api = DebugClient::with_origin(channel, Channel::origin());
    let info = api.get_info(GetInfoRequest {}).await;
    let info = info.map_err(|status| admin::failed("", &status))?;
    let info = info.get_ref();
    if output::is_json(flags, "output") {
        output::print(&format!("{}\n", gotext::json(&as_json(info))))
    } else {
        output::print(&pretty(info))
    }
}

/// protobuf's mapping: 64-bit numbers are strings, and every field is told.
fn as_json(info: &GetInfoResponse) -> Value {
    let cert = |cert: &Cert| {
        let mut told = json!({
            "expires_at": cert.expires_at.to_string(),
            "subject": cert.subject,
        });
        if let (Some(id), Some(told)) = (&cert.id, told.as_object_mut()) {
            let id = json!({"path": id.path, "trust_domain": id.trust_domain});
            told.insert("id".to_owned(), id);
        }
        told
    };
    json!({
        "svid_chain": info.svid_chain.iter().map(cert).collect::<Vec<_>>(),
        "uptime": info.uptime,
        "svids_count": info.svids_count,
        "last_sync_success": info.last_sync_success.to_string(),
        "cached_x509_svids_count": info.cached_x509_svids_count,
        "cached_jwt_svids_count": info.cached_jwt_svids_count,
        "cached_svidstore_x509_svids_count": info.cached_svidstore_x509_svids_count,
    })
}

fn pretty(info: &GetInfoResponse) -> String {
    let uptime = Duration::from_secs(u64::try_from(info.uptime).unwrap_or_default());
    let last_sync = match info.last_sync_success {
        0 => "(never)".to_owned(),
        at => moment(at),
    };
    let mut text = "Agent Debug Info:\n".to_owned();
    for (name, value) in [
        ("Uptime", duration::format(uptime)),
        ("Last Sync Success", last_sync),
        (
            "Cached X.509 SVIDs",
            info.cached_x509_svids_count.to_string(),
        ),
        ("Cached JWT SVIDs", info.cached_jwt_svids_count.to_string()),
        (
            "Cached SVID Store X.509 SVIDs",
            info.cached_svidstore_x509_svids_count.to_string(),
        ),
    ] {
        let _ = writeln!(text, "  {:<33}{value}", format!("{name}:"));
    }
    if !info.svid_chain.is_empty() {
        text.push_str("  SVID Chain:\n");
    }
    for (at, cert) in info.svid_chain.iter().enumerate() {
        let id = cert.id.as_ref().map_or_else(
            || "(none)".to_owned(),
            |id| format!("spiffe://{}{}", id.trust_domain, id.path),
        );
        let _ = writeln!(text, "    [{at}] SPIFFE ID:  {id}");
        let _ = writeln!(text, "        Subject:    {}", cert.subject);
        let _ = writeln!(text, "        Expires At: {}", moment(cert.expires_at));
    }
    text
}

fn moment(unix: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp(unix).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    at.format(&Rfc3339).unwrap_or_else(|_| at.to_string())
}

#[cfg(test)]
mod tests {
    use ah_spire_wire::types::Spiffeid;

    use super::*;

    // Inventory section 2: as upstream prints it.
    #[test]
    fn an_agent_is_told_as_upstream_tells_it() {
        let mut info = GetInfoResponse {
            svid_chain: vec![Cert {
                id: Some(Spiffeid {
                    trust_domain: "example.org".into(),
                    path: "/spire/agent/foo".into(),
                }),
                expires_at: 1_705_406_400,
                subject: "CN=agent".into(),
            }],
            uptime: 3642,
            svids_count: 3,
            last_sync_success: 1_705_320_000,
            cached_x509_svids_count: 3,
            cached_jwt_svids_count: 1,
            cached_svidstore_x509_svids_count: 0,
        };
        assert_eq!(
            pretty(&info),
            "Agent Debug Info:
  Uptime:                          1h0m42s
  Last Sync Success:               2024-01-15T12:00:00Z
  Cached X.509 SVIDs:              3
  Cached JWT SVIDs:                1
  Cached SVID Store X.509 SVIDs:   0
  SVID Chain:
    [0] SPIFFE ID:  spiffe://example.org/spire/agent/foo
        Subject:    CN=agent
        Expires At: 2024-01-16T12:00:00Z
"
        );
        let told = as_json(&info);
        assert_eq!(told["last_sync_success"], "1705320000");
        assert_eq!(told["svid_chain"][0]["id"]["path"], "/spire/agent/foo");
        info.last_sync_success = 0;
        assert!(pretty(&info).contains("Last Sync Success:               (never)\n"));
    }
}
