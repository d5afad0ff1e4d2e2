//! Our clock beside the access point's: a wrong clock makes every certificate look wrong.

use std::time::{Duration, SystemTime};

use ah_identity_provider::{CertificateFacts, Clock};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::report::Check;
use crate::render::brief;

/// Clocks further apart than this are worth a warning. An answer tells its time to about a second.
const APART: u64 = 5;

/// A clock that stands still.
#[derive(Clone, Copy, Debug)]
pub(super) struct At(pub(super) SystemTime);

impl Clock for At {
    fn now(&self) -> SystemTime {
        self.0
    }
}

/// What is known of the access point's clock.
#[derive(Clone, Debug)]
pub(super) enum Peer {
    /// It answered: its clock less ours, in seconds.
    Measured { access_point: String, skew: i64 },
    /// It says that our certificate is not valid now, and by our clock it is.
    Disagrees { access_point: String },
    /// It never told.
    Unknown,
}

impl Peer {
    /// The time of now by the access point's clock, where it is known.
    pub(super) fn now(&self) -> Option<SystemTime> {
        match self {
            Self::Measured { skew, .. } => Some(moved(SystemTime::now(), *skew)),
            _ => None,
        }
    }

    /// The check. `explains` says that dates are wrong by our clock and right by the access point's.
    pub(super) fn check(&self, explains: bool) -> Check {
        let fix = "`date -u; timedatectl status` on both machines, then `sudo timedatectl set-ntp true` on the one that is wrong";
        match self {
            Self::Measured { access_point, skew } => {
                let ours = SystemTime::now();
                let told = format!(
                    "our clock says {}, that of {access_point} {}",
                    moment(ours),
                    moment(moved(ours, *skew))
                );
                let by = brief(Duration::from_secs(skew.unsigned_abs()));
                if explains {
                    let explained = ah_identity_provider::Explained::new(
                        ah_identity_provider::Code::ExpiredOrNotYetValid,
                        format!(
                            "the clocks are {by} apart: certificates look expired or not yet valid"
                        ),
                    )
                    .cause(told)
                    .hint(fix);
                    return Check::fail("clock", &explained);
                }
                if skew.unsigned_abs() > APART {
                    return Check::warn("clock", format!("the clocks are {by} apart: {told}"))
                        .fix(fix);
                }
                Check::pass(
                    "clock",
                    format!("within {APART}s of the clock of {access_point}"),
                )
            }
            Self::Disagrees { access_point } => {
                let explained = ah_identity_provider::Explained::new(
                    ah_identity_provider::Code::ClientExpired,
                    format!("the clocks differ: by that of {access_point} our certificate is not valid now"),
                )
                .cause(format!("by ours it is: {}", moment(SystemTime::now())))
                .hint(fix);
                Check::fail("clock", &explained)
            }
            Self::Unknown => Check::skip("clock", "no access point told its time"),
        }
    }
}

/// A moment at which all of `certificates` are valid, if there is one: `now`, or the middle of their common
/// time, at which their issuers most likely were valid too.
pub(super) fn when_valid(
    now: SystemTime,
    certificates: &[&CertificateFacts],
) -> Option<SystemTime> {
    let begin = certificates.iter().map(|facts| facts.not_before).max()?;
    let end = certificates.iter().map(|facts| facts.not_after).min()?;
    let common = end.duration_since(begin).ok()?;
    if (begin..=end).contains(&now) {
        return Some(now);
    }
    Some(begin + common / 2)
}

fn moved(at: SystemTime, seconds: i64) -> SystemTime {
    let by = Duration::from_secs(seconds.unsigned_abs());
    let moved = if seconds < 0 {
        at.checked_sub(by)
    } else {
        at.checked_add(by)
    };
    moved.unwrap_or(at)
}

/// RFC 3339, to the second.
pub(super) fn moment(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    let whole = at.replace_nanosecond(0).unwrap_or(at);
    whole.format(&Rfc3339).unwrap_or_default()
}
