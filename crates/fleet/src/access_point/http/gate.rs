//! Who may come in by which door: the admin socket's file mode, the bearer token, or a page that was signed in
//! with it.

use std::net::SocketAddr;

use ah_identity_provider::{Code, Explained};
use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::sessions::Sessions;

/// The header in which a signed-in page says that it is the one who asks.
pub(in crate::access_point) const PAGE_TOKEN: &str = "x-ah-page-token";

/// The secret that a caller on TCP has to show. Kept as its hash alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; 32]);

impl Token {
    /// The token that reads `text`, without surrounding white space. At least 16 characters.
    pub fn new(text: &str) -> Result<Self, Explained> {
        let text = text.trim();
        if text.len() < 16 || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(Explained::new(
                Code::Usage,
                "the HTTP token is not one word of at least 16 characters",
            )
            .hint("make one: openssl rand -hex 32 > FILE, then --http-token-file FILE"));
        }
        Ok(Self(Sha256::digest(text).into()))
    }

    /// Compares hashes, so that the time taken tells nothing of the token.
    fn matches(&self, shown: &str) -> bool {
        let shown: [u8; 32] = Sha256::digest(shown.trim()).into();
        shown == self.0
    }
}

/// The TCP door: the token decides; without one nothing but health and, on loopback, metrics is to be had.
pub(in crate::access_point) struct TcpDoor {
    /// The one of the moment; whoever came in by another one has to show it.
    token: Option<watch::Receiver<Token>>,
    loopback: bool,
    sessions: Sessions,
}

/// Who asks, as far as it is known.
#[derive(Clone, Debug)]
pub(in crate::access_point) enum Caller {
    /// Somebody who shows the token with each request.
    Bearer,
    /// A page that was signed in.
    Page {
        /// What its requests that change something have to carry in [`PAGE_TOKEN`].
        token: String,
    },
}

/// Why a caller is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::access_point) enum Refused {
    /// Nobody is: there is no token.
    Closed,
    /// The token is missing or wrong, and no page was signed in.
    Unknown,
    /// A signed-in browser asks, but not from a page of ours.
    Elsewhere,
}

impl TcpDoor {
    /// The door at `address`.
    pub(in crate::access_point) fn new(
        token: Option<watch::Receiver<Token>>,
        address: SocketAddr,
        secure: bool,
    ) -> Self {
        Self {
            token,
            loopback: address.ip().is_loopback(),
            sessions: Sessions::new(address.port(), secure),
        }
    }

    /// Judges a request by its method and headers.
    pub(in crate::access_point) fn admit(
        &self,
        method: &Method,
        headers: &HeaderMap,
    ) -> Result<Caller, Refused> {
        let token = self.token().ok_or(Refused::Closed)?;
        if let Some(shown) = headers.get(header::AUTHORIZATION) {
            let shown = shown
                .to_str()
                .ok()
                .and_then(|value| value.split_once(' '))
                .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
            return match shown {
                Some((_, shown)) if token.matches(shown) => Ok(Caller::Bearer),
                _ => Err(Refused::Unknown),
            };
        }
        let page = self.sessions.find(headers, &token);
        let token = page.ok_or(Refused::Unknown)?;
        let changes = !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
        let ours = headers
            .get(PAGE_TOKEN)
            .is_some_and(|shown| shown.as_bytes() == token.as_bytes());
        if changes && !(is_same_origin(headers) && ours) {
            return Err(Refused::Elsewhere);
        }
        Ok(Caller::Page { token })
    }

    /// Signs in a browser that shows the token: the `Set-Cookie` to answer with, or `None` when it is another one.
    pub(in crate::access_point) fn sign_in(&self, shown: &str) -> Option<String> {
        let token = self.token().filter(|token| token.matches(shown))?;
        Some(self.sessions.open(token))
    }

    /// Signs out the browser that asks, and returns the `Set-Cookie` that says so.
    pub(in crate::access_point) fn sign_out(&self, headers: &HeaderMap) -> String {
        self.sessions.close(headers)
    }

    fn token(&self) -> Option<Token> {
        self.token.as_ref().map(|token| token.borrow().clone())
    }
}

/// Whether a browser says that the request comes from a page of this same origin. What is sent from elsewhere
/// cannot say so: neither header can be set by a page.
pub(in crate::access_point) fn is_same_origin(headers: &HeaderMap) -> bool {
    let text = |name| {
        headers
            .get(name)
            .and_then(|value: &header::HeaderValue| value.to_str().ok())
    };
    // Browsers leave Sec-Fetch-Site out where the page came without TLS from another machine.
    if let Some(site) = text("sec-fetch-site") {
        return site == "same-origin";
    }
    let origin = text("origin").and_then(|origin| Some(origin.split_once("://")?.1));
    let host = text("host");
    origin
        .zip(host)
        .is_some_and(|(origin, host)| origin.eq_ignore_ascii_case(host))
}

/// Who may come in by a door.
#[derive(Clone)]
pub(super) enum Door {
    /// The file's mode decides.
    AdminSocket,
    /// See [`TcpDoor`].
    Tcp(std::sync::Arc<TcpDoor>),
}

pub(super) async fn guard(State(door): State<Door>, request: Request, next: Next) -> Response {
    if let Door::Tcp(door) = &door
        && let Err(refused) = door.admit(request.method(), request.headers())
    {
        return refused.into_response();
    }
    next.run(request).await
}

pub(super) async fn guard_metrics(
    State(door): State<Door>,
    request: Request,
    next: Next,
) -> Response {
    match &door {
        Door::Tcp(tcp) if tcp.loopback => next.run(request).await,
        _ => guard(State(door), request, next).await,
    }
}

impl Refused {
    /// With which status, and why.
    pub(in crate::access_point) fn explained(self) -> (StatusCode, Explained) {
        let (status, text, hint) = match self {
            Self::Closed => (
                StatusCode::FORBIDDEN,
                "this interface is closed",
                "start the access point with --http-token-file, or use the admin socket",
            ),
            Self::Unknown => (
                StatusCode::UNAUTHORIZED,
                "bearer token missing or wrong",
                "send the header: Authorization: Bearer TOKEN",
            ),
            Self::Elsewhere => (
                StatusCode::FORBIDDEN,
                "the request does not come from a page of this dashboard",
                "load the page again; behind a proxy, the Host header has to be the one that the browser sent",
            ),
        };
        let explained = Explained::new(Code::PermissionDenied, text).hint(hint);
        (status, explained)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, explained) = self.explained();
        let mut response = (status, Json(explained)).into_response();
        if self == Self::Unknown {
            let challenge = header::HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}
