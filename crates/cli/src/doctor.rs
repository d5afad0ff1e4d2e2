//! `ah agent doctor`: the troubleshooting guide, run by itself (ER-25).
//!
//! Nothing is judged here a second time: the providers, the dialler and the verifiers that `enroll` uses do it,
//! and their errors become checks by their code. The order is that of cause and effect: what cannot be
//! judged because something else failed is skipped, so that the first failure is the one to mend.

mod clock;
mod own;
mod production;
mod remote;
mod report;
mod running;

use std::ffi::OsString;
use std::process::ExitCode;

use ah_identity_provider::Explained;

use crate::commands::enroll::remote as address_of;
use crate::commands::no_runtime;
use crate::errors;
use crate::settings::{DoctorSettings, EnrollSettings, Launch};
use clock::Peer;
use own::Own;
use production::Seen;
use remote::Visit;
use report::{Check, Report};

/// Runs every check and prints what each found.
pub fn run(launch: &Launch<DoctorSettings>, json: bool) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return errors::fail(&[no_runtime(&error)]),
    };
    let mut report = Report::new();
    report.add(settings_are_valid(launch));
    runtime.block_on(async {
        let settings = &launch.settings;
        let seen = match &settings.executor {
            Some(executor) => Some(examine(executor, &mut report).await),
            None => None,
        };
        if let Some(admin_socket) = &settings.production {
            production::report(launch, seen.as_ref(), admin_socket, &mut report).await;
        }
    });
    // A name that is still being looked up is no reason to stay.
    runtime.shutdown_background();
    finish(&report, json)
}

/// The report when the settings themselves are wrong: there is nothing else to check.
pub fn bad_settings(faults: &[Explained], json: bool) -> ExitCode {
    let mut report = Report::new();
    for fault in faults {
        let check = Check::fail("settings", fault);
        report.add(match &fault.hint {
            Some(_) => check,
            None => check.fix("correct it, then look again: ah agent enroll … --validate"),
        });
    }
    finish(&report, json)
}

/// Whether `arguments` ask for the doctor, and for JSON: for when they cannot be parsed.
pub fn asked(arguments: &[OsString]) -> Option<bool> {
    let mut words = arguments.iter().skip(1);
    let doctor = words.next()? == "agent" && words.next()? == "doctor";
    doctor.then(|| words.any(|word| word == "--json"))
}

fn finish(report: &Report, json: bool) -> ExitCode {
    // A closed pipe means that the reader has seen enough.
    let _ = report.print(json);
    ExitCode::from(u8::from(!report.is_ok()))
}

fn settings_are_valid(launch: &Launch<DoctorSettings>) -> Check {
    let file = match &launch.file {
        Some(file) => format!("with {}", file.display()),
        None => "without a settings file".to_owned(),
    };
    let Some(settings) = &launch.settings.executor else {
        return Check::pass("settings", format!("{file}: no executor is set up here"));
    };
    let servers: Vec<String> = settings.servers.iter().map(ToString::to_string).collect();
    let (name, kind) = (&settings.name, settings.identity.kind());
    Check::pass(
        "settings",
        format!(
            "{file}: name {name}, identity {kind}, access point {}",
            servers.join(", ")
        ),
    )
}

async fn examine(settings: &EnrollSettings, report: &mut Report) -> Seen {
    let published = own::obtain(settings, report).await;
    let mut visits = Vec::new();
    for server in &settings.servers {
        let visit = Visit::of(address_of(server), settings, published.as_ref()).await;
        visit.report_way(report);
        visits.push(visit);
    }
    let own = published
        .as_ref()
        .map(|published| Own::examine(&published.identity));
    let peer = peer_clock(&visits, own.as_ref());
    let wrong_clock = match (&published, &own, peer.now()) {
        (Some(published), Some(own), Some(now)) => {
            let ours = own.is_outdated() && Own::is_valid_at(&published.identity, now);
            ours || visits.iter().any(|visit| visit.is_valid_only_at(now))
        }
        _ => false,
    };
    report.add(peer.check(wrong_clock));
    match (&published, &own) {
        (Some(published), Some(own)) => own.report(&published.identity, wrong_clock, report),
        _ => {
            let judged = ["own-dates", "own-chain", "own-form"];
            for name in judged {
                if !report.has(name) {
                    report.add(Check::skip(name, "there is no identity"));
                }
            }
        }
    }
    for visit in &visits {
        visit.report_trust(wrong_clock, published.as_ref(), report);
    }
    running::report(settings, published.as_deref(), report).await;
    Seen {
        own: published,
        visits,
    }
}

/// What the first access point that told shows of its clock.
fn peer_clock(visits: &[Visit], own: Option<&Own>) -> Peer {
    let measured = visits.iter().find_map(|visit| {
        let skew = visit.skew()?;
        let access_point = visit.shown.clone();
        Some(Peer::Measured { access_point, skew })
    });
    let valid_here = own.is_some_and(|own| !own.is_outdated());
    let disagrees = visits
        .iter()
        .find(|visit| valid_here && visit.says_we_are_outdated());
    match (measured, disagrees) {
        (Some(measured), _) => measured,
        (None, Some(visit)) => Peer::Disagrees {
            access_point: visit.shown.clone(),
        },
        (None, None) => Peer::Unknown,
    }
}
