//! How requests to AWS are signed: Signature Version 4 (`AWS4-HMAC-SHA256`), in the `Authorization` header or in the query.

use std::fmt;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Uri, header};
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};
use zeroize::Zeroizing;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const DATE: HeaderName = HeaderName::from_static("x-amz-date");
const TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");
const CONTENT: HeaderName = HeaderName::from_static("x-amz-content-sha256");

/// Headers that proxies may change, and the one that the signature goes into.
const UNSIGNED: [&str; 6] = [
    "authorization",
    "connection",
    "expect",
    "transfer-encoding",
    "user-agent",
    "x-amzn-trace-id",
];

/// An access key. The secrets are wiped when dropped, and cannot be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Its public name.
    pub access_key_id: String,
    /// Its secret.
    pub secret_access_key: Zeroizing<String>,
    /// Of a key that ends: what it is sent with.
    pub session_token: Option<Zeroizing<String>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("access_key_id", &self.access_key_id)
            .finish_non_exhaustive()
    }
}

/// What a signature counts for.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// Such as `eu-west-1`.
    pub region: &'a str,
    /// The name that the service is signed for, such as `ec2` or `s3`.
    pub service: &'a str,
}

/// Signs `request` at `now`. Its URI is absolute and encoded, its headers and body are those that will be sent; `Host` is
/// what [`crate::http_client::HttpClient`] makes of the URI. Paths of `s3` are signed as they are, others in normal form
/// and encoded once more; for `s3` the digest of the body goes into a header as well.
///
/// # Errors
/// Says which part of the request or the credentials cannot stand in a header. No secret is told.
pub fn sign(
    request: &mut Request<Bytes>,
    credentials: &Credentials,
    scope: Scope<'_>,
    now: SystemTime,
) -> Result<(), String> {
    let stamp = stamp(now)?;
    let s3 = scope.service.starts_with("s3");
    let body = hex(digest(&SHA256, request.body()).as_ref());

    let headers = request.headers_mut();
    headers.insert(DATE, value(&stamp, "the date")?);
    if s3 {
        headers.insert(CONTENT, value(&body, "the digest")?);
    }
    if let Some(token) = &credentials.session_token {
        let mut token = value(token, "the session token")?;
        token.set_sensitive(true);
        headers.insert(TOKEN, token);
    }
    let (signed, canonical) = canonical_headers(request)?;
    let path = if s3 {
        request.uri().path().to_owned()
    } else {
        encoded(&normal(request.uri().path()), true)
    };
    let canonical = format!(
        "{}\n{path}\n{}\n{canonical}\n{signed}\n{body}",
        request.method(),
        canonical_query(request.uri().query().unwrap_or_default())?
    );

    let place = place(&stamp, scope);
    let signature = signature(credentials, scope, &stamp, &canonical);
    let authorization = format!(
        "{ALGORITHM} Credential={}/{place}, SignedHeaders={signed}, Signature={signature}",
        credentials.access_key_id
    );
    let mut authorization = value(&authorization, "the access key id or the region")?;
    authorization.set_sensitive(true);
    request
        .headers_mut()
        .insert(header::AUTHORIZATION, authorization);
    Ok(())
}

/// `uri` with a signature in its query that counts for a `GET` without other headers than `Host`, for `lasts` from `now`.
///
/// # Errors
/// The URI has no host, or its query is not percent-encoded.
pub fn presigned(
    uri: &Uri,
    credentials: &Credentials,
    scope: Scope<'_>,
    lasts: Duration,
    now: SystemTime,
) -> Result<Zeroizing<String>, String> {
    let stamp = stamp(now)?;
    let host = host(uri)?;
    let path = uri.path();
    let s3 = scope.service.starts_with("s3");
    let place = format!("{}/{}", credentials.access_key_id, place(&stamp, scope));
    let mut query = Zeroizing::new(uri.query().unwrap_or_default().to_owned());
    let lasts = lasts.as_secs().to_string();
    let token = credentials.session_token.as_ref();
    for (name, value) in [
        ("X-Amz-Algorithm", Some(ALGORITHM)),
        ("X-Amz-Credential", Some(place.as_str())),
        ("X-Amz-Date", Some(stamp.as_str())),
        ("X-Amz-Expires", Some(lasts.as_str())),
        ("X-Amz-Security-Token", token.map(|token| token.as_str())),
        ("X-Amz-SignedHeaders", Some("host")),
    ] {
        if let Some(value) = value {
            let and = if query.is_empty() { "" } else { "&" };
            query.push_str(&format!("{and}{name}={}", percent_encoded(value)));
        }
    }
    let query = Zeroizing::new(canonical_query(&query)?);
    let body = match s3 {
        true => "UNSIGNED-PAYLOAD".to_owned(),
        false => hex(digest(&SHA256, b"").as_ref()),
    };
    let canonical = format!("GET\n{path}\n{}\nhost:{host}\n\nhost\n{body}", *query);
    let signature = signature(credentials, scope, &stamp, &canonical);
    let scheme = uri
        .scheme_str()
        .map_or(String::new(), |scheme| format!("{scheme}://"));
    Ok(Zeroizing::new(format!(
        "{scheme}{host}{path}?{}&X-Amz-Signature={signature}",
        *query
    )))
}

/// `20130524T000000Z`
fn stamp(now: SystemTime) -> Result<String, String> {
    let stamp = OffsetDateTime::from(now)
        .to_offset(UtcOffset::UTC)
        .format(format_description!(
            "[year][month][day]T[hour][minute][second]Z"
        ));
    stamp.map_err(|error| format!("the time cannot be written: {error}"))
}

fn day(stamp: &str) -> &str {
    stamp.split('T').next().unwrap_or_default()
}

/// Where and when a signature counts.
fn place(stamp: &str, scope: Scope<'_>) -> String {
    let day = day(stamp);
    format!("{day}/{}/{}/aws4_request", scope.region, scope.service)
}

fn signature(credentials: &Credentials, scope: Scope<'_>, stamp: &str, canonical: &str) -> String {
    let place = place(stamp, scope);
    let digest = hex(digest(&SHA256, canonical.as_bytes()).as_ref());
    let text = format!("{ALGORITHM}\n{stamp}\n{place}\n{digest}");
    let first = Zeroizing::new(format!("AWS4{}", *credentials.secret_access_key));
    let mut key = hmac::Key::new(HMAC_SHA256, first.as_bytes());
    for step in [day(stamp), scope.region, scope.service, "aws4_request"] {
        key = hmac::Key::new(HMAC_SHA256, hmac::sign(&key, step.as_bytes()).as_ref());
    }
    hex(hmac::sign(&key, text.as_bytes()).as_ref())
}

fn host(uri: &Uri) -> Result<String, String> {
    let host = uri.host().ok_or_else(|| format!("{uri} has no host"))?;
    Ok(match uri.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
}

fn value(text: &str, what: &str) -> Result<HeaderValue, String> {
    HeaderValue::from_str(text).map_err(|_| format!("{what} has characters that no header has"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The names, with `;` between them, and a line for each.
fn canonical_headers(request: &Request<Bytes>) -> Result<(String, String), String> {
    let host = host(request.uri())?;
    let headers = request.headers();
    let mut lines = vec![("host".to_owned(), host)];
    for name in headers.keys() {
        if UNSIGNED.contains(&name.as_str()) || *name == header::HOST {
            continue;
        }
        let mut all = Vec::new();
        for value in headers.get_all(name) {
            let text = value.to_str();
            let text = text.map_err(|_| format!("the header {name} is no text"))?;
            all.push(text.split_ascii_whitespace().collect::<Vec<_>>().join(" "));
        }
        lines.push((name.as_str().to_owned(), all.join(",")));
    }
    lines.sort();
    let names: Vec<_> = lines.iter().map(|(name, _)| name.as_str()).collect();
    let text = lines
        .iter()
        .map(|(name, value)| format!("{name}:{value}\n"));
    Ok((names.join(";"), text.collect()))
}

/// Without empty steps and dots (RFC 3986 §6.2.2.3).
fn normal(path: &str) -> String {
    let mut steps: Vec<&str> = Vec::new();
    for step in path.split('/') {
        match step {
            "" | "." => {}
            ".." => {
                steps.pop();
            }
            step => steps.push(step),
        }
    }
    let end = if path.ends_with('/') && !steps.is_empty() {
        "/"
    } else {
        ""
    };
    format!("/{}{end}", steps.join("/"))
}

fn canonical_query(query: &str) -> Result<String, String> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let mut all = Vec::new();
    for pair in pairs {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = encoded_bytes(&decoded(name)?, false);
        all.push((name, encoded_bytes(&decoded(value)?, false)));
    }
    all.sort();
    let all = all.iter().map(|(name, value)| format!("{name}={value}"));
    Ok(all.collect::<Vec<_>>().join("&"))
}

fn decoded(text: &str) -> Result<Vec<u8>, String> {
    let bad = || format!("{text:?} is not percent-encoded");
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(bytes.next()), digit(bytes.next()));
                let number = high.zip(low).map(|(high, low)| high * 16 + low);
                let number = number.and_then(|number| u8::try_from(number).ok());
                number.ok_or_else(bad)?
            }
            byte => byte,
        });
    }
    Ok(out)
}

/// With everything percent-encoded but letters, digits, and `-._~`, as AWS wants values of queries and forms.
pub fn percent_encoded(text: &str) -> String {
    encoded(text, false)
}

fn encoded(text: &str, slash: bool) -> String {
    encoded_bytes(text.as_bytes(), slash)
}

fn encoded_bytes(bytes: &[u8], slash: bool) -> String {
    let mut out = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || (slash && byte == b'/') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests;
