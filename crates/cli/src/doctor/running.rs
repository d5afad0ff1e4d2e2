//! The executor that runs here under this name, if one does: whether it is enrolled, and whether it renews.

use std::io::ErrorKind;
use std::time::{Duration, SystemTime};

use ah_fleet::executor::{Status, read_status};
use ah_identity_provider::{Code, Explained, ProviderKind, Published};

use super::clock::moment;
use super::report::{Check, Report};
use crate::settings::EnrollSettings;

/// A renewal that is this late is one that does not come.
const LATE: Duration = Duration::from_secs(60);

pub(super) async fn report(
    settings: &EnrollSettings,
    own: Option<&Published>,
    report: &mut Report,
) {
    let status = match read_status(&settings.status_socket).await {
        Ok(status) => status,
        Err(error) => {
            let socket = settings.status_socket.display();
            let because = match error.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                    format!("no executor named {} runs here", settings.name)
                }
                _ => format!("{socket} cannot be read: {error}"),
            };
            report.add(Check::skip("executor", because.as_str()));
            return report.add(Check::skip("rotation", because));
        }
    };
    report.add(enrolled(&status));
    report.add(rotation(&status, own));
}

fn enrolled(status: &Status) -> Check {
    if status.enrolled {
        let who = status.executor_id.as_deref().unwrap_or_default();
        let at = status.access_point.as_deref().unwrap_or_default();
        return Check::pass(
            "executor",
            format!("enrolled at {at} as {who} (pid {})", status.pid),
        );
    }
    let why = status.why_not.clone().unwrap_or_default();
    match &status.last_error {
        Some(problem) => Check::fail("executor", &problem.error).cause(format!(
            "it runs (pid {}) and is not enrolled since {}",
            status.pid,
            moment(problem.at.into())
        )),
        None => Check::warn(
            "executor",
            format!("it runs (pid {}) and is not enrolled: {why}", status.pid),
        )
        .fix("ah agent status --watch"),
    }
}

fn rotation(status: &Status, own: Option<&Published>) -> Check {
    let name = "rotation";
    if let Some(problem) = &status.identity_error {
        return Check::fail(name, &problem.error).cause(format!(
            "the running executor cannot renew since {}",
            moment(problem.at.into())
        ));
    }
    let Some(certificate) = &status.certificate else {
        return Check::skip(name, "the running executor has no certificate yet");
    };
    let leaf = &certificate.leaf;
    let now = SystemTime::now();
    if leaf.not_after <= now {
        let explained = Explained::new(
            Code::ExpiredOrNotYetValid,
            "certificate has expired or is not yet valid",
        )
        .cause(format!(
            "the running executor's ended at {}",
            moment(leaf.not_after)
        ))
        .hint("journalctl -u ah-executor | grep -i 'rotat\\|renew'");
        return Check::fail(name, &explained);
    }
    let newer = own.filter(|own| {
        own.provider == ProviderKind::Files && own.identity.leaf().sha256 != leaf.sha256
    });
    if let Some(newer) = newer {
        return Check::warn(
            name,
            format!(
                "the running executor uses serial {}, the files hold {}",
                leaf.serial,
                newer.identity.leaf().serial
            ),
        )
        .fix("sudo systemctl reload ah-executor; ah agent status --show-cert");
    }
    let late = status
        .next_renewal
        .map(SystemTime::from)
        .filter(|at| *at + LATE < now);
    if let Some(at) = late {
        return Check::warn(name, format!("the renewal of {} has not come", moment(at)))
            .fix("journalctl -u ah-executor | grep -i 'rotat\\|renew'");
    }
    let next = status.next_renewal.map_or_else(String::new, |at| {
        format!(", next renewal {}", moment(at.into()))
    });
    Check::pass(
        name,
        format!(
            "{} rotations, certificate until {}{next}",
            status.rotations,
            moment(leaf.not_after)
        ),
    )
}
