//! `ah agent fleet` (FL-1): the REST interface of an access point, through its admin socket.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use ah_fleet::access_point::{ExecutorView, FleetEvent, ListFilter, Listing};
use ah_fleet::store::RevocationTarget;
use ah_identity_provider::{Code, Explained};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use time::format_description::well_known::Rfc3339;
use tokio::net::UnixStream;

use super::access_point::no_runtime;
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
    let door = Door::of(args)?;
    match &args.command {
        FleetCommand::List(list) => {
            let filter = ListFilter {
                labels: Some(joined(&list.label)).filter(|labels| !labels.is_empty()),
                live: list.live.then_some(true),
                revoked: list.revoked.then_some(true),
            };
            let listing: Listing = door.ask(Method::GET, &listing_path(&filter), None).await?;
            printed(show_listing(&listing, args.json))
        }
        FleetCommand::Show(who) => {
            let view: ExecutorView = door
                .ask(Method::GET, &executor_path(&who.who, ""), None)
                .await?;
            printed(show_executor(&view, args.json))
        }
        FleetCommand::Revoke(revoke) => {
            let reason = serde_json::json!({ "reason": revoke.reason.clone().unwrap_or_default() });
            let path = executor_path(&revoke.who, "/revoke");
            let target: RevocationTarget = door
                .ask(Method::POST, &path, Some(reason.to_string()))
                .await?;
            printed(show_target("revoked", &target, args.json))
        }
        FleetCommand::Reinstate(who) => {
            let path = executor_path(&who.who, "/reinstate");
            let target: RevocationTarget = door.ask(Method::POST, &path, None).await?;
            printed(show_target("reinstated", &target, args.json))
        }
        FleetCommand::Disconnect(who) => {
            let path = executor_path(&who.who, "/disconnect");
            let gone: serde_json::Value = door.ask(Method::POST, &path, None).await?;
            if args.json {
                return printed(render::print_json(&gone));
            }
            println!(
                "disconnected {}",
                printable(
                    gone.get("id")
                        .and_then(|id| id.as_str())
                        .unwrap_or_default()
                )
            );
            Ok(())
        }
        FleetCommand::Watch(watched) => watch(&door, &watched.label, args.json).await,
    }
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

fn listing_path(filter: &ListFilter) -> String {
    let mut query = Vec::new();
    if let Some(labels) = &filter.labels {
        query.push(format!("labels={}", encoded(labels)));
    }
    if let Some(live) = filter.live {
        query.push(format!("live={live}"));
    }
    if let Some(revoked) = filter.revoked {
        query.push(format!("revoked={revoked}"));
    }
    format!("/api/v1/executors?{}", query.join("&"))
}

fn executor_path(who: &str, action: &str) -> String {
    format!("/api/v1/executors/{}{action}", encoded(who))
}

/// Percent-encodes all but the unreserved characters (RFC 3986 §2.3): an id is one segment, slashes and all.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// The admin socket of an access point.
struct Door {
    socket: PathBuf,
}

impl Door {
    fn of(args: &FleetArgs) -> Result<Self, Explained> {
        let socket = match &args.admin_socket {
            Some(socket) => socket.clone(),
            None => settings::paths()
                .run()
                .map_err(|error| {
                    Explained::new(Code::Usage, error.to_string()).hint("give --admin-socket")
                })?
                .join("access-point.sock"),
        };
        Ok(Self { socket })
    }

    /// One request and its whole answer.
    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<T, Explained> {
        let response = self.request(method, path, body).await?;
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(|error| self.garbled(&error.to_string()))?
            .to_bytes();
        if status != StatusCode::OK {
            return Err(refusal(status, &body));
        }
        serde_json::from_slice(&body).map_err(|error| self.garbled(&error.to_string()))
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<http::Response<Incoming>, Explained> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| unreachable(&self.socket, &error))?;
        let (mut requests, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|error| self.garbled(&error.to_string()))?;
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "access-point");
        if body.is_some() {
            request = request.header(http::header::CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| self.garbled(&error.to_string()))?;
        requests
            .send_request(request)
            .await
            .map_err(|error| self.garbled(&error.to_string()))
    }

    fn garbled(&self, why: &str) -> Explained {
        Explained::new(
            Code::Other,
            format!(
                "cannot understand the answer from {}",
                self.socket.display()
            ),
        )
        .cause(why)
        .hint("check that the socket is an access point's, of this version")
    }
}

fn unreachable(socket: &Path, error: &io::Error) -> Explained {
    let shown = socket.display();
    match error.kind() {
        io::ErrorKind::NotFound => Explained::new(
            Code::NoSuchFile,
            format!("no such file: {shown}"),
        )
        .cause("an access point makes this socket when it starts")
        .hint("check that one runs (systemctl status ah-access-point), or give its --admin-socket"),
        io::ErrorKind::PermissionDenied => Explained::new(
            Code::PermissionDenied,
            format!("permission denied reading {shown}"),
        )
        .hint("ask as the access point's user or as root"),
        _ => Explained::new(Code::Other, format!("no access point answers on {shown}"))
            .cause(error)
            .hint("check that it runs: systemctl status ah-access-point"),
    }
}

fn refusal(status: StatusCode, body: &[u8]) -> Explained {
    serde_json::from_slice(body).unwrap_or_else(|_| {
        Explained::new(Code::Other, format!("the access point answered {status}"))
            .cause(String::from_utf8_lossy(body))
    })
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
            state(view).to_owned(),
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
    Ok(())
}

fn state(view: &ExecutorView) -> &'static str {
    match (&view.revocation, &view.live) {
        (Some(_), _) => "revoked",
        (None, Some(_)) => "enrolled",
        (None, None) => "offline",
    }
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
    let color = match state(view) {
        "enrolled" => Color::Green,
        "revoked" => Color::Red,
        _ => Color::Yellow,
    };
    let mut rows = vec![
        ("id", printable(&view.id)),
        ("name", printable(&view.name)),
        ("state", terminal.paint(color, state(view))),
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
        RevocationTarget::Id(id) => format!("executor {}", id.0),
        RevocationTarget::Serial(serial) => format!("certificate with serial {serial}"),
        RevocationTarget::Sha256(sha256) => format!("certificate with SHA-256 {sha256}"),
    };
    println!("{done} {}", printable(&what));
    Ok(())
}

/// Prints events as they come, until the access point goes or the reader does.
async fn watch(
    door: &Door,
    labels: &[settings::value::Label],
    json: bool,
) -> Result<(), Explained> {
    let path = match joined(labels) {
        labels if labels.is_empty() => "/api/v1/events".to_owned(),
        labels => format!("/api/v1/events?labels={}", encoded(&labels)),
    };
    let response = door.request(Method::GET, &path, None).await?;
    let mut body = response.into_body();
    let mut partial = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| door.garbled(&error.to_string()))?;
        partial.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        while let Some(end) = partial.iter().position(|byte| *byte == b'\n') {
            let line = partial.drain(..=end).collect::<Vec<_>>();
            let line = String::from_utf8_lossy(&line);
            printed(show_event(line.trim_end(), json))?;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_segment_of_the_path() {
        assert_eq!(
            executor_path("spiffe://example.org/a b", "/revoke"),
            "/api/v1/executors/spiffe%3A%2F%2Fexample.org%2Fa%20b/revoke"
        );
    }
}
