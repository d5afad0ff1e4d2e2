//! Bars 1 to 3, and what durable enrollments cost.

use std::io;
use std::path::PathBuf;

use super::bench::{Bench, Executors};
use super::process::{SERVER_CORE, pinned};
use super::subject::{AccessPoint, Subject};
use super::table::{Row, Sample, figure};
use crate::handshake::Cost;
use crate::load::Protocol;

/// Bar 1: executor sessions a second and core, of executors that the access point has never seen and of some that come
/// back.
pub(crate) fn sessions(bench: &mut Bench) -> Vec<Row> {
    let rates = bench.rates_of(&[
        (Subject::AccessPoint, Executors::New),
        (Subject::AccessPoint, Executors::Returning),
        (Subject::H2, Executors::Returning),
        (Subject::GrpcGo, Executors::Returning),
    ]);
    let [new, returning, h2, grpc_go] = rates.as_slice() else {
        return Vec::new();
    };
    if let Ok(new) = new {
        bench.learn_access_point_rate(new.median);
    }
    let mut rows = Vec::new();
    for (ours, who) in [(new, "new"), (returning, "returning")] {
        let what = format!("sessions of {who} executors a second and core");
        rows.push(at_least("1", &what, ours, Subject::H2, h2, 0.85));
        rows.push(at_least("1", &what, ours, Subject::GrpcGo, grpc_go, 1.5));
    }
    rows
}

/// Bar 2: the TLS accept path alone.
pub(crate) fn accept_path(bench: &mut Bench) -> Vec<Row> {
    let rates = bench.rates(&[
        Subject::Accept,
        Subject::Tcp,
        Subject::Nginx,
        Subject::Ghostunnel,
    ]);
    let [ours, tcp, nginx, ghostunnel] = rates.as_slice() else {
        return Vec::new();
    };
    let what = "TLS accept path alone, handshakes a second and core";
    vec![
        at_least("2", what, ours, Subject::Tcp, tcp, 0.95),
        at_least("2", what, ours, Subject::Nginx, nginx, 2.4),
        at_least("2", what, ours, Subject::Ghostunnel, ghostunnel, 2.0),
    ]
}

/// Bar 3: what SPIFFE validation and policy are of a handshake in memory.
pub(crate) fn validation(bench: &mut Bench) -> io::Result<Vec<Row>> {
    let what = "SPIFFE validation and policy in a handshake";
    let shares = bench.interleaved(&[()], |bench, ()| {
        let output = pinned(SERVER_CORE, std::env::current_exe()?)
            .args(["handshake", "--pki"])
            .arg(&bench.places.pki)
            .output()?;
        let cost: Cost = serde_json::from_slice(&output.stdout)?;
        Ok(100.0 * (cost.product_us - cost.bare_us) / cost.product_us)
    });
    Ok(shares
        .into_iter()
        .map(|share| match share {
            Ok(share) => {
                let met = share.median <= 5.0;
                Row::new("3", what, "≤ 5 %", share.show("%"), met)
            }
            Err(reason) => Row::skipped("3", what, reason),
        })
        .collect())
}

/// The bar: enrollments kept on disk against enrollments that a power cut would take.
pub(crate) fn durable(bench: &mut Bench) -> Vec<Row> {
    let what = "enrollments durable in SQLite against a registry in /dev/shm";
    let folders = [bench.places.disk.clone(), PathBuf::from("/dev/shm")];
    let rates = bench.interleaved(&[0, 1], |bench, kind: usize| {
        let folder = folders.get(kind).ok_or(io::ErrorKind::NotFound)?;
        let folder = tempfile::Builder::new()
            .prefix("ah-bench-")
            .tempdir_in(folder)?;
        let access_point =
            AccessPoint::new(&bench.places)?.registry(&folder.path().join("registry.db"));
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
