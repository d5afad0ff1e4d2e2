//! The dashboard: pages for people, behind the TCP door, from what the REST interface answers from.
//!
//! Pages are rendered here and whole without any script; a little script keeps them current and asks before it
//! revokes, which it does by the REST interface. Nothing is fetched from anywhere else, and nothing that a peer
//! said of itself reaches a page unescaped.

mod assets;
mod fleet;
mod listing;
mod live;
mod pages;
mod sign_in;
mod spans;
mod views;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};

use super::Operator;
use super::http::gate::TcpDoor;
use listing::Kept;
use live::Live;

/// All that the pages share.
pub(super) struct Dashboard {
    operator: Operator,
    door: Arc<TcpDoor>,
    listing: Kept,
    live: Arc<Live>,
}

impl Dashboard {
    /// The dashboard behind `door`.
    pub(super) fn new(operator: Operator, door: Arc<TcpDoor>) -> Arc<Self> {
        Arc::new(Self {
            listing: Kept::new(operator.clone()),
            live: Arc::new(Live::new(operator.clone())),
            operator,
            door,
        })
    }
}

/// The pages, and what they are made of.
pub(super) fn router(dashboard: Arc<Dashboard>) -> Router {
    let pages = Router::new()
        .route("/", get(pages::fleet))
        .route("/executors/{selector}", get(pages::executor))
        .route("/rejections", get(pages::rejections))
        .route("/audit", get(pages::audit))
        .route("/live", get(live::stream))
        .layer(middleware::from_fn_with_state(
            Arc::clone(&dashboard),
            sign_in::guard,
        ));
    Router::new()
        .merge(pages)
        .route("/sign-in", post(sign_in::sign_in).get(sign_in::again))
        .route("/sign-out", post(sign_in::sign_out))
        .route("/assets/{hash}/{file}", get(assets::serve))
        .layer(DefaultBodyLimit::max(4096))
        .layer(middleware::map_response(guarded))
        .with_state(dashboard)
}

/// A change that an operator made is on the next page that anybody loads.
pub(super) async fn look_again(
    State(dashboard): State<Arc<Dashboard>>,
    request: Request,
    next: Next,
) -> Response {
    let changes = !request.method().is_safe();
    let response = next.run(request).await;
    if changes {
        dashboard.listing.forget();
    }
    response
}

/// What a browser has to hold against a page that somebody smuggled something into.
const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
         form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
];

async fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
