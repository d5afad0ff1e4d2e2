//! The first page: the fleet in numbers, in time, and one by one.

use std::time::SystemTime;

use maud::{Markup, html};

use super::lately::{audit_list, rejection_list};
use super::{Frame, actions, at, executor_address, page as framed, state, when};
use crate::access_point::dashboard::fleet::{
    FleetQuery, ROWS, Selection, Sort, State, Totals, heard,
};
use crate::access_point::dashboard::spans::Span;
use crate::access_point::{AttemptView, ExecutorView};
use crate::audit::Past;

/// Labels of one row; the others are on the executor's own page.
const LABELS: usize = 3;

/// What stands beside the table.
pub(in crate::access_point::dashboard) struct Beside {
    pub(in crate::access_point::dashboard) refusals: Vec<AttemptView>,
    pub(in crate::access_point::dashboard) refused_lately: usize,
    pub(in crate::access_point::dashboard) audit: Result<Vec<Past>, String>,
    /// Why only live executors are known.
    pub(in crate::access_point::dashboard) store_error: Option<String>,
}

/// `GET /`
pub(in crate::access_point::dashboard) fn page(
    frame: &Frame,
    query: &FleetQuery,
    picked: &Selection<'_>,
    beside: &Beside,
) -> Markup {
    let main = html! {
        h1.unseen { "Fleet" }
        div #tiles.tiles data-live { (tiles(query, &picked.totals, beside.refused_lately)) }
        div #times.times data-live { (times(query, &picked.totals, frame.at)) }
        div.columns {
            section.panel.fleet aria-label="Executors" {
                (search(query))
                div #fleet data-live {
                    @if let Some(error) = &beside.store_error {
                        p.notice.bad { strong { "The registry's store does not answer; only live executors are shown. " } bdi { (error) } }
                    }
                    (table(query, picked, frame.at))
                }
            }
            aside {
                section.panel aria-labelledby="refused-title" {
                    h2 #refused-title { a href="/rejections" { "Rejections" } }
                    div #refused data-live { (rejection_list(frame.at, &beside.refusals, true)) }
                }
                section.panel aria-labelledby="lately-title" {
                    h2 #lately-title { a href="/audit" { "Audit log" } }
                    div #lately data-live { (audit_list(frame.at, &beside.audit)) }
                }
            }
        }
    };
    framed(frame, "Fleet", main)
}

fn tiles(query: &FleetQuery, totals: &Totals<'_>, refused: usize) -> Markup {
    let none = FleetQuery::default();
    let states = [
        (None, "All executors", totals.all, "all"),
        (
            Some(State::Enrolled),
            "Enrolled",
            totals.enrolled,
            "enrolled",
        ),
        (Some(State::Offline), "Offline", totals.offline, "offline"),
        (Some(State::Revoked), "Revoked", totals.revoked, "revoked"),
    ];
    html! {
        @for (wanted, name, count, kind) in states {
            @let current = query.state == wanted && query.ends.is_none() && query.since.is_none();
            a.tile data-state=(kind) href=(none.with(|q| { q.q.clone_from(&query.q); q.state = wanted; }).address())
                aria-current=[current.then_some("true")] {
                span.name { (name) }
                strong { (grouped(count)) }
            }
        }
        a.tile data-state="refused" href="/rejections" {
            span.name { "Refused, last hour" }
            strong { (grouped(refused)) }
        }
    }
}

/// Two charts that meet at now.
fn times(query: &FleetQuery, totals: &Totals<'_>, now: SystemTime) -> Markup {
    let only = |change: &dyn Fn(&mut FleetQuery)| {
        query
            .with(|q| {
                (q.state, q.since, q.ends) = (None, None, None);
                change(q);
            })
            .address()
    };
    let past = Span::ALL.into_iter().zip(totals.since).rev();
    let ahead = Span::ALL.into_iter().zip(totals.ends);
    html! {
        section.panel.chart aria-labelledby="since-title" {
            h2 #since-title { "Enrolled or rotated" span.muted { " · time ago" } }
            (chart(past.collect(), "past", query.since, |span| only(&|q| q.since = span)))
        }
        section.panel.chart aria-labelledby="ends-title" {
            h2 #ends-title {
                "Certificates end" span.muted { " · time left" }
                @if let Some(next) = totals.next_end {
                    span.next { "next: " a href=(executor_address(&next.id)) { bdi { (next.name) } } " " (when(now, next.certificate.not_after)) }
                }
            }
            (chart(ahead.collect(), "ahead", query.ends, |span| only(&|q| q.ends = span)))
        }
    }
}

/// Bars that are links: to the executors that they count, or back to all.
fn chart(
    bars: Vec<(Span, usize)>,
    kind: &str,
    chosen: Option<Span>,
    address: impl Fn(Option<Span>) -> String,
) -> Markup {
    let most = bars.iter().map(|(_, count)| *count).max().unwrap_or(0);
    html! {
        ul.bars data-kind=(kind) {
            @for (span, count) in bars {
                @let current = chosen == Some(span);
                // At least a line: one executor counts, also beside ten thousand.
                @let height = if count == 0 { 0 } else { (count * 100).div_ceil(most.max(1)).max(3) };
                li {
                    a href=(address((!current).then_some(span))) data-span=(span.word()) title=(span.told())
                        aria-current=[current.then_some("true")]
                        aria-label=(format!("{count}, {}", span.told())) {
                        span.count { @if count > 0 { (grouped(count)) } }
                        svg viewBox="0 0 10 100" preserveAspectRatio="none" aria-hidden="true" {
                            rect x="0" y=(100 - height) width="10" height=(height) {}
                        }
                        span.label { (if span == Span::Longer { "90d+" } else { span.word() }) }
                    }
                }
            }
        }
    }
}

fn search(query: &FleetQuery) -> Markup {
    html! {
        form.search #search method="get" action="/" role="search" {
            label.unseen for="q" { "Search executors" }
            input #q type="search" name="q" value=(query.q) placeholder="Search name, id, label=value, host, address, serial" autocomplete="off" spellcheck="false" aria-keyshortcuts="/";
            @if let Some(state) = query.state { input type="hidden" name="state" value=(state.word()); }
            @if let Some(span) = query.ends { input type="hidden" name="ends" value=(span.word()); }
            @if let Some(span) = query.since { input type="hidden" name="since" value=(span.word()); }
            noscript { button type="submit" { "Search" } }
        }
    }
}

fn table(query: &FleetQuery, picked: &Selection<'_>, now: SystemTime) -> Markup {
    html! {
        div.summary {
            p #count {
                @if picked.matching == 0 { "No executor" @if query.narrows() { " matches" } @else { " has enrolled yet" } }
                @else {
                    (grouped(picked.first + 1)) "–" (grouped(picked.first + picked.rows.len()))
                    " of " (grouped(picked.matching))
                    @if query.narrows() { " (" (grouped(picked.totals.all)) " in all)" }
                }
            }
            @if let Some(span) = query.ends { p.chip { "ends: " (span.told()) } }
            @if let Some(span) = query.since { p.chip { "enrolled or rotated: " (span.told()) } }
            @if query.narrows() { a #clear href="/" { "Clear" } }
            (pager(query, picked))
        }
        @if !picked.rows.is_empty() {
            div.scroll {
                table {
                    thead { tr {
                        (heading(query, Sort::Name, "Name"))
                        (heading(query, Sort::State, "State"))
                        th scope="col" { "Labels" }
                        th scope="col" { "From" }
                        (heading(query, Sort::Heard, "Heard"))
                        (heading(query, Sort::Since, "Rotated"))
                        (heading(query, Sort::Ends, "Ends"))
                        th scope="col" { span.unseen { "Actions" } }
                    } }
                    tbody { @for view in &picked.rows { (row(view, now)) } }
                }
            }
            @if picked.pages > 1 && picked.rows.len() == ROWS { div.summary { (pager(query, picked)) } }
        }
    }
}

fn heading(query: &FleetQuery, sort: Sort, name: &str) -> Markup {
    let current = query.sort == sort;
    let address = query
        .with(|q| {
            q.desc = current && !q.desc;
            q.sort = sort;
        })
        .address();
    let order = match (current, query.desc) {
        (true, false) => Some("ascending"),
        (true, true) => Some("descending"),
        _ => None,
    };
    html! { th scope="col" aria-sort=[order] { a href=(address) { (name) } } }
}

fn row(view: &ExecutorView, now: SystemTime) -> Markup {
    let live = view.live.as_ref();
    html! {
        tr data-id=(view.id) {
            th.who scope="row" {
                a href=(executor_address(&view.id)) { bdi { (view.name) } }
                span.id { bdi { (view.id) } }
            }
            td.is { (state(view)) }
            td.labels {
                @for (key, value) in view.labels.iter().take(LABELS) { span.label { bdi { (key) @if !value.is_empty() { "=" (value) } } } " " }
                @if view.labels.len() > LABELS { span.more { "+" (view.labels.len() - LABELS) } }
            }
            td.from {
                @if let Some(live) = live { code { (live.peer) } }
                @if !view.host.hostname.is_empty() { span.host { bdi { (view.host.hostname) } } }
            }
            td.heard { (at(now, heard(view, now))) }
            td.since { (when(now, view.last_enrolled)) }
            td.ends data-span=[live.map(|_| Span::between(now, view.certificate.not_after.into()).word())] {
                (when(now, view.certificate.not_after))
                @if let Some(provider) = view.provider { span.provider { (provider) } }
            }
            td.act { (actions(view)) }
        }
    }
}

fn pager(query: &FleetQuery, picked: &Selection<'_>) -> Markup {
    let to = |page: usize| query.with(|q| q.page = page).address();
    html! {
        @if picked.pages > 1 {
            nav.pager aria-label="Pages of the table" {
                @if picked.page > 1 { a rel="prev" href=(to(picked.page - 1)) { "← Previous" } }
                span { (grouped(picked.page)) " / " (grouped(picked.pages)) }
                @if picked.page < picked.pages { a rel="next" href=(to(picked.page + 1)) { "Next →" } }
            }
        }
    }
}

/// `12,345`
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn numbers_are_grouped_by_three() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
