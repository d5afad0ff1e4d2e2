//! The discovery document (OpenID Connect Discovery §4) and the keys that it leads to.

mod places;

use std::time::SystemTime;

use ah_spire_plugin::oidc::OidcConfig;
use ah_spire_telemetry::answer;
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{PrimitiveDateTime, UtcDateTime};
use tokio::sync::watch;

use self::places::Places;
use crate::domains::Domains;
use crate::keys::Known;

pub(crate) const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// RFC 9110 §5.6.7
const HTTP_DATE: &[BorrowedFormatItem<'_>] = format_description!(
    "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
);

/// What requests are answered from.
#[derive(Clone)]
pub(crate) struct Documents {
    domains: Domains,
    places: Places,
    known: watch::Receiver<Known>,
    /// Whether links may be of `http`.
    insecure: bool,
}

#[derive(Serialize)]
struct Discovery<'a> {
    issuer: &'a str,
    jwks_uri: &'a str,
    // Required, and of no meaning here.
    authorization_endpoint: &'a str,
    response_types_supported: [&'a str; 1],
    subject_types_supported: [&'a str; 1],
    id_token_signing_alg_values_supported: [&'a str; 3],
}

impl Documents {
    /// For a listener that does TLS itself or, without `tls`, for one behind somebody who does.
    pub(crate) fn new(
        config: &OidcConfig,
        domains: Domains,
        known: watch::Receiver<Known>,
        tls: bool,
    ) -> Self {
        Self {
            domains,
            places: Places::new(config),
            known,
            insecure: config.allow_insecure_scheme && !tls,
        }
    }

    /// Paths, codes and texts are upstream's.
    pub(crate) fn respond<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        let respond = if path == self.places.discovery {
            Self::discovery
        } else if path == self.places.keys {
            Self::keys
        } else {
            return refused(StatusCode::NOT_FOUND, "404 page not found");
        };
        if request.method() != Method::GET {
            return refused(StatusCode::METHOD_NOT_ALLOWED, "method not allowed");
        }
        respond(self, request)
    }

    fn discovery<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let host = host(request);
        if let Err(why) = self.domains.allow(&host) {
            return refused(StatusCode::BAD_REQUEST, &why);
        }
        let scheme = match self.insecure && forwarded_scheme(request).as_deref() != Some("https") {
            true => "http",
            false => "https",
        };
        let issuer = self.places.issuer(scheme, &host);
        let jwks_uri = self.places.jwks_uri(scheme, &host);
        let document = Discovery {
            issuer: &issuer,
            jwks_uri: &jwks_uri,
            authorization_endpoint: "",
            response_types_supported: ["id_token"],
            subject_types_supported: ["public"],
            id_token_signing_alg_values_supported: ["RS256", "ES256", "ES384"],
        };
        match serde_json::to_vec_pretty(&document) {
            Ok(document) => public(answer(StatusCode::OK, JSON, document)),
            Err(_) => refused(
                StatusCode::INTERNAL_SERVER_ERROR,
                "failed to marshal document",
            ),
        }
    }

    fn keys<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let Some(keys) = self.known.borrow().keys.clone() else {
            return refused(StatusCode::INTERNAL_SERVER_ERROR, "document not available");
        };
        let Some(document) = keys.document else {
            return refused(
                StatusCode::NOT_IMPLEMENTED,
                "jwt not supported/enabled in this service",
            );
        };
        let since = UtcDateTime::from(keys.since);
        let mut response = match is_modified(request.headers(), keys.since) {
            true => answer(StatusCode::OK, JSON, document),
            false => {
                let mut response = Response::new(Full::default());
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                response
            }
        };
        let modified = since.format(HTTP_DATE).ok();
        let modified = modified.and_then(|date| HeaderValue::try_from(date).ok());
        let headers = response.headers_mut();
        if let Some(date) = modified {
            headers.insert(header::LAST_MODIFIED, date);
        }
        for (name, value) in [
            (header::CACHE_CONTROL, "no-cache, no-store, must-revalidate"),
            (header::PRAGMA, "no-cache"),
            (header::EXPIRES, "0"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        public(response)
    }
}

/// For scripts of whatever site.
fn public(mut response: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    let everybody = HeaderValue::from_static("*");
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, everybody);
    response
}

/// A line of text that no browser takes for anything else.
pub(crate) fn refused(status: StatusCode, why: &str) -> Response<Full<Bytes>> {
    let mut response = answer(status, TEXT, format!("{why}\n"));
    let no_guess = HeaderValue::from_static("nosniff");
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, no_guess);
    response
}

/// Whom the client asked, as far as a proxy tells: `X-Forwarded-Host` goes before what stands in the request.
fn host<B>(request: &Request<B>) -> String {
    let of_request = request.uri().authority().map(|it| it.as_str());
    text(
        request.headers(),
        HeaderName::from_static("x-forwarded-host"),
    )
    .or(of_request)
    .or_else(|| text(request.headers(), header::HOST))
    .unwrap_or_default()
    .to_owned()
}

/// The scheme by which the client came, as far as a proxy tells.
fn forwarded_scheme<B>(request: &Request<B>) -> Option<String> {
    let headers = request.headers();
    let told = ["x-forwarded-proto", "x-forwarded-scheme"]
        .map(HeaderName::from_static)
        .into_iter()
        .find_map(|name| text(headers, name));
    if let Some(told) = told {
        return Some(told.to_ascii_lowercase());
    }
    // RFC 7239 §4
    let forwarded = text(headers, header::FORWARDED)?.to_ascii_lowercase();
    let (_, after) = forwarded.split_once("proto=")?;
    Some(match after.trim_start_matches('"').starts_with("https") {
        true => "https".to_owned(),
        false => "http".to_owned(),
    })
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let value = headers.get(name)?.to_str().ok()?;
    Some(value).filter(|value| !value.is_empty())
}

/// RFC 9110 §13.1.3: whether the client has not seen what is there since then.
fn is_modified(headers: &HeaderMap, since: SystemTime) -> bool {
    let seen = text(headers, header::IF_MODIFIED_SINCE)
        .and_then(|date| PrimitiveDateTime::parse(date, HTTP_DATE).ok());
    seen.is_none_or(|seen| {
        seen.as_utc().unix_timestamp() < UtcDateTime::from(since).unix_timestamp()
    })
}

#[cfg(test)]
mod tests;
