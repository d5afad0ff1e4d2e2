//! Which executors the table shows: search, filters, order and page, all on this side.

use std::cmp::Ordering;
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use super::spans::Span;
use crate::access_point::{ExecutorView, path_segment};

/// Rows of one page.
pub(super) const ROWS: usize = 50;

/// What the address of the fleet page asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FleetQuery {
    /// Words that all have to be found in an executor: id, name, `key=value`, host, address, provider, certificate.
    pub(super) q: String,
    pub(super) state: Option<State>,
    /// When the certificate ends; enrolled executors alone.
    pub(super) ends: Option<Span>,
    /// When it enrolled with it; enrolled executors alone.
    pub(super) since: Option<Span>,
    pub(super) sort: Sort,
    pub(super) desc: bool,
    /// From 1.
    pub(super) page: usize,
}

/// As `fleet list` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Enrolled,
    Offline,
    Revoked,
}

/// By which column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Sort {
    #[default]
    Name,
    State,
    Heard,
    Since,
    Ends,
}

impl State {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::Offline => "offline",
            Self::Revoked => "revoked",
        }
    }
}

impl Sort {
    fn word(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::State => "state",
            Self::Heard => "heard",
            Self::Since => "since",
            Self::Ends => "ends",
        }
    }
}

impl FleetQuery {
    /// The address that asks for this.
    pub(super) fn address(&self) -> String {
        let mut pairs = Vec::new();
        if !self.q.is_empty() {
            pairs.push(format!("q={}", path_segment(&self.q)));
        }
        pairs.extend(self.state.map(|state| format!("state={}", state.word())));
        pairs.extend(self.ends.map(|span| format!("ends={}", span.word())));
        pairs.extend(self.since.map(|span| format!("since={}", span.word())));
        if self.sort != Sort::default() {
            pairs.push(format!("sort={}", self.sort.word()));
        }
        if self.desc {
            pairs.push("desc=true".to_owned());
        }
        if self.page > 1 {
            pairs.push(format!("page={}", self.page));
        }
        if pairs.is_empty() {
            return "/".to_owned();
        }
        format!("/?{}", pairs.join("&"))
    }

    /// The same, changed, from its first page.
    pub(super) fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut changed = self.clone();
        changed.page = 0;
        change(&mut changed);
        changed
    }

    /// Whether it leaves anybody out.
    pub(super) fn narrows(&self) -> bool {
        !self.q.trim().is_empty()
            || self.state.is_some()
            || self.ends.is_some()
            || self.since.is_some()
    }
}

/// What the fleet page shows.
pub(super) struct Selection<'a> {
    /// One page of executors.
    pub(super) rows: Vec<&'a ExecutorView>,
    /// How many there are on all pages.
    pub(super) matching: usize,
    /// The number of the first row, from 0.
    pub(super) first: usize,
    /// This page and how many there are, from 1.
    pub(super) page: usize,
    pub(super) pages: usize,
    pub(super) totals: Totals<'a>,
}

/// The whole fleet in numbers.
#[derive(Default)]
pub(super) struct Totals<'a> {
    pub(super) all: usize,
    pub(super) enrolled: usize,
    pub(super) offline: usize,
    pub(super) revoked: usize,
    /// Enrolled executors by when they enrolled with their certificate, nearest first.
    pub(super) since: [usize; Span::ALL.len()],
    /// And by when it ends.
    pub(super) ends: [usize; Span::ALL.len()],
    /// The enrolled executor whose certificate ends first.
    pub(super) next_end: Option<&'a ExecutorView>,
}

impl<'a> Totals<'a> {
    fn of(executors: &'a [ExecutorView], at: SystemTime) -> Self {
        let mut totals = Self {
            all: executors.len(),
            ..Self::default()
        };
        for view in executors {
            match view.state() {
                "enrolled" => totals.enrolled += 1,
                "revoked" => totals.revoked += 1,
                _ => totals.offline += 1,
            }
            if view.live.is_none() {
                continue;
            }
            let spans = [
                (&mut totals.since, since(view, at)),
                (&mut totals.ends, ends(view, at)),
            ];
            for (counts, span) in spans {
                let index = Span::ALL.iter().position(|other| *other == span);
                if let Some(count) = index.and_then(|index| counts.get_mut(index)) {
                    *count += 1;
                }
            }
            let end = view.certificate.not_after;
            if totals
                .next_end
                .is_none_or(|next| end < next.certificate.not_after)
            {
                totals.next_end = Some(view);
            }
        }
        totals
    }
}

fn since(view: &ExecutorView, at: SystemTime) -> Span {
    Span::between(at, view.last_enrolled.into())
}

fn ends(view: &ExecutorView, at: SystemTime) -> Span {
    Span::between(at, view.certificate.not_after.into())
}

/// When an executor was last heard, as far as it is known.
pub(super) fn heard(view: &ExecutorView, at: SystemTime) -> SystemTime {
    match &view.live {
        Some(live) => at
            .checked_sub(Duration::from_millis(live.last_heard_ms))
            .unwrap_or(at),
        None => view.last_enrolled.into(),
    }
}

/// Picks from `executors`, which were read at `at`, what `query` asks for.
pub(super) fn select<'a>(
    executors: &'a [ExecutorView],
    query: &FleetQuery,
    at: SystemTime,
) -> Selection<'a> {
    let words: Vec<String> = query.q.split_whitespace().map(str::to_lowercase).collect();
    let mut matching: Vec<&ExecutorView> = executors
        .iter()
        .filter(|view| query.state.is_none_or(|state| state.word() == view.state()))
        .filter(|view| {
            let live = view.live.is_some();
            query.ends.is_none_or(|span| live && ends(view, at) == span)
                && query
                    .since
                    .is_none_or(|span| live && since(view, at) == span)
        })
        .filter(|view| words.iter().all(|word| mentions(view, word)))
        .collect();
    matching.sort_by(|a, b| {
        let order = by(query.sort, a, b, at).then_with(|| a.id.cmp(&b.id));
        if query.desc { order.reverse() } else { order }
    });
    let pages = matching.len().div_ceil(ROWS).max(1);
    let page = query.page.clamp(1, pages);
    let first = (page - 1) * ROWS;
    Selection {
        rows: matching.iter().skip(first).take(ROWS).copied().collect(),
        matching: matching.len(),
        first,
        page,
        pages,
        totals: Totals::of(executors, at),
    }
}

fn by(sort: Sort, a: &ExecutorView, b: &ExecutorView, at: SystemTime) -> Ordering {
    match sort {
        Sort::Name => a.name.cmp(&b.name),
        Sort::State => a.state().cmp(b.state()).then_with(|| a.name.cmp(&b.name)),
        Sort::Heard => heard(b, at).cmp(&heard(a, at)),
        Sort::Since => b.last_enrolled.cmp(&a.last_enrolled),
        Sort::Ends => a.certificate.not_after.cmp(&b.certificate.not_after),
    }
}

/// Whether `word`, in lower case, is in anything that an executor is known by.
fn mentions(view: &ExecutorView, word: &str) -> bool {
    let has = |text: &str| text.to_lowercase().contains(word);
    has(&view.id)
        || has(&view.name)
        || has(&view.host.hostname)
        || has(&view.version)
        || view.certificate.serial.starts_with(word)
        || view.certificate.sha256.starts_with(word)
        || view.provider.is_some_and(|provider| has(provider.as_str()))
        || view
            .live
            .as_ref()
            .is_some_and(|live| has(&live.peer.to_string()))
        || view
            .labels
            .iter()
            .any(|(key, value)| has(&format!("{key}={value}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access_point::LiveView;
    use crate::store::{CertificateRecord, HostRecord, Revocation};
    use time::OffsetDateTime;

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(seconds)
    }

    const NOW: i64 = 1_000_000;

    fn executor(number: i64, live: bool) -> ExecutorView {
        ExecutorView {
            id: format!("spiffe://example.org/w-{number}"),
            name: format!("W-{:04}", 9999 - number),
            provider: None,
            version: "1".into(),
            labels: [("zone".to_owned(), format!("Z{}", number % 2))].into(),
            host: HostRecord::default(),
            certificate: CertificateRecord {
                serial: format!("{number:08x}"),
                sha256: String::new(),
                not_after: at(NOW + 60 * number),
            },
            first_enrolled: None,
            last_enrolled: at(NOW - number),
            revocation: None,
            live: live.then(|| LiveView {
                session_id: String::new(),
                peer: ([10, 0, 0, 1], 4000).into(),
                since: at(NOW),
                last_heard_ms: 5,
                round_trip_us: None,
            }),
            history: Vec::new(),
        }
    }

    fn fleet(count: i64) -> Vec<ExecutorView> {
        let mut fleet: Vec<_> = (0..count).map(|n| executor(n, n % 2 == 0)).collect();
        fleet[1].revocation = Some(Revocation {
            at: at(NOW),
            reason: String::new(),
        });
        fleet
    }

    fn picked(fleet: &[ExecutorView], query: FleetQuery) -> (usize, Vec<String>) {
        let picked = select(fleet, &query, at(NOW).into());
        let ids = picked.rows.iter().map(|view| view.id.clone());
        (picked.matching, ids.collect())
    }

    #[test]
    fn every_word_and_every_filter_has_to_hold() {
        let fleet = fleet(200);
        let ask = |query| picked(&fleet, query).0;
        let q = |q: &str| FleetQuery {
            q: q.into(),
            ..FleetQuery::default()
        };
        for (words, count) in [
            ("", 200),
            ("zone=z1", 100),
            ("ZONE=Z1  w-00", 0),
            ("w-7 zone=z1", 6),
            ("10.0.0.1:4000", 100),
            ("0000000a", 1),
            ("<script>", 0),
        ] {
            assert_eq!(ask(q(words)), count, "{words}");
        }
        for (state, count) in [
            (State::Enrolled, 100),
            (State::Offline, 99),
            (State::Revoked, 1),
        ] {
            let query = FleetQuery {
                state: Some(state),
                ..FleetQuery::default()
            };
            assert_eq!(ask(query), count, "{state:?}");
        }
        let ends = FleetQuery {
            ends: Some(Span::FiveMinutes),
            ..FleetQuery::default()
        };
        assert_eq!(ask(ends), 3, "of the six, every other one is enrolled");
    }

    #[test]
    fn pages_are_whole_and_beyond_the_last_is_the_last() {
        let fleet = fleet(120);
        let mut seen = Vec::new();
        for page in 1..=3 {
            let query = FleetQuery {
                page,
                ..FleetQuery::default()
            };
            seen.extend(picked(&fleet, query).1);
        }
        assert_eq!(seen.len(), 120);
        assert_eq!(seen[0], "spiffe://example.org/w-119", "by name");
        let beyond = FleetQuery {
            page: usize::MAX,
            sort: Sort::Ends,
            desc: true,
            ..FleetQuery::default()
        };
        let (_, last) = picked(&fleet, beyond);
        assert_eq!(last.len(), 20);
        assert_eq!(last[19], "spiffe://example.org/w-0");
    }

    #[test]
    fn an_address_asks_for_what_it_was_made_from() {
        let query = FleetQuery {
            q: "a&b=ü <x>".into(),
            state: Some(State::Offline),
            ends: Some(Span::Longer),
            since: Some(Span::Hour),
            sort: Sort::Heard,
            desc: true,
            page: 7,
        };
        let uri: axum::http::Uri = query.address().parse().unwrap();
        let read = axum::extract::Query::<FleetQuery>::try_from_uri(&uri).unwrap();
        assert_eq!(read.0, query);
        assert_eq!(FleetQuery::default().address(), "/");
    }
}
