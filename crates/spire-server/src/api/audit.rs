//! The audit log: a line in the log for each call that was allowed, or for each item of a batch (`audit_log_enabled`,
//! inventory section 10). Names of fields are upstream's; what is secret is told by its SHA-256.

mod fields;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ah_spire_attest::peer::PeerInfo;
use ah_spire_wire::types;
use http::Response;
use serde_json::{Map, Value};
use tonic::body::Body;
use tonic::{Code, Status};

pub(super) use self::fields::{
    bundle, entry, federates_match, id, jwt_keys, relationship, selector_match, sha256,
    x509_authorities,
};
use super::caller::{Caller, Right};

/// What a line says, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    pub(super) fn with(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.0.insert(name.into(), value.into());
        self
    }

    /// As they are, under names that begin with `prefix`.
    pub(super) fn under(self, prefix: &str) -> Self {
        let fields = self.0.into_iter();
        Self(
            fields
                .map(|(name, value)| (format!("{prefix}{name}"), value))
                .collect(),
        )
    }

    /// `value` where there is one.
    pub(super) fn maybe(self, name: &str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    pub(super) fn and(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }
}

/// What is known of a process at the other end of the local socket.
pub(super) fn process(peer: &PeerInfo) -> Fields {
    let fields = Fields::default()
        .with("caller_uid", peer.uid())
        .with("caller_gid", peer.gid());
    fields.maybe("caller_path", program(peer))
}

/// The program that a process runs; `None` where the process is in another PID namespace, or has gone.
pub(super) fn program(peer: &PeerInfo) -> Option<String> {
    let path = std::fs::read_link(format!("/proc/{}/exe", peer.pid())).ok();
    path.map(|path| path.to_string_lossy().into_owned())
}

/// The record of one call; of none while the audit log is off.
#[derive(Clone, Default)]
pub(super) struct Audit(Option<Arc<Record>>);

struct Record {
    /// Who calls what.
    call: Fields,
    /// What the call is about.
    about: Mutex<Fields>,
    /// Whether its end is told by [`Audit::item`] or [`Audit::ended`].
    apart: AtomicBool,
}

impl Audit {
    /// A call of the method at `path` begins. `process` is the other end of a local connection; an administrator `by_config`
    /// is one of `admin_ids`.
    pub(super) fn begin(caller: &Caller, path: &str, process: &Fields, by_config: bool) -> Self {
        let (service, method) = path
            .trim_start_matches('/')
            .split_once('/')
            .unwrap_or_default();
        let service = service.strip_prefix("spire.api.server.").unwrap_or(service);
        let service = match service {
            "grpc.health.v1.Health" => "Health",
            "logger.v1.Logger" => "Logger",
            other => other,
        };
        let (authorized_as, authorized_via) = match caller.right() {
            Right::Anybody => ("nobody", ""),
            Right::Local => ("local", "transport"),
            Right::Admin if by_config => ("admin", "config"),
            Right::Admin => ("admin", "entries"),
            Right::Downstream(_) => ("downstream", "entries"),
            Right::Agent => ("agent", "datastore"),
        };
        let call = Fields::default()
            .with("type", "audit")
            .with("subsystem_name", "api")
            .with("service", service)
            .with("method", method)
            .with("request_id", uuid::Uuid::new_v4().to_string())
            .with("authorized_as", authorized_as)
            .with("authorized_via", authorized_via)
            .maybe("caller_addr", caller.address().map(|it| it.to_string()))
            .maybe("caller_id", caller.id().map(|it| it.to_string()))
            .and(process.clone());
        Self(Some(Arc::new(Record {
            call,
            about: Mutex::default(),
            apart: AtomicBool::new(false),
        })))
    }

    /// The record of the call that `request` came with.
    pub(super) fn of<T>(request: &tonic::Request<T>) -> Self {
        let found = request.extensions().get::<Self>();
        found.cloned().unwrap_or_default()
    }

    /// The call is about this, too.
    pub(super) fn about(&self, fields: impl FnOnce() -> Fields) {
        if let Some(record) = &self.0 {
            let mut about = record.about.lock().unwrap_or_else(PoisonError::into_inner);
            about.0.extend(fields().0);
        }
    }

    /// There is no line for the call as such: its items have theirs, or its stream ends later.
    pub(super) fn apart(&self) {
        if let Some(record) = &self.0 {
            record.apart.store(true, Ordering::Relaxed);
        }
    }

    /// One item of a batch.
    pub(super) fn item(&self, status: &types::Status, fields: impl FnOnce() -> Fields) {
        if let Some(record) = &self.0 {
            let outcome = outcome(Code::from_i32(status.code), &status.message);
            write(record.call.clone().and(outcome).and(fields()));
        }
    }

    /// A stream came to its end.
    pub(super) fn ended(&self, end: &Result<(), Status>) {
        let Some(record) = &self.0 else { return };
        let outcome = match end {
            Ok(()) => outcome(Code::Ok, ""),
            Err(status) => outcome(status.code(), status.message()),
        };
        let about = record.about.lock().unwrap_or_else(PoisonError::into_inner);
        write(record.call.clone().and(about.clone()).and(outcome));
    }

    /// The service has answered.
    pub(super) fn answered(&self, response: &Response<Body>) {
        let Some(record) = &self.0 else { return };
        // A status in the headers is an error that the service gave in the place of an answer.
        match Status::from_header_map(response.headers()) {
            Some(status) if status.code() != Code::Ok => self.ended(&Err(status)),
            _ if record.apart.load(Ordering::Relaxed) => {}
            _ => self.ended(&Ok(())),
        }
    }
}

fn outcome(code: Code, message: &str) -> Fields {
    let name = match code {
        Code::Ok => return Fields::default().with("status", "success"),
        // As Go spells it.
        Code::Cancelled => "Canceled".to_owned(),
        code => format!("{code:?}"),
    };
    Fields::default()
        .with("status", "error")
        .with("status_code", name)
        .with("status_message", message)
}

fn write(fields: Fields) {
    // Which fields there are is known only here: `log` takes them apart.
    let fields = Value::Object(fields.0);
    tracing::info!(%fields, "API accessed");
}
