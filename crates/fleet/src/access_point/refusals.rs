//! Peers that were turned away: told of one by one while they are few, in sums when they are many.
//!
//! Anyone who can reach the port can be refused ten thousand times a second. Log and audit must tell of it
//! and neither may fill the disk, so each reason has so many lines in a window; what is beyond them is
//! counted by address, and one line at the window's end holds the sum. Metrics count every one.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ah_identity_provider::{CertificateFacts, Code, Explained};
use tokio::time::MissedTickBehavior;

use super::Shared;
use super::attempts::Attempt;
use super::registry::lock;
use crate::audit::{Entry, Event, Outcome};
use crate::hello::Greeting;
use crate::store::ExecutorId;

/// Length of a window.
const WINDOW: Duration = Duration::from_secs(10);
/// Lines of the log for one reason in a window.
const LOGGED: u64 = 10;
/// Lines of the audit log for one reason in a window.
const RECORDED: u64 = 200;
/// Addresses that are told apart for one reason in a window.
const ADDRESSES: usize = 64;
/// Addresses that a sum names.
const NAMED: usize = 8;

/// What happened in the window that is open.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<HashMap<Code, Tally>>);

#[derive(Debug, Default)]
struct Tally {
    refused: u64,
    /// Beyond [`RECORDED`], by address.
    unrecorded: BTreeMap<IpAddr, u64>,
    /// Beyond [`RECORDED`] and [`ADDRESSES`].
    elsewhere: u64,
}

/// Where one refusal is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tell {
    log: bool,
    record: bool,
}

/// What no line of its own told of, for one reason.
#[derive(Debug, PartialEq, Eq)]
struct Sum {
    code: Code,
    unlogged: u64,
    unrecorded: u64,
    /// Most frequent first.
    from: Vec<(IpAddr, u64)>,
    elsewhere: u64,
}

impl Refusals {
    fn note(&self, code: Code, from: IpAddr) -> Tell {
        let mut tallies = lock(&self.0);
        let tally = tallies.entry(code).or_default();
        tally.refused += 1;
        let tell = Tell {
            log: tally.refused <= LOGGED,
            record: tally.refused <= RECORDED,
        };
        if !tell.record {
            let room = tally.unrecorded.len() < ADDRESSES;
            match tally.unrecorded.get_mut(&from) {
                Some(count) => *count += 1,
                None if room => {
                    tally.unrecorded.insert(from, 1);
                }
                None => tally.elsewhere += 1,
            }
        }
        tell
    }

    /// Ends the window and gives what is left to tell of it.
    fn sums(&self) -> Vec<Sum> {
        let tallies = std::mem::take(&mut *lock(&self.0));
        let sums = tallies
            .into_iter()
            .filter(|(_, tally)| tally.refused > LOGGED);
        sums.map(|(code, tally)| Sum::of(code, tally)).collect()
    }
}

impl Sum {
    fn of(code: Code, tally: Tally) -> Self {
        let mut from = tally.unrecorded.into_iter().collect::<Vec<_>>();
        from.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let unnamed = from.split_off(from.len().min(NAMED));
        let elsewhere = tally.elsewhere + unnamed.iter().map(|(_, count)| count).sum::<u64>();
        Self {
            code,
            unlogged: tally.refused.saturating_sub(LOGGED),
            unrecorded: tally.refused.saturating_sub(RECORDED),
            from,
            elsewhere,
        }
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, reason) = (self.unrecorded, self.code.as_str());
        write!(
            f,
            "{count} more refused for {reason} within {}s",
            WINDOW.as_secs()
        )?;
        for (place, (address, count)) in self.from.iter().enumerate() {
            let lead = if place == 0 { ": from" } else { "," };
            write!(f, "{lead} {address} ({count})")?;
        }
        if self.elsewhere > 0 {
            write!(f, ", elsewhere ({})", self.elsewhere)?;
        }
        Ok(())
    }
}

/// Who was turned away, as far as it is known.
pub(super) struct Refused<'a> {
    pub(super) explained: &'a Explained,
    pub(super) remote: SocketAddr,
    pub(super) executor: Option<ExecutorId>,
    pub(super) certificate: Option<&'a CertificateFacts>,
    /// Whether that certificate chains to a trusted root.
    pub(super) vouched: bool,
    /// What it said of itself, where it came to that.
    pub(super) greeting: Option<&'a Greeting>,
}

impl Shared {
    /// Counts a refusal, and tells of it in log, audit and to those who watch.
    pub(super) fn turned_away(&self, refused: Refused<'_>) {
        let Refused {
            explained,
            remote,
            executor,
            certificate,
            vouched,
            greeting,
        } = refused;
        self.metrics.rejected(explained.code);
        self.attempts.note(Attempt {
            executor: executor.clone(),
            vouched,
            name: greeting.map(|greeting| greeting.name.clone()),
            certificate: certificate.cloned().map(Arc::new),
            refused: Some(Arc::new(explained.clone())),
            ..Attempt::new(self.clock.now(), remote)
        });
        let tell = self.refusals.note(explained.code, remote.ip());
        let id = executor.as_ref().map_or("unknown", ExecutorId::as_str);
        let causes = explained.causes.join("; ");
        if tell.log {
            tracing::warn!(
                executor.id = id,
                peer = %remote,
                reason = explained.code.as_str(),
                causes,
                "executor refused: {explained}"
            );
        } else {
            tracing::debug!(executor.id = id, peer = %remote, causes, "executor refused: {explained}");
        }
        if !tell.record {
            return;
        }
        let suspicion = match explained.code {
            Code::Duplicate => "possible stolen identity: ",
            _ => "",
        };
        let separator = if causes.is_empty() { "" } else { "; " };
        let reason = format!("{suspicion}{explained}{separator}{causes}");
        self.announce(Event::Rejected, id, greeting, Some(&reason));
        self.audit.record(Entry {
            event: Event::Rejected,
            outcome: Outcome::Failure,
            executor_id: executor,
            peer: Some(remote),
            certificate: certificate.map(Into::into),
            provider: greeting.and_then(|greeting| greeting.provider),
            reason: Some(reason),
        });
    }

    /// Tells in sums of the refusals that had no line of their own.
    pub(super) fn sum_up_refusals(&self) {
        for sum in self.refusals.sums() {
            tracing::warn!(
                reason = sum.code.as_str(),
                executors.refused = sum.unlogged,
                "more executors refused than told of one by one"
            );
            if sum.unrecorded == 0 {
                continue;
            }
            let mut entry = Entry::new(Event::Rejected, Outcome::Failure);
            entry.reason = Some(sum.to_string());
            self.audit.record(entry);
        }
    }
}

/// Ends one window after the other.
pub(super) async fn sum_up(shared: Arc<Shared>) {
    let mut windows = tokio::time::interval(WINDOW);
    windows.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        windows.tick().await;
        shared.sum_up_refusals();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    // AP-12: a flood of refusals is bounded in log and audit, and none is lost from the count.
    #[test]
    fn a_flood_comes_to_a_bounded_number_of_lines_and_a_whole_sum() {
        let refusals = Refusals::default();
        let flood = 10_000;
        let mut told = (0, 0);
        for n in 0..flood {
            let from = address(u8::try_from(n % 100).unwrap());
            let tell = refusals.note(Code::SanMismatch, from);
            told.0 += u64::from(tell.log);
            told.1 += u64::from(tell.record);
        }
        assert_eq!(told, (LOGGED, RECORDED));

        // Another reason is not drowned by the flood.
        assert!(refusals.note(Code::Duplicate, address(1)).log);

        let sums = refusals.sums();
        let [sum] = sums.as_slice() else {
            panic!("{sums:?}");
        };
        assert_eq!(sum.unlogged, flood - LOGGED);
        assert_eq!(sum.unrecorded, flood - RECORDED);
        let named = sum.from.iter().map(|(_, count)| count).sum::<u64>();
        assert_eq!(sum.from.len(), NAMED);
        assert_eq!(named + sum.elsewhere, sum.unrecorded);

        assert!(refusals.sums().is_empty());
        assert!(refusals.note(Code::SanMismatch, address(1)).log);
    }

    #[test]
    fn a_sum_reads_as_a_line() {
        let sum = Sum {
            code: Code::ClientRevoked,
            unlogged: 30,
            unrecorded: 7,
            from: vec![(address(1), 4), (address(2), 2)],
            elsewhere: 1,
        };
        let line = "7 more refused for client_revoked within 10s: from 192.0.2.1 (4), 192.0.2.2 (2), elsewhere (1)";
        assert_eq!(sum.to_string(), line);
    }
}
