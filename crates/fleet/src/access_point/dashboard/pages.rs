//! What each page is made of.

use std::sync::Arc;
use std::time::Duration;

use ah_identity_provider::{Code, Explained};
use axum::Extension;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::fleet::{FleetQuery, select};
use super::views::{self, Frame, Place};
use super::{Dashboard, views::executor::Known};
use crate::access_point::http::gate::Caller;
use crate::access_point::operations::AuditFilter;
use crate::access_point::{NotDone, Selector};
use crate::audit::Event;

/// What stands beside the table.
const LATELY: usize = 10;
/// What a page of its own shows.
const MANY: usize = 200;
/// "Lately", of refusals.
const HOUR: Duration = Duration::from_secs(3600);

impl Dashboard {
    fn frame(&self, place: Place, caller: Caller) -> Frame {
        Frame {
            place,
            caller,
            own: self.operator.access_point(),
            not_ready: self.operator.not_ready(),
            at: self.operator.now(),
        }
    }
}

/// `GET /`
pub(super) async fn fleet(
    State(dashboard): State<Arc<Dashboard>>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<FleetQuery>, QueryRejection>,
) -> Response {
    let frame = dashboard.frame(Place::Fleet, caller);
    let query = match query {
        Ok(Query(query)) => query,
        Err(why) => return bad(&frame, &why),
    };
    let snapshot = dashboard.listing.now().await;
    let operator = &dashboard.operator;
    let audit = operator.audit_tail(LATELY, AuditFilter::default()).await;
    let hour_ago = frame.at.checked_sub(HOUR).unwrap_or(frame.at);
    let beside = views::fleet::Beside {
        refusals: operator.refusals(LATELY / 2),
        refused_lately: operator.refused_since(hour_ago),
        audit,
        store_error: snapshot.listing.store_error.clone(),
    };
    let selection = select(&snapshot.listing.executors, &query, snapshot.at);
    views::fleet::page(&frame, &query, &selection, &beside).into_response()
}

/// `GET /executors/{id}`
pub(super) async fn executor(
    State(dashboard): State<Arc<Dashboard>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Response {
    let operator = &dashboard.operator;
    let found = operator.show(&Selector(id.clone())).await;
    let frame = dashboard.frame(Place::Executor, caller);
    let (status, known) = match found {
        Ok(view) => (StatusCode::OK, Known::Executor(Box::new(view))),
        Err(NotDone::Unknown(_)) => (StatusCode::NOT_FOUND, Known::Nobody(id)),
        Err(NotDone::Conflict(why)) => {
            return views::trouble(&frame, StatusCode::CONFLICT, &why).into_response();
        }
        Err(why) => {
            let why = why.explained();
            return views::trouble(&frame, StatusCode::SERVICE_UNAVAILABLE, why).into_response();
        }
    };
    let filter = AuditFilter {
        executor: Some(known.id().to_owned()),
        ..AuditFilter::default()
    };
    let audit = operator.audit_tail(2 * LATELY, filter).await;
    let attempts = operator.attempts_of(known.id(), LATELY);
    let page = views::executor::page(&frame, &known, &attempts, &audit);
    (status, page).into_response()
}

/// `GET /rejections`
pub(super) async fn rejections(
    State(dashboard): State<Arc<Dashboard>>,
    Extension(caller): Extension<Caller>,
) -> Response {
    let frame = dashboard.frame(Place::Rejections, caller);
    let operator = &dashboard.operator;
    views::lately::rejections(&frame, &operator.refusals(MANY), operator.shed()).into_response()
}

/// What the address of the audit page asks for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct AuditQuery {
    /// Text of the line.
    pub(super) q: String,
    /// Kind, or nothing.
    pub(super) event: String,
}

/// `GET /audit`
pub(super) async fn audit(
    State(dashboard): State<Arc<Dashboard>>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<AuditQuery>, QueryRejection>,
) -> Response {
    let frame = dashboard.frame(Place::Audit, caller);
    let query = match query {
        Ok(Query(query)) => query,
        Err(why) => return bad(&frame, &why),
    };
    let event = Event::ALL
        .into_iter()
        .find(|event| event.as_str() == query.event);
    if event.is_none() && !query.event.is_empty() {
        let kinds = Event::ALL.map(Event::as_str).join(", ");
        let why = Explained::new(Code::Usage, format!("no event is called {}", query.event))
            .hint(format!("events are {kinds}"));
        return views::trouble(&frame, StatusCode::BAD_REQUEST, &why).into_response();
    }
    let filter = AuditFilter {
        executor: None,
        event,
        text: query.q.trim().to_owned(),
    };
    let lines = dashboard.operator.audit_tail(MANY, filter).await;
    views::lately::audit(&frame, &query, &lines).into_response()
}

fn bad(frame: &Frame, why: &QueryRejection) -> Response {
    let told = Explained::new(Code::Usage, "the address cannot be understood")
        .cause(why.body_text())
        .hint("begin at the first page");
    views::trouble(frame, why.status(), &told).into_response()
}
