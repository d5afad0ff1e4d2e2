//! Bar 6: rotation, from each provider.

use std::io;
use std::path::Path;
use std::time::Duration;

use ah_testkit::workload_api::{Answer, WorkloadApi};
use clap::ValueEnum;

use super::bench::Bench;
use super::process::{LoadRun, Server};
use super::subject::AccessPoint;
use super::table::{Row, Sample};
use super::vault::Vault;
use crate::load::Protocol;
use crate::load::stats::Event;
use crate::pki::Authority;

/// Where the certificates of a rotation come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Origin {
    /// Files, which the access point watches.
    Files,
    /// The stream of a SPIFFE Workload API.
    Stream,
    /// A command, which HUP has run again.
    Exec,
    /// An OpenBao, which HUP has asked again.
    Vault,
    /// The development CA, which HUP has asked again.
    Dev,
}

/// Bar 6: the server's certificate replaced under load, in files, by a Workload API, and at a HUP by a command, a Vault and
/// the development CA.
pub(crate) fn rotation(bench: &Bench) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for origin in &bench.effort.rotations {
        rows.extend(rotation_of(bench, *origin)?);
    }
    Ok(rows)
}

fn rotation_of(bench: &Bench, origin: Origin) -> io::Result<Vec<Row>> {
    let access_point = AccessPoint::new(&bench.places)?;
    match origin {
        Origin::Files => rotation_in_files(bench, access_point, "files", "false"),
        Origin::Stream => rotation_from_a_stream(bench, access_point),
        Origin::Exec => rotation_in_files(bench, access_point.exec(), "a command", "true"),
        Origin::Vault => match Vault::start(&bench.places.files())? {
            Some(vault) => {
                let access_point = access_point.vault(vault.role());
                rotation_at_an_issuer(bench, access_point, "Vault", &bench.places.files().ca())
            }
            None => Ok(vec![Row::skipped(
                "6",
                "rotations from Vault",
                "OpenBao is not in target/venv",
            )]),
        },
        Origin::Dev => {
            let access_point = access_point.dev();
            let ca = access_point.dev_ca();
            rotation_at_an_issuer(bench, access_point, "the development CA", &ca)
        }
    }
}

/// Has the access point ask for a certificate at each HUP. The swap is that moment, so the time that the issuer takes counts.
fn rotation_at_an_issuer(
    bench: &Bench,
    access_point: AccessPoint,
    source: &str,
    ca: &Path,
) -> io::Result<Vec<Row>> {
    let server = access_point.start()?;
    let load = [
        ("swaps", bench.effort.swaps.to_string()),
        ("hup", "true".to_owned()),
        ("issued", "true".to_owned()),
        ("server-ca", ca.display().to_string()),
    ];
    let run = bench.load("rotate", &server, Protocol::Fleet, &load)?;
    rotation_rows(bench, &server, run, source, 300.0)
}

/// Replaces files, which the access point watches or, told by `hup`, has a command print.
fn rotation_in_files(
    bench: &Bench,
    access_point: AccessPoint,
    source: &str,
    hup: &str,
) -> io::Result<Vec<Row>> {
    let server = access_point.start()?;
    let load = [
        ("swaps", bench.effort.swaps.to_string()),
        ("hup", hup.to_owned()),
    ];
    let run = bench.load("rotate", &server, Protocol::Fleet, &load)?;
    let rows = rotation_rows(bench, &server, run, source, 300.0)?;
    // The next server shall not start from a pair that a failed run left half replaced.
    Authority::open(&bench.places.files())?
        .server()?
        .install(&bench.places.files())?;
    Ok(rows)
}

/// The access point starts with a Workload API of this process. The load brings its own to the same path, and the access
/// point finds it there when the first is gone.
fn rotation_from_a_stream(bench: &Bench, access_point: AccessPoint) -> io::Result<Vec<Row>> {
    let socket = bench.places.scratch.join("workload-api.sock");
    let authority = Authority::open(&bench.places.files())?;
    let first = Answer::Set(authority.server()?.svids(&authority));
    let mut api = WorkloadApi::unix(&socket, first);
    let server = access_point.workload_api(&socket).start()?;
    let load = [
        ("swaps", bench.effort.swaps.to_string()),
        ("workload-api", socket.display().to_string()),
    ];
    let run = bench.load("rotate", &server, Protocol::Fleet, &load)?;
    api.kill();
    rotation_rows(bench, &server, run, "a stream", 50.0)
}

/// The rows of a run whose certificates come from `source`, where the bar is `bar` milliseconds after a swap.
fn rotation_rows(
    bench: &Bench,
    server: &Server,
    run: LoadRun,
    source: &str,
    bar: f64,
) -> io::Result<Vec<Row>> {
    let swaps = bench.effort.swaps;
    let seconds = 60 + u64::try_from(swaps).unwrap_or(100);
    let (report, events) = run.finish(Duration::from_secs(seconds))?;
    let late = |event: &Event| match event {
        Event::Swapped { late_us, .. } => Some(*late_us as f64 / 1_000.0),
        _ => None,
    };
    let late = Sample::of(events.iter().filter_map(late).collect())
        .ok_or_else(|| io::Error::other("no swap was seen"))?;
    let in_process = after_publication(server, &events);
    let dropped = events
        .iter()
        .filter(|event| matches!(event, Event::Closed { .. }))
        .count();
    let what = format!("{swaps} rotations from {source} under load");
    let handshakes = format!(
        "{} of {} handshakes failed, {dropped} sessions dropped",
        report.failed,
        report.failed + report.completed
    );
    Ok(vec![
        match in_process {
            Some(late) => Row::new(
                "6",
                &format!("{what}: last handshake with the old certificate"),
                "≤ 10 ms after the identity is in the process",
                late.show("ms"),
                late.most <= 10.0,
            ),
            None => Row::skipped("6", &what, "the access point logged no rotation"),
        },
        Row::new(
            "6",
            &format!("{what}: last handshake with the old certificate"),
            &format!("≤ {bar:.0} ms after the swap"),
            late.show("ms"),
            late.most <= bar,
        ),
        Row::new(
            "6",
            &what,
            "none failed, none dropped",
            handshakes,
            report.failed == 0 && dropped == 0,
        ),
    ])
}

/// How long after the access point's own word of a rotation the last handshake began that still got the old certificate,
/// in milliseconds; 0 when there was none. The word is read from a pipe, so it comes late rather than early.
fn after_publication(server: &Server, events: &[Event]) -> Option<Sample> {
    let log = server.log();
    let rotated: Vec<u64> = log
        .filter(|line| line.text.contains("rotated"))
        .map(|line| line.unix_us)
        .collect();
    let late = events.iter().filter_map(|event| match event {
        Event::Swapped {
            unix_us, late_us, ..
        } => {
            let published = rotated.iter().find(|at| *at >= unix_us)?;
            Some((unix_us + late_us).saturating_sub(*published) as f64 / 1_000.0)
        }
        _ => None,
    });
    Sample::of(late.collect())
}
