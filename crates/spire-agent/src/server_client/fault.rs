use std::fmt;
use std::time::Duration;

use ah_identity_provider::{Code, Explained};
use ah_spire_wire::types::PermissionDeniedDetails;
use ah_spire_wire::types::permission_denied_details::Reason;
use prost::Message;

use super::ServerAddress;

/// A call that did not succeed, named by what the agent does next.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ServerFault {
    /// No connection, or it broke: try again (ER-23).
    #[error("{0}")]
    Unreachable(Explained),
    /// The server's certificate is issued by nobody we trust: try again, or bootstrap again where that is allowed.
    #[error("{0}")]
    UnknownAuthority(Explained),
    /// The server does not know this agent any more, or not yet.
    #[error("{1}")]
    Denied(Denied, Explained),
    /// The server has not got what was asked for.
    #[error("{0}")]
    NotFound(Explained),
    /// Too many calls: later.
    #[error("{0}")]
    Exhausted(Explained),
    /// The server is of a version that has no such call.
    #[error("{0}")]
    Unimplemented(Explained),
    /// Answered with an error.
    #[error("{0}")]
    Refused(Explained),
    /// Answered with what cannot be.
    #[error("{0}")]
    Malformed(Explained),
}

/// Why the server denies an agent. Each has an own answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Its SVID has expired.
    Expired,
    /// The server has never seen it, or it was evicted.
    NotAttested,
    /// It shows an SVID that is not the newest.
    NotActive,
    /// An operator banned it.
    Banned,
    /// The server wants to see it attest.
    MustReattest,
}

impl Denied {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "the server says that the agent's SVID has expired",
            Self::NotAttested => {
                "the server does not know this agent: it was evicted, or the server's data is new"
            }
            Self::NotActive => {
                "the server has issued a newer SVID to this agent than the one it shows"
            }
            Self::Banned => "the agent was banned on the server",
            Self::MustReattest => "the server wants the agent to attest again",
        }
    }
}

/// The text of ER-23, which the guide prints.
pub(crate) const CONNECT_FAILED: &str = "failed to connect to spire server";

impl ServerFault {
    /// What to tell.
    pub fn explained(&self) -> &Explained {
        match self {
            Self::Unreachable(explained)
            | Self::UnknownAuthority(explained)
            | Self::Denied(_, explained)
            | Self::NotFound(explained)
            | Self::Exhausted(explained)
            | Self::Unimplemented(explained)
            | Self::Refused(explained)
            | Self::Malformed(explained) => explained,
        }
    }

    pub(crate) fn unreachable(address: &ServerAddress, cause: impl fmt::Display) -> Self {
        Self::Unreachable(
            Explained::new(Code::Unavailable, CONNECT_FAILED)
                .cause(format!("{address}: {cause}"))
                .hint(format!(
                    "check that the server runs, that a firewall allows port {}, and `server_address` and `server_port` of the agent",
                    address.port
                )),
        )
    }

    pub(crate) fn timed_out(what: &str, after: Duration, address: &ServerAddress) -> Self {
        Self::unreachable(
            address,
            format!("{what}: no answer within {}s", after.as_secs()),
        )
    }

    pub(crate) fn malformed(what: &str, why: impl fmt::Display) -> Self {
        Self::Malformed(
            Explained::new(
                Code::Other,
                format!("{what}: the server's answer is not valid"),
            )
            .cause(why)
            .hint("check that the versions of server and agent belong together"),
        )
    }

    pub(crate) fn of_status(what: &str, status: &tonic::Status, address: &ServerAddress) -> Self {
        use tonic::Code as C;
        let told = || {
            let text = format!("{what} failed: {}", status.message());
            Explained::new(Code::Other, text).cause(format!("status {:?}", status.code()))
        };
        if let Some(denied) = denied(status) {
            return Self::Denied(
                denied,
                Explained::new(Code::PermissionDenied, format!("{what} failed"))
                    .cause(denied.as_str())
                    .cause(status.message()),
            );
        }
        match status.code() {
            // A transport that broke has an error of its own below the status.
            C::Unavailable => Self::unreachable(address, cause_of(status)),
            C::Unknown if std::error::Error::source(status).is_some() => {
                Self::unreachable(address, cause_of(status))
            }
            C::NotFound => Self::NotFound(told()),
            C::ResourceExhausted => Self::Exhausted(told()),
            C::Unimplemented => Self::Unimplemented(told()),
            _ => Self::Refused(told()),
        }
    }
}

/// The text and all that is below it: a TLS alert stands at the bottom.
fn cause_of(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}

/// `google.rpc.Status`, as far as it is looked at.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

fn denied(status: &tonic::Status) -> Option<Denied> {
    if status.code() != tonic::Code::PermissionDenied {
        return None;
    }
    let details = RpcStatus::decode(status.details()).ok()?.details;
    details
        .iter()
        .filter(|any| {
            any.type_url
                .ends_with("/spire.api.types.PermissionDeniedDetails")
        })
        .filter_map(|any| PermissionDeniedDetails::decode(any.value.as_slice()).ok())
        .find_map(|details| match Reason::try_from(details.reason).ok()? {
            Reason::Unknown => None,
            Reason::AgentExpired => Some(Denied::Expired),
            Reason::AgentNotAttested => Some(Denied::NotAttested),
            Reason::AgentNotActive => Some(Denied::NotActive),
            Reason::AgentBanned => Some(Denied::Banned),
            Reason::AgentMustReattest => Some(Denied::MustReattest),
        })
}

/// A status as a server sends it that denies an agent.
#[cfg(test)]
pub(crate) fn denying(reason: Reason) -> tonic::Status {
    let details = PermissionDeniedDetails {
        reason: reason.into(),
    };
    let any = prost_types::Any {
        type_url: "type.googleapis.com/spire.api.types.PermissionDeniedDetails".into(),
        value: details.encode_to_vec(),
    };
    let body = RpcStatus { details: vec![any] }.encode_to_vec();
    tonic::Status::with_details(tonic::Code::PermissionDenied, "denied", body.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_denial_is_read() {
        let address = ServerAddress::new("server", 8081);
        let status = denying(Reason::AgentBanned);
        let fault = ServerFault::of_status("GetAuthorizedEntries", &status, &address);
        assert!(matches!(fault, ServerFault::Denied(Denied::Banned, _)));
        let plain = tonic::Status::permission_denied("no");
        let fault = ServerFault::of_status("GetAuthorizedEntries", &plain, &address);
        assert!(matches!(fault, ServerFault::Refused(_)));
    }

    // ER-23
    #[test]
    fn no_connection_reads_as_the_guide_prints_it() {
        let address = ServerAddress::new("spire-server.example.org", 8081);
        let fault = ServerFault::unreachable(&address, "connection refused");
        let report = fault.explained().report();
        assert!(
            report.starts_with("error: failed to connect to spire server\n"),
            "{report}"
        );
        assert!(report.contains("port 8081"), "{report}");
    }
}
