//! Refusals and the audit log, as lists beside a table and as pages.

use std::time::SystemTime;

use maud::{Markup, html};

use super::{Frame, executor_address, page as framed, when};
use crate::access_point::AttemptView;
use crate::access_point::dashboard::pages::AuditQuery;
use crate::audit::{Event, Outcome, Past};

/// `GET /rejections`
pub(in crate::access_point::dashboard) fn rejections(
    frame: &Frame,
    refusals: &[AttemptView],
    shed: u64,
) -> Markup {
    let main = html! {
        section.panel {
            h1 { "Rejections" }
            div #refused data-live {
                p.muted.pad { "The last peers that were turned away since this access point started, newest first."
                    @if shed > 0 { " " (shed) " connections were reset for want of a place; nobody knows whose they were." } }
                (rejection_list(frame.at, refusals, false))
            }
        }
    };
    framed(frame, "Rejections", main)
}

/// `GET /audit`
pub(in crate::access_point::dashboard) fn audit(
    frame: &Frame,
    query: &AuditQuery,
    lines: &Result<Vec<Past>, String>,
) -> Markup {
    let main = html! {
        section.panel {
            h1 { "Audit log" }
            form.search #search method="get" action="/audit" role="search" {
                label.unseen for="q" { "Search the audit log" }
                input #q type="search" name="q" value=(query.q) placeholder="Search id, address, reason, serial" autocomplete="off" spellcheck="false" aria-keyshortcuts="/";
                label.unseen for="event" { "Event" }
                select #event name="event" {
                    option value="" { "All events" }
                    @for event in Event::ALL {
                        option value=(event.as_str()) selected[event.as_str() == query.event] { (event.as_str()) }
                    }
                }
                noscript { button type="submit" { "Search" } }
            }
            div #lines data-live { (audit_list(frame.at, lines)) }
        }
    };
    framed(frame, "Audit log", main)
}

/// Refused attempts, or accepted ones among them; `brief` beside a table.
pub(in crate::access_point::dashboard) fn rejection_list(
    now: SystemTime,
    attempts: &[AttemptView],
    brief: bool,
) -> Markup {
    html! {
        @if attempts.is_empty() { p.empty { "None that this access point remembers." } }
        @else {
            ul.list.rejections {
                @for attempt in attempts { li { (rejection(now, attempt, brief)) } }
            }
        }
    }
}

fn rejection(now: SystemTime, attempt: &AttemptView, brief: bool) -> Markup {
    let code = attempt.code.map_or("admitted", |code| code.as_str());
    html! {
        div.head {
            span.code data-outcome=(if attempt.admitted { "success" } else { "failure" }) { (code) }
            @if attempt.times > 1 { span.times { "×" (attempt.times) } }
            (when(now, attempt.at))
        }
        div.whom {
            @match &attempt.id {
                Some(id) => {
                    a href=(executor_address(id)) { bdi { (id) } }
                    @if attempt.vouched == Some(false) { span.muted { " (claimed)" } }
                }
                None => span.muted { "no certificate" },
            }
            @if let Some(peer) = attempt.peer { " " code { (peer) } }
        }
        @if let Some(reason) = &attempt.reason { p.reason { bdi { (reason) } } }
        @if !brief {
            @if let Some(name) = &attempt.name { p.cause { "calls itself " bdi { (name) } } }
            @for cause in &attempt.causes { p.cause { bdi { (cause) } } }
            @if let Some(nearest) = &attempt.nearest {
                p.cause { "nearest rule: " code { (nearest.rule) } " – " bdi { (nearest.difference) } }
            }
            @if attempt.rules_admit_now == Some(true) { p.cause { "the rules of now would admit it" } }
            @if !attempt.sans.is_empty() { p.cause { "names: " bdi { (attempt.sans.join(", ")) } } }
            @if let Some(issuer) = &attempt.issuer { p.cause { "issued by " bdi { (issuer) } } }
            @if let Some(hint) = &attempt.hint { p.hint { bdi { (hint) } } }
        }
    }
}

/// Lines of the audit log, newest first, or why they cannot be read.
pub(in crate::access_point::dashboard) fn audit_list(
    now: SystemTime,
    lines: &Result<Vec<Past>, String>,
) -> Markup {
    html! {
        @match lines {
            Err(why) => p.empty { bdi { (why) } },
            Ok(lines) if lines.is_empty() => p.empty { "No lines." },
            Ok(lines) => ul.list.audit { @for line in lines { li { (audit_line(now, line)) } } },
        }
    }
}

fn audit_line(now: SystemTime, line: &Past) -> Markup {
    let entry = &line.entry;
    let outcome = match entry.outcome {
        Outcome::Success => "success",
        Outcome::Failure => "failure",
    };
    html! {
        div.head {
            span.code data-outcome=(outcome) data-event=(entry.event.as_str()) { (entry.event.as_str()) }
            (when(now, line.at))
        }
        @if entry.executor_id.is_some() || entry.peer.is_some() {
            div.whom {
                @if let Some(id) = &entry.executor_id { a href=(executor_address(id.as_str())) { bdi { (id) } } }
                @if let Some(peer) = entry.peer { " " code { (peer) } }
            }
        }
        @if let Some(reason) = &entry.reason { p.reason { bdi { (reason) } } }
    }
}
