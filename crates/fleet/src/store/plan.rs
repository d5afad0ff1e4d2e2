//! A batch of changes, folded into what the database has to be told.
//!
//! Both databases take the whole batch as JSON arrays in a fixed number of statements: a thousand
//! enrollments cost four round trips, not a thousand, and a statement is prepared once for any size.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use ah_identity_provider::ProviderKind;
use serde::Serialize;
use time::OffsetDateTime;

use super::{
    CertificateRecord, Change, Enrollment, ExecutorId, ExecutorRecord, HISTORY_LIMIT, HistoryEntry,
    Revocation, RevocationTarget, StoreError,
};

/// What to write, as JSON arrays. `None` where there is nothing to do.
///
/// Rows are sorted by key, so that two access points that share a database lock rows in one order.
#[derive(Debug)]
pub(super) struct Plan {
    /// Of [`ExecutorRow`].
    pub(super) executors: Option<String>,
    /// Of [`HistoryRow`].
    pub(super) history: Option<String>,
    /// Of [`BarRow`]: the bars to set.
    pub(super) barred: Option<String>,
    /// Of [`BarRow`]: the bars to lift.
    pub(super) lifted: Option<String>,
}

impl Plan {
    pub(super) fn new(changes: &[Change]) -> Result<Self, StoreError> {
        let mut executors: BTreeMap<&str, Folded<'_>> = BTreeMap::new();
        let mut bars: BTreeMap<&RevocationTarget, Option<&Revocation>> = BTreeMap::new();
        for change in changes {
            match change {
                Change::Enrolled(enrollment) => {
                    let folded = fold(&mut executors, &enrollment.id, enrollment.at)?;
                    folded.latest = Some(enrollment);
                    folded.see(enrollment.at, enrollment.provider, &enrollment.certificate)?;
                }
                Change::Seen(id, entry) => {
                    let folded = fold(&mut executors, id, entry.at)?;
                    folded.see(entry.at, entry.provider, &entry.certificate)?;
                }
                Change::Revoked(target, revocation) => {
                    bars.insert(target, Some(revocation));
                }
                Change::Reinstated(target) => {
                    bars.insert(target, None);
                }
            }
        }
        let executor_rows: Vec<_> = executors.iter().filter_map(|(id, f)| f.row(id)).collect();
        let history_rows: Vec<_> = executors
            .iter()
            .flat_map(|(id, folded)| folded.history(id))
            .collect();
        let mut barred = Vec::new();
        let mut lifted = Vec::new();
        for (target, revocation) in bars {
            let rows = if revocation.is_some() {
                &mut barred
            } else {
                &mut lifted
            };
            rows.push(BarRow::new(target, revocation)?);
        }
        Ok(Self {
            executors: json(&executor_rows)?,
            history: json(&history_rows)?,
            barred: json(&barred)?,
            lifted: json(&lifted)?,
        })
    }
}

/// What a batch says of one executor.
struct Folded<'a> {
    latest: Option<&'a Enrollment>,
    first: OffsetDateTime,
    seen: Vec<(OffsetDateTime, Option<ProviderKind>, &'a CertificateRecord)>,
}

fn fold<'a, 'm>(
    executors: &'m mut BTreeMap<&'a str, Folded<'a>>,
    id: &'a ExecutorId,
    at: OffsetDateTime,
) -> Result<&'m mut Folded<'a>, StoreError> {
    match executors.entry(storable(id.as_str(), "executor id")?) {
        Entry::Occupied(known) => Ok(known.into_mut()),
        Entry::Vacant(new) => Ok(new.insert(Folded {
            latest: None,
            first: at,
            seen: Vec::new(),
        })),
    }
}

impl<'a> Folded<'a> {
    fn see(
        &mut self,
        at: OffsetDateTime,
        provider: Option<ProviderKind>,
        certificate: &'a CertificateRecord,
    ) -> Result<(), StoreError> {
        storable(&certificate.serial, "serial number")?;
        storable(&certificate.sha256, "certificate hash")?;
        let again = self.seen.last().is_some_and(|(_, known, last)| {
            *known == provider && last.sha256 == certificate.sha256
        });
        if !again {
            self.seen.push((at, provider, certificate));
        }
        Ok(())
    }

    fn row(&self, id: &'a str) -> Option<ExecutorRow<'a>> {
        let latest = self.latest?;
        Some(ExecutorRow {
            id,
            name: clean(&latest.name),
            provider: latest.provider.map(ProviderKind::as_str),
            version: clean(&latest.version),
            labels: latest
                .labels
                .iter()
                .map(|(k, v)| (clean(k), clean(v)))
                .collect(),
            host: HostRow {
                hostname: clean(&latest.host.hostname),
                os: clean(&latest.host.os),
                arch: clean(&latest.host.arch),
                kernel: clean(&latest.host.kernel),
                cpus: latest.host.cpus,
                memory_bytes: latest.host.memory_bytes,
            },
            serial: &latest.certificate.serial,
            sha256: &latest.certificate.sha256,
            not_after: micros(latest.certificate.not_after),
            first: micros(self.first),
            last: micros(latest.at),
        })
    }

    fn history(&self, id: &'a str) -> impl Iterator<Item = HistoryRow<'a>> {
        let surplus = self.seen.len().saturating_sub(HISTORY_LIMIT);
        (1..)
            .zip(self.seen.iter().skip(surplus))
            .map(move |(k, &(at, provider, certificate))| HistoryRow {
                id,
                k,
                at: micros(at),
                provider: provider.map(ProviderKind::as_str),
                serial: &certificate.serial,
                sha256: &certificate.sha256,
                not_after: micros(certificate.not_after),
            })
    }
}

#[derive(Serialize)]
struct ExecutorRow<'a> {
    id: &'a str,
    name: Cow<'a, str>,
    provider: Option<&'static str>,
    version: Cow<'a, str>,
    labels: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
    host: HostRow<'a>,
    serial: &'a str,
    sha256: &'a str,
    not_after: i64,
    first: i64,
    last: i64,
}

/// [`HostRecord`] without its NULs.
#[derive(Serialize)]
struct HostRow<'a> {
    hostname: Cow<'a, str>,
    os: Cow<'a, str>,
    arch: Cow<'a, str>,
    kernel: Cow<'a, str>,
    cpus: u32,
    memory_bytes: u64,
}

#[derive(Serialize)]
struct HistoryRow<'a> {
    id: &'a str,
    /// Place among the rows of this executor in this batch, from 1.
    k: u32,
    at: i64,
    provider: Option<&'static str>,
    serial: &'a str,
    sha256: &'a str,
    not_after: i64,
}

#[derive(Serialize)]
struct BarRow<'a> {
    kind: &'static str,
    value: &'a str,
    at: i64,
    reason: Cow<'a, str>,
}

impl<'a> BarRow<'a> {
    fn new(
        target: &'a RevocationTarget,
        revocation: Option<&'a Revocation>,
    ) -> Result<Self, StoreError> {
        let (kind, value) = match target {
            RevocationTarget::Id(id) => ("id", id.as_str()),
            RevocationTarget::Serial(serial) => ("serial", serial.as_str()),
            RevocationTarget::Sha256(sha256) => ("sha256", sha256.as_str()),
        };
        Ok(Self {
            kind,
            value: storable(value, "revoked value")?,
            at: revocation.map_or(0, |r| micros(r.at)),
            reason: revocation.map_or(Cow::Borrowed(""), |r| clean(&r.reason)),
        })
    }
}

/// Reads one row of `executors`, its columns in the order of the table.
#[expect(clippy::type_complexity, reason = "one column each, named on the left")]
pub(super) fn executor(
    (id, name, word, version, labels, host, serial, sha256, not_after, first, last): (
        String,
        String,
        Option<String>,
        String,
        String,
        String,
        String,
        String,
        i64,
        i64,
        i64,
    ),
) -> Result<ExecutorRecord, StoreError> {
    let unreadable = |what: &str, e: &serde_json::Error| {
        StoreError::Broken(format!("{what} of executor {id} in the database: {e}"))
    };
    Ok(ExecutorRecord {
        name,
        provider: word.as_deref().and_then(provider),
        version,
        labels: serde_json::from_str(&labels).map_err(|e| unreadable("labels", &e))?,
        host: serde_json::from_str(&host).map_err(|e| unreadable("host", &e))?,
        certificate: certificate(serial, sha256, not_after)?,
        first_enrolled: instant(first)?,
        last_enrolled: instant(last)?,
        id: id.into(),
    })
}

/// Reads time, provider, serial, SHA-256 and end of validity of one row of `history`.
pub(super) fn history_entry(
    (at, word, serial, sha256, not_after): (i64, Option<String>, String, String, i64),
) -> Result<HistoryEntry, StoreError> {
    Ok(HistoryEntry {
        at: instant(at)?,
        provider: word.as_deref().and_then(provider),
        certificate: certificate(serial, sha256, not_after)?,
    })
}

/// Reads one row of `revocations`.
pub(super) fn bar(
    (kind, value, at, reason): (String, String, i64, String),
) -> Result<(RevocationTarget, Revocation), StoreError> {
    let target = match kind.as_str() {
        "id" => RevocationTarget::Id(value.into()),
        "serial" => RevocationTarget::Serial(value),
        "sha256" => RevocationTarget::Sha256(value),
        // A bar that is not understood must not be dropped: the peer would be let in.
        other => {
            return Err(StoreError::Broken(format!(
                "revocation of unknown kind {other:?} in the database"
            )));
        }
    };
    let at = instant(at)?;
    Ok((target, Revocation { at, reason }))
}

fn certificate(
    serial: String,
    sha256: String,
    not_after: i64,
) -> Result<CertificateRecord, StoreError> {
    Ok(CertificateRecord {
        serial,
        sha256,
        not_after: instant(not_after)?,
    })
}

/// Microseconds since 1970 of this machine's clock.
pub(super) fn now_us() -> i64 {
    micros(OffsetDateTime::now_utc())
}

fn micros(at: OffsetDateTime) -> i64 {
    // The years ±9999 that the type holds are within the range.
    i64::try_from(at.unix_timestamp_nanos().div_euclid(1_000)).unwrap_or(i64::MAX)
}

fn instant(micros: i64) -> Result<OffsetDateTime, StoreError> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1_000)
        .map_err(|e| StoreError::Broken(format!("time {micros} in the database: {e}")))
}

fn provider(word: &str) -> Option<ProviderKind> {
    use ProviderKind::{Dev, Exec, Files, Spiffe, Vault};
    [Dev, Files, Spiffe, Vault, Exec]
        .into_iter()
        .find(|kind| kind.as_str() == word)
}

/// PostgreSQL stores no NUL in text, and neither takes part in anything worth keeping.
fn clean(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        Cow::Owned(text.replace('\0', "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// What names something is never altered: two names could become one.
fn storable<'a>(text: &'a str, what: &str) -> Result<&'a str, StoreError> {
    if text.contains('\0') {
        return Err(StoreError::Refused(format!(
            "{what} {text:?} contains a NUL"
        )));
    }
    Ok(text)
}

fn json<T: Serialize>(rows: &[T]) -> Result<Option<String>, StoreError> {
    if rows.is_empty() {
        return Ok(None);
    }
    serde_json::to_string(rows)
        .map(Some)
        .map_err(|e| StoreError::Refused(e.to_string()))
}
