//! The HTTP side: health, metrics, and the REST interface that operators and their tools use.
//!
//! One router serves two doors. The admin socket is open to whoever may open the file (mode 0600). The TCP
//! listener asks for a bearer token for everything but health, and for metrics from this machine; a browser shows
//! it once and has a session from then on.

pub(super) mod gate;
mod sessions;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use ah_identity_provider::{Code, Explained};
use axum::Json;
use axum::body::Body;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequest, OptionalFromRequest, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use utoipa::{OpenApi, ToSchema};

use super::Operator;
use super::dashboard::{self, Dashboard};
use super::operations::{
    AccessPointView, AttemptView, BarView, EventFilter, ExecutorView, FleetEvent, ListFilter,
    Listing, LiveView, NearestView, NotDone, Selector, Why, WhyFilter,
};
use crate::store::RevocationTarget;
pub use gate::Token;
use gate::{Door, TcpDoor, guard, guard_metrics};

/// The router behind the admin socket.
pub fn admin_router(operator: Operator) -> axum::Router {
    router(operator, Door::AdminSocket)
}

/// The router behind `--http-listen`, bound to `address`; `tls` when it is HTTPS. It has the dashboard, too.
pub fn tcp_router(
    operator: Operator,
    token: Option<watch::Receiver<Token>>,
    address: SocketAddr,
    tls: bool,
) -> axum::Router {
    let door = Arc::new(TcpDoor::new(token, address, tls));
    let pages = Dashboard::new(operator.clone(), Arc::clone(&door));
    router(operator, Door::Tcp(door))
        .layer(middleware::from_fn_with_state(
            Arc::clone(&pages),
            dashboard::look_again,
        ))
        .merge(dashboard::router(pages))
}

/// The OpenAPI 3.1 document of the REST interface, as JSON.
pub fn openapi() -> String {
    ApiDoc::openapi().to_pretty_json().unwrap_or_default()
}

fn router(operator: Operator, door: Door) -> axum::Router {
    let rest = axum::Router::new()
        .route("/access-point", get(access_point))
        .route("/executors", get(list))
        .route("/executors/{selector}", get(show))
        .route("/executors/{selector}/revoke", post(revoke))
        .route("/executors/{selector}/reinstate", post(reinstate))
        .route("/executors/{selector}/disconnect", post(disconnect))
        .route("/attempts/{selector}", get(why))
        .route("/events", get(events))
        .layer(middleware::from_fn_with_state(door.clone(), guard));
    let reader = match door {
        Door::AdminSocket => get(metrics),
        Door::Tcp { .. } => get(scraped),
    };
    axum::Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/openapi.json", get(document))
        .route(
            "/metrics",
            reader.layer(middleware::from_fn_with_state(door, guard_metrics)),
        )
        .nest("/api/v1", rest)
        .with_state(operator)
}

/// An error as JSON: `{"code":…,"text":…,"causes":[…],"hint":…}`.
struct Failure(StatusCode, Explained);

impl From<NotDone> for Failure {
    fn from(why: NotDone) -> Self {
        let status = match why {
            NotDone::Unknown(_) => StatusCode::NOT_FOUND,
            NotDone::Conflict(_) => StatusCode::CONFLICT,
            NotDone::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            NotDone::Refused(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, why.explained().clone())
    }
}

/// What the caller sent is not what the interface takes.
fn bad(status: StatusCode, why: String) -> Failure {
    let explained = Explained::new(Code::Usage, "the request cannot be understood");
    Failure(
        status,
        explained
            .cause(why)
            .hint("/openapi.json says what is understood"),
    )
}

impl From<QueryRejection> for Failure {
    fn from(why: QueryRejection) -> Self {
        bad(why.status(), why.body_text())
    }
}

impl From<JsonRejection> for Failure {
    fn from(why: JsonRejection) -> Self {
        bad(why.status(), why.body_text())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
    }
}

/// Whether the access point is ready, and if not, why.
#[derive(Serialize, ToSchema)]
struct Readiness {
    ready: bool,
    /// One line for each thing that is wrong.
    reasons: Vec<String>,
}

/// 200 when everything works; 503 with the reasons when something needs a person. Enrolled executors are
/// served either way.
#[utoipa::path(get, path = "/readyz", responses((status = 200, body = Readiness), (status = 503, body = Readiness)))]
async fn readyz(State(operator): State<Operator>) -> impl IntoResponse {
    let reasons = operator.not_ready();
    let ready = reasons.is_empty();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(Readiness { ready, reasons }))
}

/// Metrics in the OpenMetrics text format.
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String, content_type = "application/openmetrics-text")))]
async fn metrics(State(operator): State<Operator>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], operator.metrics())
}

/// As [`metrics`], for whoever collects them: when they were last read is told.
async fn scraped(State(operator): State<Operator>) -> impl IntoResponse {
    operator.note_scrape();
    metrics(State(operator)).await
}

async fn document() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], openapi())
}

/// The access point itself: where it listens, its certificate, how many executors are enrolled.
#[utoipa::path(get, path = "/api/v1/access-point", responses((status = 200, body = AccessPointView)))]
async fn access_point(State(operator): State<Operator>) -> Json<AccessPointView> {
    Json(operator.access_point())
}

/// Executors, live or remembered.
#[utoipa::path(get, path = "/api/v1/executors", params(ListFilter), responses((status = 200, body = Listing), (status = 400, body = ErrorBody)))]
async fn list(
    State(operator): State<Operator>,
    filter: Result<Query<ListFilter>, QueryRejection>,
) -> Result<Json<Listing>, Failure> {
    let Query(filter) = filter?;
    Ok(Json(operator.list(&filter).await))
}

/// One executor, by id, name, certificate serial number or SHA-256.
#[utoipa::path(get, path = "/api/v1/executors/{selector}",
    params(("selector" = String, Path, description = "id (percent-encoded), name, serial number or SHA-256")),
    responses((status = 200, body = ExecutorView), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody, description = "several have that name"), (status = 503, body = ErrorBody)))]
async fn show(
    State(operator): State<Operator>,
    Path(selector): Path<String>,
) -> Result<Json<ExecutorView>, Failure> {
    Ok(Json(operator.show(&Selector(selector)).await?))
}

/// The last attempts to enroll, refused and accepted, of one executor or one address, and the rule that came closest.
#[utoipa::path(get, path = "/api/v1/attempts/{selector}",
    params(("selector" = String, Path, description = "id (percent-encoded), name, serial number, SHA-256, or the address it comes from"), WhyFilter),
    responses((status = 200, body = Why), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody, description = "no attempt is known")))]
async fn why(
    State(operator): State<Operator>,
    Path(selector): Path<String>,
    filter: Result<Query<WhyFilter>, QueryRejection>,
) -> Result<Json<Why>, Failure> {
    let Query(filter) = filter?;
    Ok(Json(operator.why(&Selector(selector), &filter).await?))
}

/// A JSON body that may be left out.
struct OptionalJson<T>(Result<Option<Json<T>>, JsonRejection>);

impl<T, S> FromRequest<S> for OptionalJson<T>
where
    T: serde::de::DeserializeOwned,
    S: Send + Sync,
{
    type Rejection = Infallible;

    async fn from_request(request: Request, state: &S) -> Result<Self, Infallible> {
        let read = <Json<T> as OptionalFromRequest<S>>::from_request(request, state);
        Ok(Self(read.await))
    }
}

/// Why an executor is barred.
#[derive(Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
struct RevokeRequest {
    /// In the operator's words.
    reason: String,
}

/// Bars an executor (by id or name) or one certificate (by serial number or SHA-256): its live session ends
/// and its next handshake is refused, also after a restart.
#[utoipa::path(post, path = "/api/v1/executors/{selector}/revoke",
    params(("selector" = String, Path, description = "id (percent-encoded), name, serial number or SHA-256")),
    request_body = Option<RevokeRequest>,
    responses((status = 200, body = RevocationTarget), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 503, body = ErrorBody, description = "in force, but not yet durable"), (status = 500, body = ErrorBody, description = "in force until a restart")))]
async fn revoke(
    State(operator): State<Operator>,
    Path(selector): Path<String>,
    request: OptionalJson<RevokeRequest>,
) -> Result<Json<RevocationTarget>, Failure> {
    let reason = request
        .0?
        .map(|Json(request)| request.reason)
        .unwrap_or_default();
    Ok(Json(operator.revoke(&Selector(selector), &reason).await?))
}

/// Lifts a bar.
#[utoipa::path(post, path = "/api/v1/executors/{selector}/reinstate",
    params(("selector" = String, Path, description = "as given to revoke")),
    responses((status = 200, body = RevocationTarget), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody, description = "not revoked"), (status = 503, body = ErrorBody)))]
async fn reinstate(
    State(operator): State<Operator>,
    Path(selector): Path<String>,
) -> Result<Json<RevocationTarget>, Failure> {
    Ok(Json(operator.reinstate(&Selector(selector)).await?))
}

/// Who was disconnected.
#[derive(Serialize, ToSchema)]
struct Disconnected {
    id: String,
}

/// Ends an executor's live session. It may come back at once.
#[utoipa::path(post, path = "/api/v1/executors/{selector}/disconnect",
    params(("selector" = String, Path, description = "id (percent-encoded) or name")),
    responses((status = 200, body = Disconnected), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody, description = "not connected")))]
async fn disconnect(
    State(operator): State<Operator>,
    Path(selector): Path<String>,
) -> Result<Json<Disconnected>, Failure> {
    let id = operator.disconnect(&Selector(selector)).await?;
    Ok(Json(Disconnected { id: id.to_string() }))
}

/// What happens from now on: one JSON object a line, until the caller leaves or the access point stops. A caller that reads too slowly
/// is told how many lines it missed: `{"missed":N}`.
#[utoipa::path(get, path = "/api/v1/events", params(EventFilter),
    responses((status = 200, body = FleetEvent, content_type = "application/x-ndjson"), (status = 400, body = ErrorBody)))]
async fn events(
    State(operator): State<Operator>,
    filter: Result<Query<EventFilter>, QueryRejection>,
) -> Result<impl IntoResponse, Failure> {
    let Query(filter) = filter?;
    let watch = (operator.watch(), operator, filter);
    let lines = stream::unfold(watch, |(mut events, operator, filter)| async move {
        let line = loop {
            let event = tokio::select! {
                biased;
                event = events.recv() => event,
                // An open answer would keep the server from ending in order.
                () = operator.over() => return None,
            };
            match event {
                Ok(event) if filter.admits(&event) => break serde_json::to_string(&event).ok()?,
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => break format!("{{\"missed\":{missed}}}"),
                Err(RecvError::Closed) => return None,
            }
        };
        Some((Ok::<_, Infallible>(line + "\n"), (events, operator, filter)))
    });
    Ok((
        [(header::CONTENT_TYPE, "application/x-ndjson")],
        Body::from_stream(lines),
    ))
}

/// Why a request was not done.
#[derive(ToSchema)]
#[schema(as = Error)]
#[expect(dead_code, reason = "describes what Explained serializes to")]
pub(super) struct ErrorBody {
    /// The kind of failure, in a stable word.
    code: String,
    /// The failure in one line.
    text: String,
    /// What led to it, outermost first.
    causes: Option<Vec<String>>,
    /// What to do next.
    hint: Option<String>,
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Agent Harbor access point", description = "Executors of one access point: list, show, why, revoke, reinstate, disconnect, watch."),
    paths(readyz, metrics, access_point, list, show, why, revoke, reinstate, disconnect, events),
    components(schemas(AccessPointView, AttemptView, BarView, NearestView, Why, ExecutorView, LiveView, Listing, FleetEvent, Readiness, RevokeRequest, Disconnected, ErrorBody)),
    modifiers(&Security),
    security(("token" = []))
)]
struct ApiDoc;

struct Security;

impl utoipa::Modify for Security {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
        let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", bearer);
    }
}
