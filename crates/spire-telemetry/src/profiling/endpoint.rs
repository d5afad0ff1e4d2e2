//! `/debug/pprof/` on this machine, as `go tool pprof` and others ask it.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;

use super::cpu::Cpu;
use crate::http::{FEW_CONNECTIONS, Http, answer, bind};

const TEXT: &str = "text/plain; charset=utf-8";
const ROOT: &str = "/debug/pprof/";

/// Seconds of a profile when nobody says how many.
const USUAL: u64 = 30;

/// Seconds of a profile: a connection lasts little longer.
const MOST: u64 = 240;

const INDEX: &str = "\
/debug/pprof/

profile  CPU time; ?seconds=N says for how long, 30 by default
cmdline  the command line, its parts ended by NUL
";

/// Profiles of Go's runtime, and why there are none of them.
const OTHERS: [(&str, &str); 8] = [
    ("allocs", "allocations are not sampled"),
    ("heap", "allocations are not sampled"),
    ("goroutine", "there are no goroutines"),
    ("threadcreate", "the origin of threads is not kept"),
    ("block", "waiting is not sampled"),
    ("mutex", "waiting for locks is not sampled"),
    ("trace", "there is no execution trace"),
    ("symbol", "profiles have the names of functions in them"),
];

/// Nothing where `port` is 0.
pub(super) async fn serve(port: u16, stop: CancellationToken) {
    if port == 0 {
        return;
    }
    match bind("localhost", &port.to_string()).await {
        Ok(listener) => {
            let http = Http {
                listener,
                tls: None,
                most_connections: FEW_CONNECTIONS,
            };
            serve_on(http, stop).await;
        }
        Err(error) => tracing::warn!(port, %error, "Unable to serve profiling server"),
    }
}

pub(super) async fn serve_on(http: Http, stop: CancellationToken) {
    if let Ok(address) = http.address() {
        tracing::info!(%address, "Serving profiles");
    }
    http.serve_slowly(respond, stop).await;
}

async fn respond(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let uri = request.uri();
    let Some(name) = uri.path().strip_prefix(ROOT) else {
        return match uri.path() == ROOT.trim_end_matches('/') {
            true => moved(),
            false => not_found("404 page not found\n".to_owned()),
        };
    };
    match name {
        "" => answer(StatusCode::OK, TEXT, INDEX),
        "cmdline" => answer(StatusCode::OK, TEXT, command_line()),
        "profile" => match seconds(uri.query().unwrap_or_default()) {
            Ok(seconds) => cpu(seconds).await,
            Err(why) => answer(StatusCode::BAD_REQUEST, TEXT, why),
        },
        other => {
            let known = OTHERS.iter().find(|(name, _)| *name == other);
            not_found(match known {
                Some((name, why)) => format!(
                    "{name}: {why} by this program; {ROOT}profile tells where it spends CPU time\n"
                ),
                None => "Unknown profile\n".to_owned(),
            })
        }
    }
}

fn moved() -> Response<Full<Bytes>> {
    let mut response = answer(StatusCode::MOVED_PERMANENTLY, TEXT, "");
    let to = http::HeaderValue::from_static(ROOT);
    response.headers_mut().insert(header::LOCATION, to);
    response
}

fn not_found(why: String) -> Response<Full<Bytes>> {
    answer(StatusCode::NOT_FOUND, TEXT, why)
}

fn command_line() -> String {
    let parts = std::env::args_os().map(|it| it.to_string_lossy().into_owned());
    parts.collect::<Vec<_>>().join("\0")
}

/// As Go's: what is no number of seconds is the usual one.
fn seconds(query: &str) -> Result<u64, String> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let asked = pairs.find(|(name, _)| *name == "seconds");
    let asked = asked.and_then(|(_, value)| value.parse().ok());
    match asked.filter(|seconds| *seconds > 0).unwrap_or(USUAL) {
        seconds if seconds > MOST => Err(format!("a profile is of {MOST} seconds at most\n")),
        seconds => Ok(seconds),
    }
}

async fn cpu(seconds: u64) -> Response<Full<Bytes>> {
    let refused = |why| {
        let why = format!("Could not enable CPU profiling: {why}\n");
        answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, why)
    };
    let cpu = match Cpu::start() {
        Ok(cpu) => cpu,
        Err(why) => return refused(why),
    };
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    match cpu.finish().await {
        Ok(profile) => {
            let mut response = answer(StatusCode::OK, "application/octet-stream", profile);
            let name = http::HeaderValue::from_static("attachment; filename=\"profile\"");
            response
                .headers_mut()
                .insert(header::CONTENT_DISPOSITION, name);
            response
        }
        Err(why) => refused(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_read_as_go_reads_them() {
        // Inventory §10: net/http/pprof
        assert_eq!(seconds(""), Ok(USUAL));
        assert_eq!(seconds("seconds=5"), Ok(5));
        assert_eq!(seconds("debug=1&seconds=7"), Ok(7));
        assert_eq!(seconds("seconds=-1"), Ok(USUAL));
        assert_eq!(seconds("seconds=x"), Ok(USUAL));
        assert!(seconds("seconds=241").is_err());
    }
}
