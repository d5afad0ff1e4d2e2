//! `ah agent fleet` (FL-1): the REST interface of an access point, through its admin socket.

mod why;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use ah_fleet::access_point::{BarView, EventFilter, ExecutorView, FleetEvent, ListFilter, Listing};
use ah_fleet::store::RevocationTarget;
use ah_identity_provider::{Code, Explained};
use time::format_description::well_known::Rfc3339;

use super::no_runtime;
use crate::admin_client::AdminClient;
use crate::args::{FleetArgs, FleetCommand};
use crate::render::{self, Color, Table, Terminal, printable};
use crate::{errors, settings};

/// Asks the access point of this machine, and shows the answer.
pub fn run(args: &FleetArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return errors::fail(&[no_runtime(&error)]),
    };
    match runtime.block_on(answer(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(explained) => {
            errors::print(&[explained]);
            ExitCode::from(1)
        }
    }
}

async fn answer(args: &FleetArgs) -> Result<(), Explained> {
    let access_point = AdminClient::new(socket(args)?);
    match &args.command {
        FleetCommand::List(list) => {
            let filter = ListFilter {
                labels: Some(joined(&list.label)).filter(|labels| !labels.is_empty()),
                live: list.live.then_some(true),
                revoked: list.revoked.then_some(true),
            };
            printed(show_listing(&access_point.list(&filter).await?, args.json))
        }
        FleetCommand::Show(who) => printed(show_executor(
            &access_point.show(&who.who).await?,
            args.json,
        )),
        FleetCommand::Why(asked) => {
            let why = access_point.why(&asked.who, asked.limit.into()).await?;
            printed(why::show(&why, args.json))
        }
        FleetCommand::Revoke(revoke) => {
            let reason = revoke.reason.as_deref().unwrap_or_default();
            let target = access_point.revoke(&revoke.who, reason).await?;
            printed(show_target("revoked", &target, args.json))
        }
        FleetCommand::Reinstate(who) => {
            let target = access_point.reinstate(&who.who).await?;
            printed(show_target("reinstated", &target, args.json))
        }
        FleetCommand::Disconnect(who) => {
            let id = access_point.disconnect(&who.who).await?;
            if args.json {
                return printed(render::print_json(&serde_json::json!({ "id": id })));
            }
            println!("disconnected {}", printable(&id));
            Ok(())
        }
        FleetCommand::Watch(watched) => {
            watch(&access_point, joined(&watched.label), args.json).await
        }
    }
}

fn socket(args: &FleetArgs) -> Result<PathBuf, Explained> {
    if let Some(socket) = &args.admin_socket {
        return Ok(socket.clone());
    }
    let paths = settings::paths();
    let run = paths.run().map_err(|error| {
        Explained::new(Code::Usage, error.to_string()).hint("give --admin-socket")
    })?;
    Ok(run.join("access-point.sock"))
}

fn printed(shown: io::Result<()>) -> Result<(), Explained> {
    match shown {
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Explained::new(Code::Other, "cannot print the answer").cause(error)),
        Ok(()) => Ok(()),
    }
}

fn joined(labels: &[settings::value::Label]) -> String {
    let labels = labels
        .iter()
        .map(|label| format!("{}={}", label.key, label.value));
    labels.collect::<Vec<_>>().join(",")
}

fn show_listing(listing: &Listing, json: bool) -> io::Result<()> {
    if let Some(error) = &listing.store_error {
        eprintln!(
            "warning: the registry's store does not answer ({error}); only live executors are listed"
        );
    }
    if json {
        return render::print_json(listing);
    }
    let now = SystemTime::now();
    let mut table = Table::new([
        "NAME",
        "ID",
        "STATE",
        "PEER",
        "LAST HEARD",
        "CERT EXPIRES",
        "PROVIDER",
    ]);
    for view in &listing.executors {
        let live = view.live.as_ref();
        table.row([
            view.name.clone(),
            view.id.clone(),
            view.state().to_owned(),
            live.map(|live| live.peer.to_string()).unwrap_or_default(),
            live.map(|live| {
                render::relative(
                    now,
                    now - std::time::Duration::from_millis(live.last_heard_ms),
                )
            })
            .unwrap_or_else(|| render::relative(now, view.last_enrolled.into())),
            render::relative(now, view.certificate.not_after.into()),
            view.provider
                .map(|provider| provider.to_string())
                .unwrap_or_default(),
        ]);
    }
    print!("{}", table.fitted(Terminal::stdout()));
    if !listing.bars.is_empty() {
        println!(
            "\n{}",
            barred(&listing.bars, now)
                .fitted(Terminal::stdout())
                .trim_end()
        );
    }
    Ok(())
}

/// What is barred, of whatever kind: a serial number may be on no executor of the list.
fn barred(bars: &[BarView], now: SystemTime) -> Table<4> {
    let mut table = Table::new(["BARRED", "WHAT", "SINCE", "REASON"]);
    for BarView { target, revocation } in bars {
        let (kind, value) = match target {
            RevocationTarget::Id(id) => ("executor", id.as_str()),
            RevocationTarget::Serial(serial) => ("serial", serial.as_str()),
            RevocationTarget::Sha256(sha256) => ("SHA-256", sha256.as_str()),
        };
        table.row([
            kind.to_owned(),
            value.to_owned(),
            render::relative(now, revocation.at.into()),
            revocation.reason.clone(),
        ]);
    }
    table
}

fn show_executor(view: &ExecutorView, json: bool) -> io::Result<()> {
    if json {
        return render::print_json(view);
    }
    let terminal = Terminal::stdout();
    let now = SystemTime::now();
    let moment = |time: time::OffsetDateTime| {
        let text = time.format(&Rfc3339).unwrap_or_else(|_| time.to_string());
        format!("{text} ({})", render::relative(now, time.into()))
    };
    let color = match view.state() {
        "enrolled" => Color::Green,
        "revoked" => Color::Red,
        _ => Color::Yellow,
    };
    let mut rows = vec![
        ("id", printable(&view.id)),
        ("name", printable(&view.name)),
        ("state", terminal.paint(color, view.state())),
    ];
    if let Some(live) = &view.live {
        rows.push(("peer", live.peer.to_string()));
        rows.push(("session", live.session_id.clone()));
        rows.push(("since", moment(live.since)));
        rows.push(("last heard", format!("{} ms ago", live.last_heard_ms)));
        if let Some(us) = live.round_trip_us {
            rows.push(("round trip", format!("{us} µs")));
        }
    }
    if let Some(revocation) = &view.revocation {
        rows.push(("revoked", moment(revocation.at)));
        if !revocation.reason.is_empty() {
            rows.push(("reason", printable(&revocation.reason)));
        }
    }
    rows.extend(view.first_enrolled.map(|at| ("first enrolled", moment(at))));
    rows.push(("last enrolled", moment(view.last_enrolled)));
    rows.push(("cert serial", view.certificate.serial.clone()));
    rows.push(("cert SHA-256", view.certificate.sha256.clone()));
    rows.push(("cert expires", moment(view.certificate.not_after)));
    rows.extend(
        view.provider
            .map(|provider| ("provider", provider.to_string())),
    );
    rows.push(("version", printable(&view.version)));
    for (key, value) in &view.labels {
        rows.push(("label", printable(&format!("{key}={value}"))));
    }
    let host = &view.host;
    rows.push((
        "host",
        printable(&format!(
            "{} ({} {}, {}, {} cpus, {} MiB)",
            host.hostname,
            host.os,
            host.arch,
            host.kernel,
            host.cpus,
            host.memory_bytes >> 20
        )),
    ));
    for past in &view.history {
        rows.push((
            "history",
            format!(
                "{} {} certificate {}",
                moment(past.at),
                past.provider
                    .map(|provider| provider.to_string())
                    .unwrap_or_default(),
                past.certificate.serial
            ),
        ));
    }
    print!("{}", render::aligned(&rows));
    Ok(())
}

fn show_target(done: &str, target: &RevocationTarget, json: bool) -> io::Result<()> {
    if json {
        return render::print_json(target);
    }
    let what = match target {
        RevocationTarget::Id(id) => format!("executor {id}"),
        RevocationTarget::Serial(serial) => format!("certificate with serial {serial}"),
        RevocationTarget::Sha256(sha256) => format!("certificate with SHA-256 {sha256}"),
    };
    println!("{done} {}", printable(&what));
    Ok(())
}

/// Prints events as they come, until the access point goes or the reader does.
async fn watch(access_point: &AdminClient, labels: String, json: bool) -> Result<(), Explained> {
    let filter = EventFilter {
        labels: Some(labels).filter(|labels| !labels.is_empty()),
    };
    let mut events = access_point.events(&filter).await?;
    while let Some(line) = events.next_line().await? {
        printed(show_event(&line, json))?;
    }
    Ok(())
}

fn show_event(line: &str, json: bool) -> io::Result<()> {
    use std::io::Write;
    let mut out = io::stdout().lock();
    let event = serde_json::from_str::<FleetEvent>(line);
    match event {
        Ok(event) if !json => {
            let at = event.at.format(&Rfc3339).unwrap_or_default();
            let name = if event.name.is_empty() {
                String::new()
            } else {
                format!(" ({})", event.name)
            };
            let reason = event
                .reason
                .map(|reason| format!(": {reason}"))
                .unwrap_or_default();
            let text = format!("{at} {} {}{name}{reason}", event.event.as_str(), event.id);
            writeln!(out, "{}", printable(&text))?;
        }
        _ => writeln!(out, "{line}")?,
    }
    out.flush()
}
