//! What all pages have in common. Everything from outside goes through the template's escaping.

pub(super) mod executor;
pub(super) mod fleet;
pub(super) mod lately;
pub(super) mod sign_in;

use std::time::SystemTime;

use ah_identity_provider::Explained;
use axum::http::StatusCode;
use maud::{DOCTYPE, Markup, html};
use time::OffsetDateTime;

use super::assets::{ICON, SCRIPT, STYLE};
use crate::access_point::http::gate::{Caller, PAGE_TOKEN};
use crate::access_point::{AccessPointView, ExecutorView, path_segment};
use crate::moment::{relative, rfc3339};

/// Which page it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Fleet,
    Executor,
    Rejections,
    Audit,
}

/// What stands around every page.
pub(super) struct Frame {
    pub(super) place: Place,
    pub(super) caller: Caller,
    pub(super) own: AccessPointView,
    pub(super) not_ready: Vec<String>,
    /// When the page is made.
    pub(super) at: SystemTime,
}

const PLACES: [(Place, &str, &str); 3] = [
    (Place::Fleet, "/", "Fleet"),
    (Place::Rejections, "/rejections", "Rejections"),
    (Place::Audit, "/audit", "Audit"),
];

/// A whole document. `page_token` is for pages that were signed in.
fn document(title: &str, page_token: Option<&str>, body: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                @if let Some(token) = page_token { meta name=(PAGE_TOKEN) content=(token); }
                title { (title) " · Agent Harbor" }
                link rel="icon" type="image/svg+xml" href=(ICON.path);
                link rel="stylesheet" href=(STYLE.path);
                // Not deferred: it sets the chosen colours before anything is painted.
                script src=(SCRIPT.path) {}
            }
            body { (body) }
        }
    }
}

/// A page with everything around it.
fn page(frame: &Frame, title: &str, main: Markup) -> Markup {
    let token = match &frame.caller {
        Caller::Page { token } => Some(token.as_str()),
        Caller::Bearer => None,
    };
    let body = html! {
        a.skip href="#main" { "Skip to content" }
        header.top {
            a.brand href="/" {
                img src=(ICON.path) alt="" width="20" height="20";
                span { "Agent Harbor" }
            }
            nav aria-label="Pages" {
                @for (place, address, name) in PLACES {
                    a href=(address) aria-current=[(frame.place == place).then_some("page")] { (name) }
                }
            }
            div.tools {
                span #live role="status" data-state="off" hidden { "live" }
                button #theme type="button" hidden title="Colours: as the system, light, dark" { "Auto" }
                @if token.is_some() {
                    form method="post" action="/sign-out" { button type="submit" { "Sign out" } }
                }
            }
        }
        main #main tabindex="-1" {
            div #notices data-live { (notices(frame)) }
            (main)
        }
        footer #own data-live { (own(frame)) }
        (confirmation())
        div #toast role="status" aria-live="polite" hidden {}
    };
    document(title, token, body)
}

/// What needs a person, where anything does.
fn notices(frame: &Frame) -> Markup {
    html! {
        @for reason in &frame.not_ready {
            p.notice.bad { strong { "Not ready. " } bdi { (reason) } }
        }
        @if let Some(warning) = &frame.own.identity_warning {
            p.notice { strong { "Own identity. " } (warning.text) @if let Some(hint) = &warning.hint { " – " (hint) } }
        }
    }
}

fn own(frame: &Frame) -> Markup {
    let own = &frame.own;
    html! {
        span { "Access point " (own.version) ", pid " (own.pid) }
        span { "started " (when(frame.at, own.started)) }
        span { "executors dial " @for (n, address) in own.listening.iter().enumerate() { @if n > 0 { ", " } code { (address) } } }
        span { "own certificate (" (own.provider) ") ends " (when(frame.at, own.certificate.not_after)) }
    }
}

/// Asked before anything is done to an executor. The script fills it in.
fn confirmation() -> Markup {
    html! {
        dialog #confirm aria-labelledby="confirm-title" {
            form method="dialog" {
                h2 #confirm-title {}
                p #confirm-who {}
                p #confirm-text {}
                label #confirm-reason { "Reason, for the audit log" input #reason type="text" maxlength="200" autocomplete="off"; }
                p.error #confirm-error role="alert" hidden {}
                div.buttons {
                    button type="submit" value="cancel" { "Cancel" }
                    button #confirm-do type="button" {}
                }
            }
        }
    }
}

/// The page that says why there is no page.
pub(super) fn trouble(frame: &Frame, status: StatusCode, why: &Explained) -> (StatusCode, Markup) {
    let main = html! { section.panel.pad { (explained(why)) p { a href="/" { "To the fleet" } } } };
    (status, page(frame, "Not shown", main))
}

fn explained(why: &Explained) -> Markup {
    html! {
        h1 { bdi { (why.text) } }
        @for cause in &why.causes { p { bdi { (cause) } } }
        @if let Some(hint) = &why.hint { p.muted { bdi { (hint) } } }
    }
}

/// A moment as people say it, exact on demand.
fn when(now: SystemTime, then: OffsetDateTime) -> Markup {
    at(now, then.into())
}

fn at(now: SystemTime, then: SystemTime) -> Markup {
    let exact = rfc3339(then);
    html! { time datetime=(exact) title=(exact) { (relative(now, then)) } }
}

fn state(view: &ExecutorView) -> Markup {
    html! { span.state data-state=(view.state()) { (view.state()) } }
}

/// Where the page of an executor is.
fn executor_address(id: &str) -> String {
    format!("/executors/{}", path_segment(id))
}

/// What can be done to an executor. Without the script, which asks first and shows the effect, nothing can.
fn actions(view: &ExecutorView) -> Markup {
    let button = |act: &str, name: &str| {
        html! {
            button type="button" data-act=(act) data-id=(view.id) data-name=(view.name)
                aria-label=(format!("{name} {}", view.name)) { (name) }
        }
    };
    html! {
        @if view.revocation.is_some() { (button("reinstate", "Reinstate")) }
        @else { (button("revoke", "Revoke")) }
    }
}
