//! The access point that runs on this machine, as it tells of itself over its admin socket.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use ah_fleet::access_point::AccessPointView;
use ah_identity_provider::Explained;

use super::{failed, issuer, lifetime};
use crate::admin_client::AdminClient;
use crate::doctor::clock::moment;
use crate::doctor::report::{Check, Report};
use crate::render::brief;

/// Metrics that nobody read for so long are not watched.
const UNREAD: Duration = Duration::from_secs(300);

const NAMES: [&str; 8] = [
    "ap-issuer",
    "ap-lifetime",
    "ap-renewal",
    "ap-san-rules",
    "ap-listening",
    "ap-store",
    "ap-audit-log",
    "ap-metrics",
];

/// `optional`: there is an executor here, and need not be an access point too.
pub(super) async fn report(socket: &Path, optional: bool, report: &mut Report) {
    let client = AdminClient::new(socket.to_owned());
    let asked =
        async { Ok::<_, Explained>((client.access_point().await?, client.not_ready().await?)) };
    match asked.await {
        Ok((view, not_ready)) => {
            for check in checks(&view, &not_ready, SystemTime::now()) {
                report.add(check);
            }
        }
        // None that could be asked: the list is for its own machine.
        Err(explained) if optional => {
            for name in NAMES {
                let told = format!("ask on the access point's machine: {}", explained.text);
                report.add(Check::skip(name, told));
            }
        }
        Err(explained) => report.add(Check::fail("ap-running", &explained)),
    }
}

fn checks(view: &AccessPointView, not_ready: &[String], now: SystemTime) -> [Check; 8] {
    let [
        issued,
        living,
        renewing,
        ruled,
        listening,
        storing,
        auditing,
        watched,
    ] = NAMES;
    let provider = view.provider.as_str();
    [
        issuer(issued, provider, None),
        lifetime(
            living,
            view.certificate_not_before.into(),
            view.certificate.not_after.into(),
        ),
        renewal(renewing, view),
        rules(ruled, view),
        addresses(listening, &view.listening),
        ready(storing, "store", not_ready, "the store takes writes"),
        match view.audit_log.as_str() {
            "-" if no(not_ready, "audit") => Check::warn(
                auditing,
                "the audit log goes to standard output: whoever collects that has to keep it",
            )
            .fix("--audit-log /var/lib/ah/audit.jsonl or --audit-log journald"),
            target => ready(auditing, "audit", not_ready, &format!("to {target}")),
        },
        metrics(watched, view, now),
    ]
}

fn renewal(name: &'static str, view: &AccessPointView) -> Check {
    if let Some(warning) = &view.identity_warning {
        return Check::fail(name, warning);
    }
    if view.renewal_failures > 0 {
        return failed(
            name,
            format!("{} failures since the last success", view.renewal_failures),
            "journalctl -u ah-access-point | grep -i 'rotat\\|renew'",
        );
    }
    match view.rotations {
        0 => Check::warn(
            name,
            format!(
                "none seen since the start at {}",
                moment(view.started.into())
            ),
        )
        .fix("look again after the next renewal, or bring a new certificate as your PKI will"),
        count => Check::pass(name, format!("{count} seen since the start")),
    }
}

/// Access point validates executor certificate SANs.
fn rules(name: &'static str, view: &AccessPointView) -> Check {
    if view.rules.is_empty() {
        return failed(
            name,
            "no rule: whatever certificate chains to a trusted root is admitted",
            "--executor-san-uri-prefix spiffe://example.org/ah/agent/, --executor-san-dns or --executor-san-ip",
        );
    }
    Check::pass(name, view.rules.join(", "))
}

/// Firewall allows the port: what can be seen from the inside.
fn addresses(name: &'static str, listening: &[SocketAddr]) -> Check {
    let shown: Vec<String> = listening.iter().map(ToString::to_string).collect();
    let shown = shown.join(", ");
    if listening
        .iter()
        .all(|address| address.ip().to_canonical().is_loopback())
    {
        return Check::warn(name, format!("{shown}: only this machine can dial it"))
            .fix("--fleet-listen 0.0.0.0:4433, and let the firewall pass it");
    }
    Check::pass(
        name,
        format!("{shown}; whether the firewall lets it pass shows `tcp` on an executor's machine"),
    )
}

/// Monitoring alerts for certificate expiry: they need somebody who reads the metrics.
fn metrics(name: &'static str, view: &AccessPointView, now: SystemTime) -> Check {
    let fix = "--http-listen 127.0.0.1:9443, then let Prometheus scrape it with monitoring/ah.rules.yml: docs/monitoring.md";
    let Some(read) = view.metrics_read.map(SystemTime::from) else {
        return failed(name, "nobody has read /metrics since the start", fix);
    };
    let ago = now.duration_since(read).unwrap_or_default();
    if ago > UNREAD {
        return failed(
            name,
            format!("nobody has read /metrics for {}", brief(ago)),
            fix,
        );
    }
    Check::pass(name, format!("read at {}", moment(read)))
}

fn ready(name: &'static str, part: &str, not_ready: &[String], well: &str) -> Check {
    match not_ready.iter().find(|reason| reason.starts_with(part)) {
        Some(reason) => failed(
            name,
            reason.as_str(),
            "docs/operations.md; curl …/readyz until it is empty",
        ),
        None => Check::pass(name, well),
    }
}

fn no(not_ready: &[String], part: &str) -> bool {
    !not_ready.iter().any(|reason| reason.starts_with(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A view of an access point that is fit, with what `spoil` does to it.
    fn judged(
        not_ready: &[&str],
        spoil: fn(&mut serde_json::Value),
    ) -> Vec<(String, &'static str)> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let mut view = serde_json::json!({
            "version": "1", "pid": 1, "started": "2023-11-14T00:00:00Z", "listening": ["10.0.0.1:4433"],
            "certificate": {"serial": "01", "sha256": "02", "not_after": "2023-11-15T00:00:00Z"},
            "certificate_not_before": "2023-11-14T00:00:00Z",
            "provider": "spiffe", "rotations": 3, "renewal_failures": 0, "rules": ["URI:spiffe://example.org/ah/agent"],
            "audit_log": "journald", "metrics_read": "2023-11-14T22:13:00Z", "executors": 0,
        });
        spoil(&mut view);
        let view: AccessPointView = serde_json::from_value(view).unwrap();
        let not_ready: Vec<_> = not_ready.iter().map(ToString::to_string).collect();
        let checks = checks(&view, &not_ready, now);
        let told = checks
            .iter()
            .map(|check| serde_json::to_value(check).unwrap());
        told.zip(NAMES)
            .filter(|(check, _)| check["verdict"] != "pass")
            .map(|(check, name)| {
                assert!(check["fix"].is_string(), "{check}");
                (check["verdict"].as_str().unwrap().to_owned(), name)
            })
            .collect()
    }

    #[test]
    fn each_item_stands_for_itself() {
        assert_eq!(judged(&[], |_| ()), []);
        let fail = |name| vec![("fail".to_owned(), name)];
        let warn = |name| vec![("warn".to_owned(), name)];
        let full = "store: database or disk is full (3 changes wait)";
        assert_eq!(judged(&[full], |_| ()), fail("ap-store"));
        assert_eq!(
            judged(&["audit: no space (1 lines wait)"], |_| ()),
            fail("ap-audit-log")
        );
        assert_eq!(
            judged(&[], |view| view["audit_log"] = "-".into()),
            warn("ap-audit-log")
        );
        assert_eq!(
            judged(&[], |view| view["provider"] = "dev".into()),
            fail("ap-issuer")
        );
        assert_eq!(
            judged(&[], |view| view["metrics_read"] =
                "2023-11-14T22:00:00Z".into()),
            fail("ap-metrics")
        );
        assert_eq!(
            judged(&[], |view| view["rules"] = serde_json::json!([])),
            fail("ap-san-rules")
        );
        assert_eq!(
            judged(&[], |view| view["renewal_failures"] = 2.into()),
            fail("ap-renewal")
        );
        assert_eq!(
            judged(&[], |view| view["rotations"] = 0.into()),
            warn("ap-renewal")
        );
        let loopback = |view: &mut serde_json::Value| {
            view["listening"] = serde_json::json!(["[::ffff:127.0.0.1]:1"])
        };
        assert_eq!(judged(&[], loopback), warn("ap-listening"));
        let ends = |view: &mut serde_json::Value| {
            view["certificate"]["not_after"] = "2024-11-15T00:00:00Z".into()
        };
        assert_eq!(judged(&[], ends), fail("ap-lifetime"));
    }
}
