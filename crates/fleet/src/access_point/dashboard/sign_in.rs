//! Signing in: the token once, for a session of the browser.

use std::sync::Arc;

use axum::Form;
use axum::extract::rejection::FormRejection;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use serde::Deserialize;

use super::{Dashboard, text, views};
use crate::access_point::http::gate::{Refused, is_same_origin};

/// What the sign-in form sends.
#[derive(Deserialize)]
pub(super) struct SignIn {
    token: String,
    /// The page that was asked for.
    #[serde(default)]
    next: String,
}

/// Lets those in who show the token or have signed in, and asks the others to.
pub(super) async fn guard(
    State(dashboard): State<Arc<Dashboard>>,
    mut request: Request,
    next: Next,
) -> Response {
    let refused = match dashboard.door.admit(request.method(), request.headers()) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            return next.run(request).await;
        }
        Err(refused) => refused,
    };
    let asked = request
        .uri()
        .path_and_query()
        .map_or("/", |path| path.as_str());
    let page = match refused {
        Refused::Unknown => {
            // A browser keeps a SameSite=Strict cookie to itself when a link on another site leads here.
            let by_link = text(request.headers(), "sec-fetch-site") == Some("cross-site");
            views::sign_in::form(own_page(asked), by_link, None)
        }
        Refused::Closed | Refused::Elsewhere => views::sign_in::refused(&refused.explained().1),
    };
    let mut response = (refused.explained().0, page).into_response();
    if refused == Refused::Unknown {
        let challenge = HeaderValue::from_static("Bearer");
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

/// `POST /sign-in`
pub(super) async fn sign_in(
    State(dashboard): State<Arc<Dashboard>>,
    headers: HeaderMap,
    form: Result<Form<SignIn>, FormRejection>,
) -> Response {
    if !is_same_origin(&headers) {
        let (status, explained) = Refused::Elsewhere.explained();
        return (status, views::sign_in::refused(&explained)).into_response();
    }
    let Ok(Form(form)) = form else {
        let page = views::sign_in::form("/", false, Some("The form was not filled in."));
        return (StatusCode::BAD_REQUEST, page).into_response();
    };
    let next = own_page(&form.next);
    let Some(cookie) = dashboard.door.sign_in(&form.token) else {
        tracing::debug!("a wrong token was shown to the dashboard");
        let page = views::sign_in::form(next, false, Some("That is not the token."));
        return (StatusCode::UNAUTHORIZED, page).into_response();
    };
    tracing::info!("somebody signed in to the dashboard");
    ([(header::SET_COOKIE, cookie)], Redirect::to(next)).into_response()
}

/// `POST /sign-out`
pub(super) async fn sign_out(
    State(dashboard): State<Arc<Dashboard>>,
    headers: HeaderMap,
) -> Response {
    if !is_same_origin(&headers) {
        let (status, explained) = Refused::Elsewhere.explained();
        return (status, views::sign_in::refused(&explained)).into_response();
    }
    let cookie = dashboard.door.sign_out(&headers);
    ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response()
}

/// `GET /sign-in`, where a browser that loads a failed sign-in again ends up.
pub(super) async fn again() -> Redirect {
    Redirect::to("/")
}

/// `path` when it leads to a page here and nowhere else, or the first page.
fn own_page(path: &str) -> &str {
    let here = path.starts_with('/')
        && !path.starts_with("//")
        && path
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    if here { path } else { "/" }
}

#[cfg(test)]
mod tests {
    use super::own_page;

    #[test]
    fn nobody_is_sent_elsewhere_after_signing_in() {
        for (path, leads_to) in [
            ("/", "/"),
            (
                "/executors/spiffe%3A%2F%2Fa?x=1&y=%3C",
                "/executors/spiffe%3A%2F%2Fa?x=1&y=%3C",
            ),
            ("", "/"),
            ("//evil.example", "/"),
            ("/\\evil.example", "/"),
            ("/\t/evil.example", "/"),
            ("https://evil.example/", "/"),
            ("/a\r\nSet-Cookie: x=y", "/"),
            ("/ü", "/"),
        ] {
            assert_eq!(own_page(path), leads_to, "{path:?}");
        }
    }
}
