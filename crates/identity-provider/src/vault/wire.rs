//! One request and its reply as HTTP/1.1 has them, and what their headers say.

use std::io;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{DATE, LOCATION, RETRY_AFTER};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use time::macros::format_description;
use zeroize::Zeroizing;

use super::client::Ask;
use super::config::VaultAddress;
use super::dial::{Connection, io_words};
use super::fault::Fault;

/// The largest reply: a chain of certificates takes a few kilobytes.
const MOST_BYTES: usize = 1024 * 1024;

/// A body that is wiped once it was sent.
pub(super) struct Wiped(pub(super) Zeroizing<Vec<u8>>);

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Sends one request and reads the whole reply. The connection ends with it.
pub(super) async fn converse(
    connection: Box<dyn Connection>,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, HeaderMap, Zeroizing<Vec<u8>>), Fault> {
    let broken = |error: &hyper::Error| Fault::NoReply(hyper_words(error));
    let (mut sender, driver) = http1::handshake(TokioIo::new(connection))
        .await
        .map_err(|error| broken(&error))?;
    let conversation = async move {
        let reply = sender
            .send_request(request)
            .await
            .map_err(|error| broken(&error))?;
        let (head, body) = reply.into_parts();
        let body = match Limited::new(body, MOST_BYTES).collect().await {
            Ok(body) => Zeroizing::new(body.to_bytes().to_vec()),
            Err(error) if error.is::<LengthLimitError>() => {
                let why = format!("the reply is larger than {MOST_BYTES} bytes");
                return Err(Fault::NoReply(why));
            }
            Err(error) => {
                let why = error.downcast_ref::<hyper::Error>().map(hyper_words);
                return Err(Fault::NoReply(why.unwrap_or_else(|| error.to_string())));
            }
        };
        Ok((head.status, head.headers, body))
    };
    // The driver moves the bytes, and knows best why they stopped.
    let (mut conversation, mut driver) = (pin!(conversation), pin!(driver));
    let mut driver_fault = None;
    let outcome = loop {
        tokio::select! {
            outcome = &mut conversation => break outcome,
            Err(error) = &mut driver, if driver_fault.is_none() => {
                driver_fault = Some(broken(&error));
            }
        }
    };
    match (outcome, driver_fault) {
        (Err(_), Some(fault)) => Err(fault),
        (outcome, _) => outcome,
    }
}

fn hyper_words(error: &hyper::Error) -> String {
    if error.is_incomplete_message() || error.is_body_write_aborted() {
        return "the reply broke off".to_owned();
    }
    if error.is_canceled() {
        return "the connection ended before the request was taken".to_owned();
    }
    if error.is_parse() {
        return "the reply is not HTTP; an https:// address may be meant".to_owned();
    }
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            if io.kind() == io::ErrorKind::UnexpectedEof {
                return "the reply broke off".to_owned();
            }
            return io_words(io);
        }
        source = inner.source();
    }
    error.to_string()
}

/// Where a redirect leads. The token goes along only to a server of a known scheme, and never from TLS into the clear.
pub(super) fn leader(
    from: &VaultAddress,
    headers: &HeaderMap,
    ask: &Ask,
) -> Result<VaultAddress, Fault> {
    let refused = |why: &str| Fault::Unreachable(format!("{from} redirects {why}"));
    let location = headers
        .get(LOCATION)
        .and_then(|value| value.to_str().ok())
        .ok_or_else(|| refused("without saying where"))?;
    let (place, path) = location
        .find("/v1/")
        .and_then(|at| location.split_at_checked(at))
        .ok_or_else(|| refused("to a place that is no Vault"))?;
    let wanted = format!("/v1/{}", ask.path);
    if path != wanted {
        return Err(refused("to another path"));
    }
    if place.is_empty() {
        return Err(refused("to itself"));
    }
    let to: VaultAddress = place
        .parse()
        .map_err(|_| refused("to a place that is no Vault"))?;
    if from.tls() && !to.tls() {
        return Err(refused("from HTTPS to HTTP, which would show the token"));
    }
    Ok(to)
}

/// What a page that is not Vault's says, cut to a line.
pub(super) fn plain(body: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(body);
    let line: String = text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or_default()
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect();
    if line.is_empty() {
        Vec::new()
    } else {
        vec![line]
    }
}

pub(super) fn seconds(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}

/// RFC 9110 §5.6.7, the form that servers send.
pub(super) fn date(headers: &HeaderMap) -> Option<SystemTime> {
    let format = format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    let text = headers.get(DATE)?.to_str().ok()?;
    let date = time::PrimitiveDateTime::parse(text, format).ok()?;
    Some(date.assume_utc().into())
}

pub(super) fn ahead(theirs: SystemTime, ours: SystemTime) -> i64 {
    let seconds = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
    match theirs.duration_since(ours) {
        Ok(span) => seconds(span),
        Err(behind) => -seconds(behind.duration()),
    }
}
