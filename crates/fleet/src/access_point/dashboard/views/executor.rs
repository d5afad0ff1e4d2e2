//! One executor: who it is now, the certificates it had, its attempts, its lines of the audit log.

use std::time::SystemTime;

use maud::{Markup, html};

use super::lately::{audit_list, rejection_list};
use super::{Frame, actions, page as framed, state, when};
use crate::access_point::{AttemptView, ExecutorView, LiveView};
use crate::audit::Past;
use crate::store::HistoryEntry;

/// Whom a page is about.
pub(in crate::access_point::dashboard) enum Known {
    /// Enrolled now or once.
    Executor(Box<ExecutorView>),
    /// An id that never enrolled; it may have been refused.
    Nobody(String),
}

impl Known {
    pub(in crate::access_point::dashboard) fn id(&self) -> &str {
        match self {
            Self::Executor(view) => &view.id,
            Self::Nobody(id) => id,
        }
    }
}

/// `GET /executors/{id}`
pub(in crate::access_point::dashboard) fn page(
    frame: &Frame,
    known: &Known,
    attempts: &[AttemptView],
    audit: &Result<Vec<Past>, String>,
) -> Markup {
    let now = frame.at;
    let main = html! {
        div #executor data-live {
            @match known {
                Known::Executor(view) => (about(view, now)),
                Known::Nobody(id) => section.panel.pad {
                    h1 { bdi { (id) } }
                    p.muted { "No executor is known by this name. What was refused under it is below." }
                },
            }
        }
        div.halves {
            section.panel aria-labelledby="attempts-title" {
                h2 #attempts-title { "Last attempts" }
                div #attempts data-live { (rejection_list(now, attempts, false)) }
            }
            section.panel aria-labelledby="lines-title" {
                h2 #lines-title { "Audit log" }
                div #lines data-live { (audit_list(now, audit)) }
            }
        }
    };
    let title = match known {
        Known::Executor(view) => &view.name,
        Known::Nobody(id) => id,
    };
    framed(frame, title, main)
}

fn about(view: &ExecutorView, now: SystemTime) -> Markup {
    html! {
        section.panel.about {
            div.heading {
                div {
                    h1 { bdi { (view.name) } " " (state(view)) }
                    p.id { bdi { (view.id) } }
                }
                div.act {
                    @if view.live.is_some() {
                        button type="button" data-act="disconnect" data-id=(view.id) data-name=(view.name) { "Disconnect" }
                    }
                    (actions(view))
                }
            }
            @if let Some(bar) = &view.revocation {
                p.notice.bad { strong { "Revoked " (when(now, bar.at)) } @if !bar.reason.is_empty() { ": " bdi { (bar.reason) } } }
            }
            div.facts {
                (certificate(view, now))
                (session(view.live.as_ref(), now))
                (host(view))
            }
        }
        section.panel aria-labelledby="history-title" {
            h2 #history-title { "Certificates" span.muted { " · " (view.history.len()) " remembered" } }
            (timeline(view, now))
            (history(view, now))
        }
    }
}

fn certificate(view: &ExecutorView, now: SystemTime) -> Markup {
    let certificate = &view.certificate;
    html! {
        dl {
            dt { "Certificate ends" } dd { (when(now, certificate.not_after)) }
            dt { "Serial" } dd { code #serial { (certificate.serial) } }
            dt { "SHA-256" } dd { code #sha256 { (certificate.sha256) } }
            @if let Some(provider) = view.provider { dt { "Provider" } dd { (provider) } }
            @if let Some(first) = view.first_enrolled { dt { "First enrolled" } dd { (when(now, first)) } }
            dt { "Last enrolled" } dd { (when(now, view.last_enrolled)) }
        }
    }
}

fn session(live: Option<&LiveView>, now: SystemTime) -> Markup {
    html! {
        dl {
            @match live {
                None => { dt { "Session" } dd { "not connected" } },
                Some(live) => {
                    dt { "Connected from" } dd { code { (live.peer) } }
                    dt { "Since" } dd { (when(now, live.since)) }
                    dt { "Last heard" } dd { (live.last_heard_ms) " ms ago" }
                    @if let Some(us) = live.round_trip_us { dt { "Round trip" } dd { (us) " µs" } }
                    dt { "Session" } dd { code { (live.session_id) } }
                },
            }
        }
    }
}

fn host(view: &ExecutorView) -> Markup {
    let host = &view.host;
    html! {
        dl {
            dt { "Host" } dd { bdi { (host.hostname) } }
            dt { "System" } dd { bdi { (host.os) " " (host.arch) } ", " bdi { (host.kernel) } }
            dt { "Size" } dd { (host.cpus) " CPUs, " (host.memory_bytes >> 20) " MiB" }
            dt { "Version" } dd { bdi { (view.version) } }
            dt { "Labels" } dd.labels {
                @for (key, value) in &view.labels { span.label { bdi { (key) "=" (value) } } " " }
                @if view.labels.is_empty() { span.muted { "none" } }
            }
        }
    }
}

/// The time that each remembered certificate was in use, and what is left of the last.
fn timeline(view: &ExecutorView, now: SystemTime) -> Markup {
    let seconds = |time: SystemTime| {
        time.duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs())
    };
    let begins: Vec<u64> = view
        .history
        .iter()
        .map(|entry| seconds(entry.at.into()))
        .collect();
    let (Some(first), Some(last)) = (begins.iter().min().copied(), begins.last().copied()) else {
        return html! {};
    };
    let now_at = seconds(now).max(first);
    let end = seconds(view.certificate.not_after.into()).max(now_at);
    let whole = (end - first).max(1);
    let x = |moment: u64| {
        moment
            .clamp(first, end)
            .saturating_sub(first)
            .saturating_mul(1000)
            / whole
    };
    let ends = begins.iter().skip(1).copied().chain([now_at]);
    html! {
        figure.timeline {
            svg viewBox="0 0 1000 24" preserveAspectRatio="none" role="img" aria-label="Certificates in the order of time" {
                @for (n, (begin, until)) in begins.iter().copied().zip(ends).enumerate() {
                    rect.used data-odd=[(n % 2 == 1).then_some("")] x=(x(begin)) y="4" height="16" width=(x(until).saturating_sub(x(begin)).max(2)) {}
                }
                rect.left x=(x(now_at.max(last))) y="4" height="16" width=(x(end).saturating_sub(x(now_at.max(last)))) {}
                rect.now x=(x(now_at).min(998)) y="0" height="24" width="2" {}
            }
            figcaption {
                span { @if let Some(first) = view.history.first() { (when(now, first.at)) } }
                span { "ends " (when(now, view.certificate.not_after)) }
            }
        }
    }
}

fn history(view: &ExecutorView, now: SystemTime) -> Markup {
    let newest_first: Vec<&HistoryEntry> = view.history.iter().rev().collect();
    html! {
        @if newest_first.is_empty() { p.empty { "The store has not told of any." } }
        @else {
            div.scroll {
                table.history {
                    thead { tr { th scope="col" { "Enrolled" } th scope="col" { "Ends" } th scope="col" { "Provider" } th scope="col" { "Serial" } } }
                    tbody {
                        @for entry in newest_first {
                            tr {
                                td { (when(now, entry.at)) }
                                td { (when(now, entry.certificate.not_after)) }
                                td { @if let Some(provider) = entry.provider { (provider) } }
                                td { code { (entry.certificate.serial) } }
                            }
                        }
                    }
                }
            }
        }
    }
}
