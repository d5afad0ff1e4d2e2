//! What the accept loop sees, in metrics, attempts and the audit log.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ah_identity_provider::{CertificateFacts, Code, Explained};
use ah_tls::{AcceptObserver, Rejection};

use super::Shared;
use super::attempts::Attempt;
use super::refusals::Refused;
use crate::store::ExecutorId;

impl AcceptObserver for Shared {
    fn opened(&self, _remote: SocketAddr) {
        self.metrics.connections_accepted.inc();
    }

    fn closed(&self, _remote: SocketAddr) {
        self.metrics.connections_closed.inc();
    }

    fn accept_failed(&self, _error: &std::io::Error) {
        self.metrics.accept_failures.inc();
    }

    fn waited(&self, time: Duration) {
        self.metrics.accept_waited.inc_by(time.as_secs_f64());
    }

    fn abandoned(&self, remote: SocketAddr) {
        tracing::debug!(peer = %remote, "peer went away before the handshake was done");
        self.metrics.handshakes_abandoned.inc();
    }

    fn completed(&self, took: Duration) {
        self.metrics.handshakes_completed.inc();
        self.metrics.handshake_seconds.observe(took.as_secs_f64());
    }

    fn shed(&self, remote: SocketAddr) {
        tracing::debug!(peer = %remote, "connection reset for want of a place");
        self.metrics.handshakes_shed.inc();
    }

    fn timed_out(&self, remote: SocketAddr) {
        tracing::debug!(peer = %remote, "handshake timed out");
        self.metrics.handshakes_timed_out.inc();
        let why = Explained::new(Code::ConnectionTimedOut, "the handshake was not finished in time")
            .hint("look for packets that are lost on the way, large ones above all (ping -M do -s 1400), and at --handshake-timeout");
        self.attempts.note(Attempt {
            refused: Some(Arc::new(why)),
            ..Attempt::new(self.clock.now(), remote)
        });
    }

    fn rejected(&self, rejection: Rejection) {
        self.turned_away(Refused {
            explained: &rejection.explained,
            remote: rejection.remote,
            executor: rejection.certificate.as_ref().map(claimed_id),
            certificate: rejection.certificate.as_ref(),
            // Rules and revocations are looked at once the chain was verified.
            vouched: matches!(
                rejection.explained.code,
                Code::SanMismatch | Code::ClientRevoked
            ),
            greeting: None,
        });
    }
}

/// Who a certificate says it is. In an audit line of a refusal it is a claim and no more.
pub(super) fn claimed_id(facts: &CertificateFacts) -> ExecutorId {
    let ip = facts.ips.first().map(ToString::to_string);
    let name = facts.uris.first().or(facts.dns.first()).cloned().or(ip);
    name.unwrap_or_else(|| facts.subject.clone()).into()
}
