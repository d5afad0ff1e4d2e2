//! Bars 4 and 5: memory of sessions and of handshakes that never end; and of an executor.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::bench::Bench;
use super::churn::OPEN;
use super::process::LoadRun;
use super::subject::{AccessPoint, Subject};
use super::table::{Row, Sample, figure};
use crate::load::Protocol;
use crate::load::stats::Event;
use crate::procfs::Memory;

/// Bar 4: the slope between 2,000 and 8,000 idle sessions, which leaves out what a server has before its first one.
pub(crate) fn idle(bench: &mut Bench) -> Vec<Row> {
    let few = bench.effort.sessions.min(8_000) / 4;
    let subjects = [Subject::AccessPoint, Subject::H2, Subject::GrpcGo];
    let slopes = bench.interleaved(&subjects, |bench, subject| {
        let server = bench.places.start(subject)?;
        let many = 4 * few;
        let mut run = bench.load(
            "hold",
            &server,
            subject.protocol(),
            &[("most", many.to_string())],
        )?;
        let mut sizes = [0.0; 2];
        for (size, sessions) in sizes.iter_mut().zip([few, many]) {
            run.ask(sessions)?;
            let (count, _) = run.held(Duration::from_secs(60))?;
            if count < sessions {
                return Err(io::Error::other(format!(
                    "only {count} of {sessions} sessions opened"
                )));
            }
            // Idle is after the first heartbeats and whatever follows an enrollment.
            thread::sleep(Duration::from_secs(3));
            *size = Memory::of(server.pid())?.proportional as f64;
        }
        let [small, large] = sizes;
        Ok((large - small) / f64::from(many - few) / 1_024.0)
    });
    let [ours, h2, grpc_go] = slopes.as_slice() else {
        return Vec::new();
    };
    vec![
        at_most(ours, Subject::H2, h2, 1.0),
        at_most(ours, Subject::GrpcGo, grpc_go, 0.55),
    ]
}

fn at_most(
    ours: &Result<Sample, String>,
    subject: Subject,
    theirs: &Result<Sample, String>,
    factor: f64,
) -> Row {
    let what = "memory for an idle enrolled executor";
    let wanted = format!("≤ {factor} × {}", subject.name());
    match (ours, theirs) {
        (Ok(ours), Ok(theirs)) => {
            let ratio = ours.median / theirs.median;
            let (ours, theirs) = (ours.show("KiB"), theirs.show("KiB"));
            let measured = format!("{} ×: {ours} against {theirs}", figure(ratio));
            Row::new("4", what, &wanted, measured, ratio <= factor)
        }
        (Err(reason), Ok(theirs)) => {
            let reason = format!("{reason} ({} {})", subject.name(), theirs.show("KiB"));
            Row::skipped("4", what, reason)
        }
        (_, Err(reason)) => Row::skipped("4", what, reason),
    }
}

/// How long the access point waits for a handshake here.
const DEADLINE: Duration = Duration::from_secs(5);

/// Bar 5: what a stuck handshake holds, that there is a most of them, and that the deadline ends them.
pub(crate) fn stuck(bench: &mut Bench) -> Vec<Row> {
    ["silent", "hello"]
        .into_iter()
        .flat_map(|kind| {
            stuck_of(bench, kind).unwrap_or_else(|error| {
                vec![Row::skipped(
                    "5",
                    &format!("stuck handshakes ({kind})"),
                    error,
                )]
            })
        })
        .collect()
}

fn stuck_of(bench: &Bench, kind: &str) -> io::Result<Vec<Row>> {
    let sockets = bench.effort.sockets.min(2_000);
    let roomy = (2 * sockets).to_string();
    let deadline = format!("{}s", DEADLINE.as_secs());
    let options = |sockets: u32| {
        [
            ("kind", kind.to_owned()),
            ("sockets", sockets.to_string()),
            ("seconds", (DEADLINE.as_secs() + 4).to_string()),
        ]
    };
    let mut rows = Vec::new();

    // Room for all: what each of them holds.
    let server = AccessPoint::new(&bench.places)?
        .option("--max-handshakes", &roomy)
        .option("--handshake-timeout", &deadline)
        .start()?;
    // One session first: what the first handshake alone makes is no cost of a stuck one.
    drop(bench.hold(&server, Protocol::Fleet, 100)?);
    let before = Memory::of(server.pid())?.proportional;
    let run = bench.load("noise", &server, Protocol::Fleet, &options(sockets))?;
    let mut most_open = 0;
    let mut most_memory = before;
    let mut oldest = Duration::ZERO;
    let mut cut = 0;
    while let Some(event) = next_noise(&run)? {
        most_open = most_open.max(event.open);
        most_memory = most_memory.max(Memory::of(server.pid())?.proportional);
        oldest = Duration::from_micros(event.oldest_us);
        cut = event.cut;
    }
    let each = most_memory.saturating_sub(before) as f64 / most_open.max(1) as f64 / 1_024.0;
    let what = format!("memory held by a stuck handshake ({kind})");
    let measured = format!("{} KiB, {most_open} of them open", figure(each));
    rows.push(Row::new("5", &what, "≤ 16 KiB", measured, each <= 16.0));
    let what = format!("stuck handshakes reaped at the deadline of {deadline} ({kind})");
    let measured = format!(
        "{cut} of {sockets} cut, the oldest after {:.1} s",
        oldest.as_secs_f64()
    );
    let in_time = cut == u64::from(sockets) && oldest < DEADLINE + Duration::from_millis(1_500);
    rows.push(Row::new(
        "5",
        &what,
        "all, within 1.5 s of it",
        measured,
        in_time,
    ));
    drop(server);

    // The default: so many and no more.
    let server = AccessPoint::new(&bench.places)?
        .option("--handshake-timeout", &deadline)
        .start()?;
    let run = bench.load("noise", &server, Protocol::Fleet, &options(sockets))?;
    let mut most_open = 0.0_f64;
    while next_noise(&run)?.is_some() {
        // Of those that were accepted: what waits in the kernel's queue is open to its client, too.
        most_open = most_open.max(server.metric(OPEN)?);
    }
    bench_cap(&mut rows, kind, most_open);
    Ok(rows)
}

/// Sockets that have sent nothing may wait outside the cap (they have cost no arithmetic), a handshake begun may not.
fn bench_cap(rows: &mut Vec<Row>, kind: &str, most_open: f64) {
    let cap = if kind == "hello" {
        256.0
    } else {
        256.0 + 4_096.0
    };
    let what = format!("stuck handshakes at a time ({kind})");
    rows.push(Row::new(
        "5",
        &what,
        &format!("≤ {cap}"),
        most_open.to_string(),
        most_open <= cap,
    ));
}

/// The bar: resident memory of one executor process that is enrolled and idle.
pub(crate) fn executor(bench: &Bench) -> io::Result<Vec<Row>> {
    let access_point = AccessPoint::new(&bench.places)?;
    let server = access_point.start()?;
    let executor = access_point.executor(&server)?;
    let deadline = Instant::now() + Duration::from_secs(15);
    while server.metric(SESSIONS)? == 0.0 {
        if Instant::now() > deadline {
            return Err(io::Error::other("the executor did not enroll within 15 s"));
        }
        thread::sleep(Duration::from_millis(100));
    }
    // Long enough for what follows an enrollment, heartbeats among it.
    thread::sleep(Duration::from_secs(12));
    let mib = Memory::of(executor.pid())?.resident as f64 / 1_048_576.0;
    let what = "resident memory of `ah agent enroll`";
    let measured = format!("{} MiB", figure(mib));
    Ok(vec![Row::new(
        "E2",
        what,
        "≤ 12 MiB",
        measured,
        mib <= 12.0,
    )])
}

/// Gauge of the access point: live sessions.
const SESSIONS: &str = "ah_sessions";

/// A line of a noise run.
pub(crate) struct NoiseLine {
    pub(crate) open: u64,
    pub(crate) cut: u64,
    pub(crate) oldest_us: u64,
}

pub(crate) fn next_noise(run: &LoadRun) -> io::Result<Option<NoiseLine>> {
    loop {
        match run.next(Duration::from_secs(30))? {
            Some(Event::Noise {
                open,
                cut,
                oldest_us,
                ..
            }) => {
                return Ok(Some(NoiseLine {
                    open,
                    cut,
                    oldest_us,
                }));
            }
            Some(_) => {}
            None => return Ok(None),
        }
    }
}
