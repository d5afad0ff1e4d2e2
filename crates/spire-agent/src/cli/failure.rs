//! What a failed command prints.

use std::fmt;

use ah_identity_provider::Explained;
use tonic::{Code, Status};

/// A text for stderr. The exit code is 1, as upstream's always is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure(String);

impl Failure {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// A refused call with what to do about it.
    pub(super) fn refused(status: &Status) -> Self {
        let mut text = rpc_error(status);
        if let Some(hint) = hint(status) {
            text.push_str("\n  hint: ");
            text.push_str(hint);
        }
        Self(text)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Explained> for Failure {
    fn from(explained: Explained) -> Self {
        Self(explained.report())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self(format!("error: cannot write to stdout: {error}"))
    }
}

/// As grpc-go prints a status.
pub(super) fn rpc_error(status: &Status) -> String {
    let code = match status.code() {
        Code::Ok => "OK".to_owned(),
        Code::Cancelled => "Canceled".to_owned(),
        other => format!("{other:?}"),
    };
    format!("rpc error: code = {code} desc = {}", status.message())
}

fn hint(status: &Status) -> Option<&'static str> {
    match status.code() {
        Code::PermissionDenied => Some(
            "no entry matches this process: `spire-agent api explain` tells what the nearest one lacks, \
             and `spire-server entry show` lists them",
        ),
        Code::Unimplemented => Some(
            "what listens there is no Workload API: give the agent's public socket with -socketPath",
        ),
        Code::DeadlineExceeded => {
            Some("give it longer with -timeout, and see the agent's log for what holds it up")
        }
        Code::Unavailable => {
            Some("see the agent's log; the agent may not have reached its server yet")
        }
        _ => None,
    }
}
