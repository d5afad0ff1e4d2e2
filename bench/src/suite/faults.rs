//! Bars 7 to 10: revocation, restart, storms and noise.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::bench::Bench;
use super::http;
use super::process::{LoadRun, Server};
use super::subject::AccessPoint;
use super::table::{Row, figure};
use crate::load::Protocol;
use crate::load::stats::{Event, Report, unix_us};
use crate::pki;
use crate::procfs::{Memory, cpu_time};

/// Bar 7: how soon after an operator's word a session is closed.
pub(crate) fn revocation(bench: &Bench) -> io::Result<Vec<Row>> {
    let access_point = AccessPoint::new(&bench.places)?;
    let server = access_point.start()?;
    let sessions = bench.effort.sessions;
    let run = bench.hold(&server, Protocol::Fleet, sessions)?;
    let revoked = (sessions / 10).max(1);
    let mut asked = Vec::new();
    for number in 0..revoked {
        let id = http::segment(&pki::executor_id(number * (sessions / revoked)));
        let at = unix_us();
        let path = format!("/api/v1/executors/{id}/revoke");
        let answer = http::post_unix(
            &access_point.admin_socket(),
            &path,
            r#"{"reason":"benchmark"}"#,
        )?;
        if !(200..300).contains(&answer.status) {
            return Err(io::Error::other(format!(
                "revoke answered {}: {}",
                answer.status, answer.body
            )));
        }
        asked.push((number * (sessions / revoked), at));
    }
    thread::sleep(Duration::from_secs(3));
    let (_, events) = run.finish(Duration::from_secs(30))?;
    let mut took = Vec::new();
    let mut others = 0;
    for event in &events {
        if let Event::Closed {
            executor, unix_us, ..
        } = event
        {
            match asked.iter().find(|(number, _)| number == executor) {
                Some((_, at)) => took.push(unix_us.saturating_sub(*at) as f64 / 1_000.0),
                None => others += 1,
            }
        }
    }
    let closed = took.len();
    took.sort_by(f64::total_cmp);
    let p99 = took
        .get(closed.saturating_sub(1) * 99 / 100)
        .copied()
        .unwrap_or(f64::INFINITY);
    let measured = format!(
        "p99 {} ms, {closed} of {revoked} closed, {others} others closed, {sessions} sessions",
        figure(p99)
    );
    let met = p99 <= 1_000.0 && closed == asked.len() && others == 0;
    Ok(vec![Row::new(
        "7",
        "revoked → session closed",
        "p99 ≤ 1 s",
        measured,
        met,
    )])
}

/// Back-off window of executors in bar 8.
const WINDOW: Duration = Duration::from_secs(5);

/// Bar 8: killed with all sessions open, started again a second later.
pub(crate) fn restart(bench: &mut Bench) -> io::Result<Vec<Row>> {
    let rate = bench.access_point_rate()?;
    let sessions = bench.effort.sessions;
    let access_point = AccessPoint::new(&bench.places)?;
    let server = access_point.start()?;
    let access_point = access_point.listen(server.address);
    let run = storm(bench, &server, "polite")?;
    run.held(Duration::from_secs(60))?;
    drop(server);
    thread::sleep(Duration::from_secs(1));
    let started = unix_us();
    let _server = access_point.start()?;
    let (_, done) = run.held(Duration::from_secs(100))?;
    let took = done.saturating_sub(started) as f64 / 1e6;
    let ideal = WINDOW.as_secs_f64().max(f64::from(sessions) / rate);
    let most = 1.3 * ideal + 1.0;
    Ok(vec![Row::new(
        "8",
        &format!("{sessions} sessions back after a kill and one second"),
        &format!("≤ {} s", figure(most)),
        format!("{} s", figure(took)),
        took <= most,
    )])
}

/// Bar 9: clients that give up after a second and are back at once.
pub(crate) fn hostile(bench: &mut Bench) -> io::Result<Vec<Row>> {
    let rate = bench.access_point_rate()?;
    let sessions = bench.effort.sessions;
    let ideal = f64::from(sessions) / rate;
    let server = AccessPoint::new(&bench.places)?.start()?;
    let before = cpu_time(server.pid())?;
    let run = storm(bench, &server, "hostile")?;
    // Making the clients' certificates is no part of the storm.
    let Some(Event::Begun { .. }) = run.next(Duration::from_secs(60))? else {
        return Err(io::Error::other("the storm did not begin"));
    };
    let started = Instant::now();
    let what = format!("hostile storm of {sessions} clients");
    let wanted = format!("≤ {} s", figure(3.0 * ideal));
    let held = run.held(Duration::from_secs(60));
    let took = started.elapsed().as_secs_f64();
    let used = cpu_time(server.pid())?.saturating_sub(before).as_secs_f64();
    if held.is_err() {
        let measured = format!("not after {} s", figure(took));
        return Ok(vec![Row::new("9", &what, &wanted, measured, false)]);
    }
    let useful = ideal / used;
    Ok(vec![
        Row::new(
            "9",
            &what,
            &wanted,
            format!("{} s", figure(took)),
            took <= 3.0 * ideal,
        ),
        Row::new(
            "9",
            &format!("{what}: CPU spent on handshakes that complete"),
            "≥ 90 %",
            format!("{} %", figure(100.0 * useful)),
            useful >= 0.9,
        ),
    ])
}

fn storm(bench: &Bench, server: &Server, temper: &str) -> io::Result<LoadRun> {
    let options = [
        ("temper", temper.to_owned()),
        ("executors", bench.effort.sessions.to_string()),
        ("window", WINDOW.as_secs_f64().to_string()),
        ("seconds", "240".to_owned()),
    ];
    bench.load("storm", server, Protocol::Fleet, &options)
}

/// Visits of an executor that an access point remembers.
const VISITS_KEPT: usize = 3;

/// Bar 10: sockets that send nothing, garbage or too little, while others enroll.
pub(crate) fn noise(bench: &Bench) -> io::Result<Vec<Row>> {
    let sockets = bench.effort.sockets;
    let server = AccessPoint::new(&bench.places)?.start()?;
    // The rounds before bring the process to its working size: what is kept of an executor grows until its third visit.
    for _ in 0..VISITS_KEPT {
        enroll_at_leisure(bench, &server)?;
    }
    let quiet = enroll_at_leisure(bench, &server)?;
    let before = Memory::of(server.pid())?.proportional as f64;
    let options = [
        ("kind", "mixed".to_owned()),
        ("sockets", sockets.to_string()),
        ("seconds", "120".to_owned()),
    ];
    let noise = bench.load("noise", &server, Protocol::Fleet, &options)?;
    thread::sleep(Duration::from_secs(3));
    let disturbed = enroll_at_leisure(bench, &server)?;
    drop(noise);
    thread::sleep(Duration::from_secs(3));
    let after = Memory::of(server.pid())?.proportional as f64;
    let ratio = disturbed.p99_us as f64 / quiet.p99_us.max(1) as f64;
    let growth = 100.0 * (after - before) / before;
    let p99 = format!(
        "{} ×: {} ms against {} ms, {} of {} failed",
        figure(ratio),
        figure(disturbed.p99_us as f64 / 1_000.0),
        figure(quiet.p99_us as f64 / 1_000.0),
        disturbed.failed,
        disturbed.failed + disturbed.completed,
    );
    let what = format!("{sockets} silent, garbage and slow sockets");
    Ok(vec![
        Row::new(
            "10",
            &format!("{what}: others' p99"),
            "≤ 2 × quiet, none failed",
            p99,
            ratio <= 2.0 && disturbed.failed == 0,
        ),
        Row::new(
            "10",
            &format!("{what}: memory afterwards"),
            "within 5 %",
            format!("{} %", figure(growth)),
            growth <= 5.0,
        ),
    ])
}

fn enroll_at_leisure(bench: &Bench, server: &Server) -> io::Result<Report> {
    let options = [
        ("per-second", "200".to_owned()),
        ("seconds", "10".to_owned()),
    ];
    let run = bench.load("open", server, Protocol::Fleet, &options)?;
    Ok(run.finish(Duration::from_secs(60))?.0)
}
