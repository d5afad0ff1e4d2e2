//! Bars 1 and 2, and what durable enrollments cost.

use super::bench::Bench;
use super::subject::{AccessPoint, Subject};
use super::table::{Row, Sample, figure};
use crate::load::Protocol;

/// Bar 1: executor sessions a second and core.
pub(crate) fn sessions(bench: &mut Bench) -> Vec<Row> {
    let rates = bench.rates(&[Subject::AccessPoint, Subject::H2, Subject::GrpcGo]);
    let [ours, h2, grpc_go] = rates.as_slice() else {
        return Vec::new();
    };
    if let Ok(ours) = ours {
        bench.learn_access_point_rate(ours.median);
    }
    let what = "executor sessions a second and core";
    vec![
        at_least("1", what, ours, Subject::H2, h2, 0.85),
        at_least("1", what, ours, Subject::GrpcGo, grpc_go, 1.5),
    ]
}

/// The bare servers and peers of bar 2 among themselves, and the accept path against them.
pub(crate) fn accept_path(bench: &mut Bench) -> Vec<Row> {
    let subjects = [Subject::Tcp, Subject::Nginx, Subject::Ghostunnel];
    let rates = bench.rates(&subjects);
    let mut rows = Vec::new();
    for (subject, rate) in subjects.iter().zip(&rates) {
        match rate {
            Ok(rate) => bench.notes.push(format!(
                "{}: {}",
                subject.name(),
                rate.show("full handshakes a second and core")
            )),
            Err(reason) => rows.push(Row::skipped("2", subject.name(), reason)),
        }
    }
    rows
}

/// The bar: enrollments kept on disk against enrollments kept in memory.
pub(crate) fn durable(bench: &mut Bench) -> Vec<Row> {
    let what = "enrollments durable in SQLite against in memory";
    let rates = bench.interleaved(&[true, false], |bench, on_disk| {
        let mut access_point = AccessPoint::new(&bench.places)?;
        if !on_disk {
            access_point = access_point.database("sqlite::memory:");
        }
        let server = access_point.start()?;
        let report = bench.rate(&server, Protocol::Fleet)?;
        // What a disk makes the server wait for is no CPU time: this one counts by the clock.
        Ok(report.completed as f64 / report.seconds)
    });
    match rates.as_slice() {
        [Ok(disk), Ok(memory)] => {
            let ratio = disk.median / memory.median;
            let measured = format!(
                "{} of it: {} against {}",
                figure(ratio),
                disk.show("/s"),
                memory.show("/s")
            );
            vec![Row::new("E1", what, "≥ 0.90", measured, ratio >= 0.9)]
        }
        [Err(reason), _] | [_, Err(reason)] => vec![Row::skipped("E1", what, reason)],
        _ => Vec::new(),
    }
}

fn at_least(
    bar: &str,
    what: &str,
    ours: &Result<Sample, String>,
    subject: Subject,
    theirs: &Result<Sample, String>,
    factor: f64,
) -> Row {
    let wanted = format!("≥ {factor} × {}", subject.name());
    match (ours, theirs) {
        (Ok(ours), Ok(theirs)) => {
            let ratio = ours.median / theirs.median;
            let measured = format!(
                "{} ×: {} against {}",
                figure(ratio),
                ours.show("/s"),
                theirs.show("/s")
            );
            Row::new(bar, what, &wanted, measured, ratio >= factor)
        }
        (Err(reason), Ok(theirs)) => {
            let reason = format!("{reason} ({} {})", subject.name(), theirs.show("/s"));
            Row::skipped(bar, what, reason)
        }
        (_, Err(reason)) => Row::skipped(bar, what, reason),
    }
}
