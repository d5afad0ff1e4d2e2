//! A policy in Rego instead of the built-in one (`experimental.auth_opa_policy_engine`).
//!
//! The policy is of `package spire`, and is asked for its `result` with upstream's `input`. It is Rego v1, as with the
//! Open Policy Agent that upstream has in it.

use std::fmt;
use std::fs;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use ah_spire_plugin::server::OpaPolicy;
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use regorus::utils::limits::{ExecutionTimerConfig, set_fallback_execution_timer_config};
use regorus::{CompiledPolicy, Engine};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tonic::Status;

use super::request::Requests;
use super::{Allowed, functions};
use crate::api::MAX_REQUEST_BYTES;

/// Where policies answer.
const RESULT: &str = "data.spire.result";

/// Before each message (gRPC over HTTP/2, Length-Prefixed-Message): whether it is compressed, and its length.
const PREFIX: usize = 5;

/// How long a policy may think about one call. Most take less than a thousandth of it.
const LIMIT: Duration = Duration::from_secs(2);

/// Steps of a policy between two looks at the time.
const STEPS: NonZeroU32 = NonZeroU32::MIN.saturating_add(31);

/// What an operator's policy says.
pub struct RegoPolicy {
    compiled: CompiledPolicy,
    requests: Requests,
    /// As many calls are judged at once as there are processors; the others wait.
    turns: Arc<Semaphore>,
}

/// A call that is judged.
#[derive(Clone, Default)]
pub(in crate::api) struct Question {
    /// The SPIFFE ID that was proved; empty without one.
    pub(in crate::api) caller: String,
    /// The program at the other end of the local socket, where it is known.
    pub(in crate::api) program: String,
    /// `/<service>/<method>`
    pub(in crate::api) method: String,
    /// `null` for streams.
    pub(in crate::api) request: Value,
}

/// Why a policy has no answer.
#[derive(Debug)]
pub(super) struct NoAnswer {
    /// File, line and column, where there is one.
    place: Option<String>,
    why: String,
}

impl From<String> for NoAnswer {
    fn from(why: String) -> Self {
        Self { place: None, why }
    }
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.why)
    }
}

impl RegoPolicy {
    /// Reads the files that `told` names, and asks the policy about a few calls.
    ///
    /// # Errors
    /// What an operator has to change, with file and line.
    pub fn load(told: &OpaPolicy) -> Result<Self, String> {
        let failed = |why: String| format!("experimental.auth_opa_policy_engine: {why}");
        Self::open(told).map_err(failed)
    }

    fn open(told: &OpaPolicy) -> Result<Self, String> {
        let path = &told.rego_path;
        let text = read("rego_path", path)?;
        set_fallback_execution_timer_config(Some(ExecutionTimerConfig {
            limit: LIMIT,
            check_interval: STEPS,
        }));
        let mut engine = Engine::new();
        // Otherwise any error within a function, also one of time or of a contradiction, would be undefined: yes to `not`.
        engine.set_strict_builtin_errors(true);
        if let Some(path) = &told.policy_data_path {
            let data = data(path)?;
            let taken = engine.add_data(rego(data)?);
            taken.map_err(|error| format!("policy_data_path {}: {error}", path.display()))?;
        }
        let file = path.display().to_string();
        engine.add_policy(file.clone(), text).map_err(|error| {
            let (place, why) = located(&error.to_string());
            let place = place.unwrap_or(file.clone());
            format!("rego_path {place}: {why}; policies are Rego v1, with `if` before the body of a rule")
        })?;
        functions::check(&engine).map_err(|why| format!("rego_path {file}:{why}"))?;
        let compiled = engine.compile_with_entrypoint(&RESULT.into());
        let compiled = compiled.map_err(|error| {
            let (place, why) = located(&error.to_string());
            let place = place.unwrap_or(file.clone());
            format!(
                "rego_path {place}: {why}; it has to be of `package spire` and to define `result`"
            )
        })?;
        let policy = Self {
            compiled,
            requests: Requests::new()?,
            turns: Arc::new(Semaphore::new(
                available_parallelism().map_or(1, Into::into),
            )),
        };
        for question in samples() {
            let judged = policy.judge(&question);
            judged.map_err(|why| {
                let Question { method, caller, .. } = &question;
                format!("rego_path {file}: asked about {method} by caller \"{caller}\": {why}")
            })?;
        }
        Ok(policy)
    }

    /// Whether the request of the method at `path` is shown to the policy.
    fn shows(&self, path: &str) -> bool {
        self.requests.is_shown(path)
    }

    /// Who may do this. Whoever waits for it blocks nobody.
    pub(in crate::api) async fn allowed(
        self: &Arc<Self>,
        question: Question,
    ) -> Result<Allowed, Status> {
        let method = question.method.clone();
        let turn = self.turns.clone().acquire_owned().await;
        let policy = self.clone();
        let judged = tokio::task::spawn_blocking(move || {
            let judged = policy.judge(&question);
            drop(turn);
            judged
        });
        let judged = judged
            .await
            .unwrap_or_else(|_| Err("it could not be evaluated".to_owned().into()));
        judged.map_err(|error| {
            tracing::error!(%error, method, "Authorization failure from OPA auth");
            // Where the policy lies is nobody's business who may not even have proved an identity.
            Status::unknown(format!("policy: {}", error.why))
        })
    }

    pub(super) fn judge(&self, question: &Question) -> Result<Allowed, NoAnswer> {
        let input = json!({
            "caller": question.caller,
            "caller_file_path": question.program,
            "full_method": question.method,
            "req": question.request,
        });
        let result = self.compiled.eval_with_input(rego(input)?);
        let result = result.map_err(|error| {
            let (place, why) = located(&error.to_string());
            NoAnswer { place, why }
        })?;
        let result = result
            .as_object()
            .map_err(|_| "its result is undefined, or no object".to_owned())?;
        let told = |name: &str| {
            let value = result.get(&name.into());
            let value = value.and_then(|value| value.as_bool().ok().copied());
            value.ok_or_else(|| {
                format!(
                    "its result has no boolean \"{name}\"; `default {name} := false` gives it one"
                )
            })
        };
        Ok(Allowed {
            anybody: told("allow")?,
            local: told("allow_if_local")?,
            admin: told("allow_if_admin")?,
            downstream: told("allow_if_downstream")?,
            agent: told("allow_if_agent")?,
        })
    }
}

/// The request at `path` as `policy` sees it, and its body as it came.
pub(in crate::api) async fn request_of(
    policy: &RegoPolicy,
    path: &str,
    body: Incoming,
) -> Result<(Value, tonic::body::Body), Status> {
    if !policy.shows(path) {
        return Ok((Value::Null, tonic::body::Body::new(body)));
    }
    let whole = Limited::new(body, PREFIX + MAX_REQUEST_BYTES)
        .collect()
        .await;
    let whole = whole.map_err(|error| {
        let most = MAX_REQUEST_BYTES;
        Status::resource_exhausted(format!(
            "request larger than {most} bytes, or cut off: {error}"
        ))
    })?;
    let whole = whole.to_bytes();
    let request = policy.requests.read(path, message(&whole)?);
    let request =
        request.map_err(|error| Status::internal(format!("request cannot be read: {error}")))?;
    let body = http_body_util::Full::new(whole);
    Ok((request, tonic::body::Body::new(body)))
}

/// The one message of a call. What a policy judges has to be all that the service gets to see.
fn message(whole: &Bytes) -> Result<&[u8], Status> {
    let (prefix, message) = whole
        .split_first_chunk::<PREFIX>()
        .ok_or_else(|| Status::internal("request without a message"))?;
    let [compressed, length @ ..] = *prefix;
    if compressed != 0 {
        return Err(Status::unimplemented(
            "compressed requests are not supported",
        ));
    }
    if usize::try_from(u32::from_be_bytes(length)) != Ok(message.len()) {
        return Err(Status::internal(
            "request with more or less than one message",
        ));
    }
    Ok(message)
}

/// What cannot be taken over whole would be undefined, by which a `not` lets in everybody.
fn rego(value: Value) -> Result<regorus::Value, String> {
    match regorus::Value::from(value) {
        regorus::Value::Undefined => Err("this JSON cannot be judged".into()),
        value => Ok(value),
    }
}

fn read(key: &str, path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{key} {}: {error}", path.display()))
}

fn data(path: &Path) -> Result<Value, String> {
    let text = read("policy_data_path", path)?;
    let told = |line: usize, column: usize, why: &str| {
        let path = path.display();
        format!("policy_data_path {path}:{line}:{column}: {why}")
    };
    let data = serde_json::from_str::<Value>(&text);
    let data = data.map_err(|error| {
        let why = error.to_string();
        let why = why.split(" at line ").next().unwrap_or_default();
        told(error.line(), error.column(), why)
    })?;
    if !data.is_object() {
        return Err(told(1, 1, "it has to be a JSON object"));
    }
    Ok(data)
}

/// Place and text of an error, which has them among lines that show the policy.
fn located(error: &str) -> (Option<String>, String) {
    let place = error.lines().find_map(|line| line.strip_prefix("--> "));
    let texts = error.lines().rev();
    let text = { texts }.find_map(|line| line.strip_prefix("error: "));
    // What followed it were lines of the policy.
    let text = text.map(|text| text.trim_end_matches(':'));
    let whole = || error.split_whitespace().collect::<Vec<_>>().join(" ");
    (
        place.map(str::to_owned),
        text.map_or_else(whole, str::to_owned),
    )
}

/// Calls of each shape: nothing is made of the answers, but each has to be one.
fn samples() -> Vec<Question> {
    let entry = |path: &str| {
        json!({
            "spiffe_id": { "trust_domain": "sample.test", "path": path },
            "parent_id": { "trust_domain": "sample.test", "path": "/node" },
            "selectors": [{ "type": "unix", "value": "uid:1" }],
        })
    };
    let mut known = entry("/known");
    if let Some(fields) = known.as_object_mut() {
        fields.insert("id".into(), "known".into());
    }
    let join = json!({ "ttl": 60, "agent_id": { "trust_domain": "sample.test", "path": "/node" } });
    let create = "/spire.api.server.entry.v1.Entry/BatchCreateEntry";
    let list = "/spire.api.server.entry.v1.Entry/ListEntries";
    let asked = [
        (
            "",
            "/spire.api.server.bundle.v1.Bundle/GetBundle",
            json!({}),
        ),
        ("", "/grpc.health.v1.Health/Check", json!({})),
        ("", "/spire.api.server.agent.v1.Agent/CreateJoinToken", join),
        (
            "",
            "/spire.api.server.agent.v1.Agent/AttestAgent",
            Value::Null,
        ),
        ("", create, json!({ "entries": [entry("/a"), known] })),
        ("", list, json!({ "filter": {} })),
        (
            "spiffe://sample.test/a",
            create,
            json!({ "entries": [entry("/b")] }),
        ),
        ("spiffe://sample.test/a", list, json!({ "filter": {} })),
    ];
    let asked = asked.into_iter();
    asked
        .map(|(caller, method, request)| Question {
            caller: caller.to_owned(),
            program: String::new(),
            method: method.to_owned(),
            request,
        })
        .collect()
}
