//! The last attempts to enroll, refused and accepted, for `fleet why` (ER-25).
//!
//! Memory is bounded, and nobody can push another's attempts out who is not of the same standing: peers that no
//! trusted authority vouches for share one pool by network address, certificates that chain but were turned
//! away another by executor id, and those that were let in a third. Within a pool, whoever was seen
//! longest ago goes first, and equal attempts of one peer are one entry with a count.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use ah_identity_provider::{CertificateFacts, Code, Explained};

use super::registry::lock;
use crate::store::ExecutorId;

/// Networks of strangers, and what is kept of each.
const STRANGERS: (usize, usize) = (256, 4);
/// Executor ids that were turned away with a certificate that chains, and what is kept of each.
const VOUCHED: (usize, usize) = (1024, 4);
/// Executor ids that were let in; equal ones are one, so this is mostly one of each.
const ADMITTED: (usize, usize) = (4096, 2);

/// Most bytes that are kept of a certificate's names, and of its subject and issuer each.
const NAME_BYTES: usize = 2048;
const SUBJECT_BYTES: usize = 256;
/// Most addresses that are kept of a certificate.
const ADDRESSES: usize = 16;
/// Most bytes of each line of an error.
const LINE_BYTES: usize = 512;
/// Reasons of a pool that attempts may share.
const REASONS: usize = 8;
/// Most causes of an error.
const CAUSES: usize = 3;

/// One attempt, or several that were the same.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    /// The last of them.
    pub(super) at: SystemTime,
    /// The first of them.
    pub(super) first: SystemTime,
    /// How many.
    pub(super) times: u64,
    /// Where the last came from.
    pub(super) peer: SocketAddr,
    /// Who the certificate says it is.
    pub(super) executor: Option<ExecutorId>,
    /// Whether the certificate chains to a trusted root. If not, all that it says is a claim.
    pub(super) vouched: bool,
    /// What the executor calls itself, where it came to that.
    pub(super) name: Option<String>,
    /// What the certificate says, within limits.
    pub(super) certificate: Option<Arc<CertificateFacts>>,
    /// Why it was refused; `None` when it was let in.
    pub(super) refused: Option<Arc<Explained>>,
}

impl Attempt {
    /// An attempt of `peer` that nothing is known of yet.
    pub(super) fn new(at: SystemTime, peer: SocketAddr) -> Self {
        Self {
            at,
            first: at,
            times: 1,
            peer,
            executor: None,
            vouched: false,
            name: None,
            certificate: None,
            refused: None,
        }
    }

    /// Who the certificate says it is.
    pub(super) fn id(&self) -> Option<&str> {
        self.executor.as_ref().map(ExecutorId::as_str)
    }

    fn is_like(&self, other: &Self) -> bool {
        let code = |attempt: &Self| attempt.refused.as_ref().map(|refused| refused.code);
        self.peer.ip() == other.peer.ip()
            && self.executor == other.executor
            && code(self) == code(other)
            && self.sha256() == other.sha256()
    }

    fn sha256(&self) -> Option<&str> {
        Some(&self.certificate.as_ref()?.sha256)
    }

    fn subject(&self) -> Arc<str> {
        match &self.executor {
            Some(executor) if self.vouched => executor.shared(),
            _ => network(self.peer.ip()).to_string().into(),
        }
    }

    fn bounded(mut self) -> Self {
        self.executor = self.executor.map(|id| match id.as_str().len() {
            ..=NAME_BYTES => id,
            _ => clipped(id.as_str(), NAME_BYTES).into(),
        });
        self.certificate = self.certificate.map(bounded);
        self.refused = self.refused.map(|refused| {
            // The rules of the moment, which are the last cause, are kept once and not with each attempt.
            let by_rules = refused.code == Code::SanMismatch;
            let causes = refused.causes.iter();
            Arc::new(Explained {
                code: refused.code,
                text: clipped(&refused.text, LINE_BYTES),
                causes: causes
                    .take(if by_rules { 1 } else { CAUSES })
                    .map(|cause| clipped(cause, LINE_BYTES))
                    .collect(),
                hint: refused.hint.as_ref().map(|hint| clipped(hint, LINE_BYTES)),
            })
        });
        self
    }
}

/// The attempts that are remembered.
#[derive(Debug)]
pub(super) struct Attempts(Mutex<Pools>);

#[derive(Debug)]
struct Pools {
    strangers: Pool,
    vouched: Pool,
    admitted: Pool,
}

impl Default for Attempts {
    fn default() -> Self {
        Self(Mutex::new(Pools {
            strangers: Pool::new(STRANGERS),
            vouched: Pool::new(VOUCHED),
            admitted: Pool::new(ADMITTED),
        }))
    }
}

impl Attempts {
    /// Remembers `attempt`.
    pub(super) fn note(&self, attempt: Attempt) {
        let attempt = attempt.bounded();
        let mut pools = lock(&self.0);
        let pool = match (attempt.vouched, &attempt.refused) {
            (true, None) => &mut pools.admitted,
            (true, Some(_)) => &mut pools.vouched,
            (false, _) => &mut pools.strangers,
        };
        pool.note(attempt);
    }

    /// What is remembered and `wanted`, newest first.
    pub(super) fn matching(&self, wanted: impl Fn(&Attempt) -> bool) -> Vec<Attempt> {
        self.newest(usize::MAX, wanted)
    }

    /// The `most` newest of what is remembered and `wanted`, newest first.
    pub(super) fn newest(&self, most: usize, wanted: impl Fn(&Attempt) -> bool) -> Vec<Attempt> {
        let pools = lock(&self.0);
        let mut found = pools
            .all()
            .filter(|attempt| wanted(attempt))
            .collect::<Vec<_>>();
        found.sort_by_key(|attempt| std::cmp::Reverse(attempt.at));
        found.into_iter().take(most).cloned().collect()
    }

    /// How many are remembered and `wanted`.
    pub(super) fn count(&self, wanted: impl Fn(&Attempt) -> bool) -> usize {
        let pools = lock(&self.0);
        pools.all().filter(|attempt| wanted(attempt)).count()
    }
}

impl Pools {
    fn all(&self) -> impl Iterator<Item = &Attempt> {
        [&self.strangers, &self.vouched, &self.admitted]
            .into_iter()
            .flat_map(|pool| pool.subjects.values())
            .flat_map(|kept| &kept.attempts)
    }
}

#[derive(Debug)]
struct Pool {
    most_subjects: usize,
    most_each: usize,
    subjects: HashMap<Arc<str>, Kept>,
    /// By when they were last seen.
    order: BTreeMap<u64, Arc<str>>,
    seen: u64,
    /// The last reasons, newest first: the attempts of a flood share theirs.
    reasons: VecDeque<Arc<Explained>>,
}

#[derive(Debug, Default)]
struct Kept {
    seen: u64,
    /// With no room to spare: there are thousands of these.
    attempts: Vec<Attempt>,
}

impl Pool {
    fn new((most_subjects, most_each): (usize, usize)) -> Self {
        Self {
            most_subjects,
            most_each,
            subjects: HashMap::new(),
            order: BTreeMap::new(),
            seen: 0,
            reasons: VecDeque::new(),
        }
    }

    fn note(&mut self, mut attempt: Attempt) {
        attempt.refused = attempt.refused.map(|reason| self.known(reason));
        let subject = attempt.subject();
        self.seen += 1;
        let kept = self.subjects.entry(Arc::clone(&subject)).or_default();
        self.order.remove(&kept.seen);
        kept.seen = self.seen;
        self.order.insert(self.seen, subject);
        match kept.attempts.iter_mut().find(|old| old.is_like(&attempt)) {
            // What is the same stays where it is: what thousands bring anew in the middle of a flood would keep its memory apart.
            Some(old) => {
                old.at = attempt.at;
                old.times = old.times.saturating_add(1);
                old.peer = attempt.peer;
                old.refused = attempt.refused;
                if attempt.name.is_some() && attempt.name != old.name {
                    old.name = attempt.name;
                }
            }
            None => {
                kept.attempts.reserve_exact(1);
                kept.attempts.push(attempt);
            }
        }
        if kept.attempts.len() > self.most_each {
            let oldest = kept.attempts.iter().enumerate().min_by_key(|(_, a)| a.at);
            if let Some((oldest, _)) = oldest {
                kept.attempts.remove(oldest);
            }
        }
        if self.subjects.len() > self.most_subjects
            && let Some((_, longest_ago)) = self.order.pop_first()
        {
            self.subjects.remove(&longest_ago);
        }
    }

    /// `reason`, or the same one that is kept already.
    fn known(&mut self, reason: Arc<Explained>) -> Arc<Explained> {
        if let Some(known) = self.reasons.iter().find(|known| **known == reason) {
            return Arc::clone(known);
        }
        self.reasons.truncate(REASONS - 1);
        self.reasons.push_front(Arc::clone(&reason));
        reason
    }
}

/// One IPv4 host, or the /64 that a host of IPv6 picks its addresses from.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

fn bounded(facts: Arc<CertificateFacts>) -> Arc<CertificateFacts> {
    let names = facts.uris.iter().chain(&facts.dns).map(String::len);
    let subjects = [&facts.subject, &facts.issuer, &facts.serial];
    if names.sum::<usize>() <= NAME_BYTES
        && subjects.iter().all(|text| text.len() <= SUBJECT_BYTES)
        && facts.ips.len() <= ADDRESSES
    {
        return facts;
    }
    let facts = Arc::unwrap_or_clone(facts);
    let mut room = NAME_BYTES;
    let mut fits = |name: &String| {
        let fits = name.len() <= room;
        room = room.saturating_sub(name.len());
        fits
    };
    let mut uris = facts.uris;
    uris.retain(&mut fits);
    let mut dns = facts.dns;
    dns.retain(&mut fits);
    Arc::new(CertificateFacts {
        subject: clipped(&facts.subject, SUBJECT_BYTES),
        issuer: clipped(&facts.issuer, SUBJECT_BYTES),
        serial: clipped(&facts.serial, SUBJECT_BYTES),
        uris,
        dns,
        ips: facts.ips.into_iter().take(ADDRESSES).collect(),
        ..facts
    })
}

fn clipped(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = (0..=most).rev().find(|end| text.is_char_boundary(*end));
    let head = end.and_then(|end| text.get(..end)).unwrap_or_default();
    format!("{head}…")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn stranger(seconds: u64, ip: [u8; 4], code: Code) -> Attempt {
        let port = u16::try_from(seconds % 60_000).unwrap();
        Attempt {
            refused: Some(Arc::new(Explained::new(code, "no"))),
            ..Attempt::new(at(seconds), SocketAddr::from((ip, port)))
        }
    }

    fn vouched(seconds: u64, id: &str) -> Attempt {
        Attempt {
            executor: Some(id.into()),
            vouched: true,
            ..stranger(seconds, [10, 0, 0, 1], Code::SanMismatch)
        }
    }

    fn kept(attempts: &Attempts) -> usize {
        attempts.matching(|_| true).len()
    }

    // ER-25: a flood of refused sockets neither evicts the useful attempts nor grows.
    #[test]
    fn er_25_a_flood_from_many_addresses_leaves_those_that_are_vouched_for() {
        let attempts = Attempts::default();
        attempts.note(vouched(1, "spiffe://example.org/worker-1"));
        attempts.note(Attempt {
            refused: None,
            ..vouched(2, "spiffe://example.org/worker-2")
        });
        for n in 0..100_000_u32 {
            let [_, b, c, d] = n.to_be_bytes();
            attempts.note(stranger(u64::from(n), [192, b, c, d], Code::Other));
        }
        assert_eq!(kept(&attempts), STRANGERS.0 + 2);
        let useful = attempts.matching(|attempt| attempt.vouched);
        assert_eq!(useful.len(), 2, "{useful:?}");
    }

    // ER-25: one address cannot push out another, however often and in however many ways it fails.
    #[test]
    fn er_25_a_flood_from_one_address_leaves_the_others() {
        let attempts = Attempts::default();
        attempts.note(stranger(1, [192, 0, 2, 1], Code::ClientUnknownAuthority));
        for n in 0..10_000 {
            let claim = Attempt {
                executor: Some(format!("spiffe://example.org/{n}").into()),
                ..stranger(n, [192, 0, 2, 9], Code::ClientUnknownAuthority)
            };
            attempts.note(claim);
        }
        assert_eq!(kept(&attempts), 1 + STRANGERS.1);
        let honest = attempts.matching(|attempt| attempt.peer.ip() == IpAddr::from([192, 0, 2, 1]));
        assert_eq!(honest.len(), 1);
    }

    #[test]
    fn the_same_again_is_counted_and_not_kept_twice() {
        let attempts = Attempts::default();
        for n in 5..9 {
            attempts.note(vouched(n, "a"));
        }
        attempts.note(vouched(3, "b"));
        let found = attempts.matching(|_| true);
        let [newest, other] = found.as_slice() else {
            panic!("{found:?}");
        };
        assert_eq!((newest.times, newest.first, newest.at), (4, at(5), at(8)));
        assert_eq!((other.times, other.at), (1, at(3)));
    }

    #[test]
    fn whoever_was_seen_longest_ago_makes_room() {
        let attempts = Attempts::default();
        let most = u64::try_from(VOUCHED.0).unwrap();
        for n in 0..most {
            attempts.note(vouched(n, &n.to_string()));
        }
        attempts.note(vouched(most, "0"));
        attempts.note(vouched(most + 1, "new"));
        let of = |id: &str| attempts.matching(|a| a.id() == Some(id)).len();
        assert_eq!((of("0"), of("1"), of("2"), of("new")), (1, 0, 1, 1));
    }

    #[test]
    fn a_host_of_ipv6_is_one_however_many_addresses_it_takes() {
        let attempts = Attempts::default();
        for n in 0..1000_u64 {
            let ip = Ipv6Addr::from_bits((0x2001_0db8_u128 << 96) | u128::from(n));
            attempts.note(Attempt {
                refused: Some(Arc::new(Explained::new(Code::Other, "no"))),
                ..Attempt::new(at(n), SocketAddr::from((ip, 1)))
            });
        }
        assert_eq!(kept(&attempts), STRANGERS.1);
    }

    // A stranger's certificate may hold 64 KiB of names.
    #[test]
    fn what_a_peer_says_takes_a_bounded_place() {
        let long = "ä".repeat(30_000);
        let mut attempt = stranger(1, [10, 0, 0, 1], Code::Other);
        attempt.executor = Some(long.as_str().into());
        attempt.refused = Some(Arc::new((0..100).fold(
            Explained::new(Code::Other, long.clone()).hint(long.clone()),
            |explained, _| explained.cause(&long),
        )));
        attempt.certificate = Some(Arc::new(CertificateFacts {
            subject: long.clone(),
            issuer: long.clone(),
            serial: long.clone(),
            sha256: "00".into(),
            not_before: at(0),
            not_after: at(0),
            uris: vec!["spiffe://example.org/a".into(), long.clone()],
            dns: vec!["x".repeat(200); 300],
            ips: vec![IpAddr::from([10, 0, 0, 1]); 5000],
            key: ah_identity_provider::KeyKind::Ed25519,
            is_ca: false,
        }));
        let attempts = Attempts::default();
        attempts.note(attempt);
        let kept = attempts.matching(|_| true);
        let size = format!("{kept:?}").len();
        assert!(size < 10_000, "{size}");
        let names = &kept[0].certificate.as_ref().unwrap().uris;
        assert_eq!(names, &["spiffe://example.org/a"]);
    }
}
