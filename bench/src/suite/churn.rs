//! Bar 17: an hour of executors that come and go.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::bench::Bench;
use super::process::Server;
use super::subject::AccessPoint;
use super::table::{Row, figure};
use crate::load::Protocol;
use crate::procfs::Size;

/// Counters of the access point that must add up.
const ACCEPTED: &str = "ah_connections_accepted_total";
const CLOSED: &str = "ah_connections_closed_total";
pub(super) const OPEN: &str = "ah_connections_open";

/// Half of bar 1's rate for `churn`, or the rate that was asked for; the end is compared with minute five (or a twelfth of
/// a shorter run).
pub(crate) fn churn(bench: &mut Bench) -> io::Result<Vec<Row>> {
    let rate = match bench.effort.churn_rate {
        Some(rate) => rate,
        None => bench.access_point_rate()? / 2.0,
    };
    let length = bench.effort.churn;
    let server = AccessPoint::new(&bench.places)?.start()?;
    let options = [
        ("per-second", rate.to_string()),
        ("seconds", (length.as_secs_f64() + 90.0).to_string()),
    ];
    let run = bench.load("open", &server, Protocol::Fleet, &options)?;
    let begun = Instant::now();
    thread::sleep(Duration::from_secs(300).min(length / 12));
    let under_way = || server.metric(OPEN);
    let early = Size::of(server.pid(), length, under_way)?;
    thread::sleep((begun + length).saturating_duration_since(Instant::now()));
    let late = Size::of(server.pid(), length, under_way)?;
    let (report, _) = run.finish(Duration::from_secs(120))?;
    thread::sleep(Duration::from_secs(2));

    let change = |early: f64, late: f64| 100.0 * (late - early) / early;
    let memory = change(early.memory, late.memory);
    let fds = change(early.descriptors, late.descriptors);
    let threads = change(early.threads, late.threads);
    let what = format!("churn of {} at {}/s", short(length), figure(rate));
    let measured = format!(
        "memory {} %, descriptors {} %, threads {} %, {} sessions, {} failed",
        figure(memory),
        figure(fds),
        figure(threads),
        report.completed,
        report.failed
    );
    let flat = [memory, fds, threads].iter().all(|by| by.abs() <= 2.0) && report.failed == 0;
    let mut rows = vec![Row::new("17", &what, "within 2 %", measured, flat)];
    rows.push(
        books(&server)
            .unwrap_or_else(|error| Row::skipped("17", "accepted = closed + open", error)),
    );
    Ok(rows)
}

fn books(server: &Server) -> io::Result<Row> {
    let (accepted, closed, open) = (
        server.metric(ACCEPTED)?,
        server.metric(CLOSED)?,
        server.metric(OPEN)?,
    );
    let measured = format!("{accepted} = {closed} + {open}");
    let balance = accepted - closed - open;
    Ok(Row::new(
        "17",
        "accepted = closed + open",
        "equal",
        measured,
        balance == 0.0,
    ))
}

fn short(time: Duration) -> String {
    format!("{} s", time.as_secs())
}
