//! `ah agent status` (ST-1 to ST-3).

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use ah_fleet::executor::{CertificateStatus, Status, read_status};
use ah_identity_provider::{CertificateFacts, Code, Explained};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::no_runtime;
use crate::args::StatusArgs;
use crate::render::{self, Color, Terminal};
use crate::settings::value::default_status_socket;
use crate::{errors, settings};

/// No such executor process (ST-3).
const NO_PROCESS: u8 = 3;
/// How often `--watch` looks.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Shows how the executor of this machine is doing.
pub fn run(args: &StatusArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return errors::fail(&[no_runtime(&error)]),
    };
    runtime.block_on(async {
        let socket = match socket(args) {
            Ok(socket) => socket,
            Err(explained) => {
                errors::print(&[explained]);
                return ExitCode::from(NO_PROCESS);
            }
        };
        if args.watch {
            watch(args, &socket).await
        } else {
            once(args, &socket).await
        }
    })
}

async fn once(args: &StatusArgs, socket: &Path) -> ExitCode {
    match read_status(socket).await {
        Ok(status) => {
            let shown = show(args, &status);
            if let Err(error) = shown {
                return errors::fail(&[
                    Explained::new(Code::Other, "cannot print the status").cause(error)
                ]);
            }
            exit_code(&status)
        }
        Err(error) => {
            let (explained, code) = unreachable(socket, &error);
            errors::print(&[explained]);
            code
        }
    }
}

async fn watch(args: &StatusArgs, socket: &Path) -> ExitCode {
    let terminal = Terminal::stdout();
    let mut code = ExitCode::from(NO_PROCESS);
    loop {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return code,
            read = read_status(socket) => {
                if terminal.width.is_some() {
                    // Home, and clear what an earlier, longer picture left.
                    print!("\u{1b}[H\u{1b}[2J");
                }
                match read {
                    Ok(status) => {
                        if show(args, &status).is_err() {
                            return code;
                        }
                        code = exit_code(&status);
                    }
                    Err(error) => {
                        let (explained, failed) = unreachable(socket, &error);
                        errors::print(&[explained]);
                        code = failed;
                    }
                }
            }
        }
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return code,
            () = tokio::time::sleep(WATCH_INTERVAL) => {}
        }
    }
}

fn exit_code(status: &Status) -> ExitCode {
    ExitCode::from(u8::from(!status.enrolled))
}

/// Which socket to ask: the one given, the one of `--name`, or the only one there is.
fn socket(args: &StatusArgs) -> Result<PathBuf, Explained> {
    if let Some(path) = &args.status_socket {
        return Ok(path.clone());
    }
    let paths = settings::paths();
    let run = paths.run().map_err(|error| {
        Explained::new(Code::Usage, error.to_string()).hint("give --status-socket")
    })?;
    if let Some(name) = &args.name {
        return Ok(default_status_socket(run, name));
    }
    let mut sockets = executors(run);
    if sockets.len() > 1 {
        let host = gethostname::gethostname().to_string_lossy().into_owned();
        let named_like_the_host = host
            .parse()
            .ok()
            .map(|name| default_status_socket(run, &name));
        match named_like_the_host.filter(|socket| sockets.contains(socket)) {
            Some(socket) => return Ok(socket),
            None => {
                let names = sockets.iter().filter_map(|socket| name_of(socket));
                return Err(
                    Explained::new(Code::Usage, "several executors run on this machine")
                        .cause(names.collect::<Vec<_>>().join(", "))
                        .hint("say which with --name"),
                );
            }
        }
    }
    sockets.pop().ok_or_else(|| {
        Explained::new(Code::Other, "no executor is running on this machine")
            .cause(format!("there is no executor-*.sock in {}", run.display()))
            .hint(
                "start one with `ah agent enroll`, or look with its user, or give --status-socket",
            )
    })
}

fn executors(run: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(run).into_iter().flatten().flatten();
    let mut sockets = entries
        .map(|entry| entry.path())
        .filter(|path| name_of(path).is_some())
        .collect::<Vec<_>>();
    sockets.sort();
    // A process that was killed leaves its socket behind; it is no executor any more.
    sockets.retain(|path| {
        !matches!(std::os::unix::net::UnixStream::connect(path), Err(error) if error.kind() == ErrorKind::ConnectionRefused)
    });
    sockets
}

fn name_of(socket: &Path) -> Option<&str> {
    socket
        .file_name()?
        .to_str()?
        .strip_prefix("executor-")?
        .strip_suffix(".sock")
}

fn unreachable(socket: &Path, error: &io::Error) -> (Explained, ExitCode) {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => (
            Explained::new(
                Code::Other,
                format!(
                    "no such executor process: nobody answers on {}",
                    socket.display()
                ),
            )
            .cause(error)
            .hint("check the name; the executor may have stopped: journalctl -u ah-executor"),
            ExitCode::from(NO_PROCESS),
        ),
        ErrorKind::PermissionDenied => (
            Explained::new(
                Code::PermissionDenied,
                format!("permission denied reading {}", socket.display()),
            )
            .hint("ask as the executor's user or as root"),
            ExitCode::from(1),
        ),
        _ => (
            Explained::new(
                Code::Other,
                format!("cannot read the status from {}", socket.display()),
            )
            .cause(error)
            .hint("the process may be of another version, or hang: see its log"),
            ExitCode::from(1),
        ),
    }
}

fn show(args: &StatusArgs, status: &Status) -> io::Result<()> {
    match (&status.certificate, args.show_cert) {
        (_, _) if args.json => render::print_json(status),
        (Some(certificate), true) if args.pem => {
            print!("{}", certificate.pem);
            Ok(())
        }
        (Some(certificate), true) => {
            print!("{}", certificate_text(certificate));
            Ok(())
        }
        (None, true) => {
            println!("no certificate yet");
            Ok(())
        }
        (_, false) => {
            print!("{}", status_text(status, Terminal::stdout()));
            Ok(())
        }
    }
}

fn status_text(status: &Status, terminal: Terminal) -> String {
    let now = SystemTime::now();
    let ago = |time: &OffsetDateTime| render::relative(now, (*time).into());
    let mut rows = Vec::new();
    let state = match (status.enrolled, &status.why_not) {
        (true, _) => terminal.paint(Color::Green, "enrolled"),
        (false, Some(why)) => terminal.paint(Color::Red, &format!("not enrolled: {why}")),
        (false, None) => terminal.paint(Color::Red, "not enrolled"),
    };
    rows.push(("status", state));
    rows.push(("name", status.name.clone()));
    push(&mut rows, "executor id", status.executor_id.clone());
    let address = status
        .access_point_address
        .as_ref()
        .map(|address| format!(" ({address})"));
    let target = status
        .access_point
        .as_ref()
        .map(|target| format!("{target}{}", address.unwrap_or_default()));
    push(&mut rows, "access point", target);
    push(&mut rows, "server id", status.access_point_id.clone());
    rows.push(("provider", status.provider.to_string()));
    push(
        &mut rows,
        "since",
        status
            .since
            .as_ref()
            .map(|since| format!("{} ({})", rfc3339(*since), ago(since))),
    );
    push(
        &mut rows,
        "next attempt",
        status.next_attempt.as_ref().map(ago),
    );
    if let Some(beats) = &status.heartbeats {
        let last = beats
            .last
            .as_ref()
            .map_or_else(|| "none yet".to_owned(), ago);
        let trip = beats.round_trip_us.map_or_else(String::new, |us| {
            format!(
                ", round trip {:.1} ms",
                Duration::from_micros(us).as_secs_f64() * 1000.0
            )
        });
        rows.push((
            "heartbeat",
            format!(
                "{last}{trip}, every {}",
                render::brief(Duration::from_millis(beats.interval_ms))
            ),
        ));
    }
    push(
        &mut rows,
        "clock skew",
        status
            .clock_skew_ms
            .filter(|ms| ms.abs() >= 1000)
            .map(|ms| format!("the access point's clock is {ms} ms ahead of ours")),
    );
    if let Some(certificate) = &status.certificate {
        let end = certificate.leaf.not_after;
        let text = format!("{} ({})", rfc3339(end.into()), render::relative(now, end));
        let soon = end.duration_since(now).is_err();
        rows.push((
            "cert expires",
            if soon {
                terminal.paint(Color::Red, &text)
            } else {
                text
            },
        ));
    }
    push(
        &mut rows,
        "next renewal",
        status
            .next_renewal
            .as_ref()
            .map(|at| format!("{} ({})", rfc3339(*at), ago(at))),
    );
    rows.push(("rotations", status.rotations.to_string()));
    for (label, problem) in [
        ("last error", &status.last_error),
        ("identity error", &status.identity_error),
    ] {
        if let Some(problem) = problem {
            rows.push((
                label,
                format!("{} ({})", problem.error.text, ago(&problem.at)),
            ));
            rows.extend(
                problem
                    .error
                    .causes
                    .iter()
                    .map(|cause| ("  cause", cause.clone())),
            );
            rows.extend(
                problem
                    .error
                    .hint
                    .iter()
                    .map(|hint| ("  hint", hint.clone())),
            );
        }
    }
    if let Some(warning) = &status.identity_warning {
        rows.push(("warning", warning.text.clone()));
        let causes = warning
            .causes
            .iter()
            .map(|cause| ("  cause", cause.clone()));
        rows.extend(causes);
        rows.extend(warning.hint.iter().map(|hint| ("  hint", hint.clone())));
    }
    render::aligned(&rows)
}

fn certificate_text(certificate: &CertificateStatus) -> String {
    let mut rows = facts_rows(&certificate.leaf);
    rows.push(("generation", certificate.generation.to_string()));
    for (depth, facts) in certificate.intermediates.iter().enumerate() {
        rows.push((
            "chain",
            format!(
                "{} {} (ends {})",
                depth + 1,
                facts.subject,
                rfc3339(facts.not_after.into())
            ),
        ));
    }
    for (domain, root) in &certificate.trust_roots {
        let domain = domain
            .as_ref()
            .map(|domain| format!(" for {domain}"))
            .unwrap_or_default();
        rows.push((
            "trust root",
            format!(
                "{}{domain} (ends {})",
                root.subject,
                rfc3339(root.not_after.into())
            ),
        ));
    }
    render::aligned(&rows)
}

fn facts_rows(leaf: &CertificateFacts) -> Vec<(&'static str, String)> {
    let mut rows = vec![
        ("subject", leaf.subject.clone()),
        ("issuer", leaf.issuer.clone()),
        ("serial", leaf.serial.clone()),
    ];
    rows.extend(leaf.sans().into_iter().map(|san| ("SAN", san)));
    rows.extend([
        ("not before", rfc3339(leaf.not_before.into())),
        (
            "not after",
            format!(
                "{} ({})",
                rfc3339(leaf.not_after.into()),
                render::relative(SystemTime::now(), leaf.not_after)
            ),
        ),
        ("SHA-256", leaf.sha256.clone()),
        ("key", leaf.key.to_string()),
    ]);
    rows
}

fn push(rows: &mut Vec<(&'static str, String)>, label: &'static str, value: Option<String>) {
    rows.extend(value.map(|value| (label, value)));
}

fn rfc3339(time: OffsetDateTime) -> String {
    let time = time.replace_nanosecond(0).unwrap_or(time);
    time.format(&Rfc3339).unwrap_or_else(|_| time.to_string())
}
