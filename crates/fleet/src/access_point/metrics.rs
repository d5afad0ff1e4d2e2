//! What an access point counts, in the Prometheus style: base units, `_total` counters, few labels.
//!
//! No label carries an executor's name: a fleet of ten thousand must not make ten thousand series. Who it is
//! stands in the registry and in the audit log.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use ah_identity_provider::{Code, Health};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::audit::Event;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Within {
    within: &'static str,
}

/// Counters that are raised where things happen, and gauges that are set when somebody looks.
pub(crate) struct Metrics {
    registry: Registry,
    pub(super) connections_accepted: Counter,
    pub(super) connections_closed: Counter,
    pub(super) handshakes_completed: Counter,
    pub(super) handshakes_shed: Counter,
    pub(super) handshakes_timed_out: Counter,
    pub(super) handshakes_abandoned: Counter,
    pub(super) accept_failures: Counter,
    pub(super) accept_waited: Counter<f64, AtomicU64>,
    pub(super) handshake_seconds: Histogram,
    rejections: Family<Reason, Counter>,
    opened: Family<Kind, Counter>,
    closed: Family<Reason, Counter>,
    heartbeats_received: Counter,
    heartbeats_sent: Counter,
    round_trip_seconds: Histogram,
    sampled: Sampled,
}

/// Gauges that are computed from the state of the moment.
#[derive(Default)]
struct Sampled {
    connections_open: Gauge,
    sessions: Gauge,
    coming_and_going: Gauge,
    heartbeat_lag: Gauge<f64, AtomicU64>,
    clock: Gauge<f64, AtomicU64>,
    clock_skew: Gauge<f64, AtomicU64>,
    earliest_expiry: Gauge<f64, AtomicU64>,
    expiring: Family<Within, Gauge>,
    identity_expiry: Gauge<f64, AtomicU64>,
    identity_generation: Gauge,
    identity_rotations: Gauge,
    identity_failures: Gauge,
    store_up: Gauge,
    store_pending: Gauge,
    store_lag: Gauge<f64, AtomicU64>,
    audit_up: Gauge,
    audit_pending: Gauge,
}

/// The state of one moment, as the gauges show it.
pub(super) struct Sample {
    pub(super) now: SystemTime,
    /// End of validity and silence of each live session.
    pub(super) sessions: Vec<(SystemTime, Duration)>,
    /// The clock of a live executor that was furthest from ours, either way.
    pub(super) clock_skew: Duration,
    /// Executors that came back too often of late.
    pub(super) coming_and_going: usize,
    pub(super) identity: Health,
    pub(super) store_up: bool,
    pub(super) store_pending: usize,
    pub(super) store_lag: Duration,
    pub(super) audit_up: bool,
    pub(super) audit_pending: usize,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("ah");
        let metrics = Self {
            connections_accepted: Counter::default(),
            connections_closed: Counter::default(),
            handshakes_completed: Counter::default(),
            handshakes_shed: Counter::default(),
            handshakes_timed_out: Counter::default(),
            handshakes_abandoned: Counter::default(),
            accept_failures: Counter::default(),
            accept_waited: Counter::default(),
            handshake_seconds: Histogram::new(exponential_buckets(0.000_5, 2.0, 15)),
            rejections: Family::default(),
            opened: Family::default(),
            closed: Family::default(),
            heartbeats_received: Counter::default(),
            heartbeats_sent: Counter::default(),
            round_trip_seconds: Histogram::new(exponential_buckets(0.000_1, 2.0, 18)),
            sampled: Sampled::default(),
            registry: Registry::default(),
        };
        metrics.register(&mut registry);
        // Prometheus sees no increase in a series that begins at 1: the first copy of an identity would pass unseen.
        for reason in REASONS {
            drop(metrics.rejections.get_or_create(&Reason {
                reason: reason.as_str(),
            }));
        }
        for kind in ["enrolled", "re-enrolled", "rotated"] {
            drop(metrics.opened.get_or_create(&Kind { kind }));
        }
        Self {
            registry,
            ..metrics
        }
    }

    fn register(&self, to: &mut Registry) {
        to.register(
            "connections_accepted",
            "TCP connections taken from the listeners",
            self.connections_accepted.clone(),
        );
        to.register(
            "connections_closed",
            "TCP connections that ended, for whatever reason",
            self.connections_closed.clone(),
        );
        to.register(
            "handshakes_completed",
            "TLS handshakes in which both sides verified each other",
            self.handshakes_completed.clone(),
        );
        to.register(
            "handshakes_shed",
            "Connections reset for want of a place: all of --max-handshakes taken, too many that wait to be read, or no file descriptor left",
            self.handshakes_shed.clone(),
        );
        to.register(
            "handshakes_abandoned",
            "Connections whose peer went away before the handshake was done",
            self.handshakes_abandoned.clone(),
        );
        to.register(
            "accept_failures",
            "Times that the operating system gave no connection",
            self.accept_failures.clone(),
        );
        to.register_with_unit(
            "accept_waited",
            "Time in which the next connection waited for a place among --max-handshakes",
            Unit::Seconds,
            self.accept_waited.clone(),
        );
        to.register(
            "handshakes_timed_out",
            "Connections cut at --handshake-timeout",
            self.handshakes_timed_out.clone(),
        );
        to.register_with_unit(
            "handshake_duration",
            "From the ClientHello to the end of the handshake",
            Unit::Seconds,
            self.handshake_seconds.clone(),
        );
        to.register(
            "rejections",
            "Peers turned away, in the handshake or after it, by reason",
            self.rejections.clone(),
        );
        to.register(
            "sessions_opened",
            "Sessions that reached their welcome, by kind (enrolled, re-enrolled, rotated)",
            self.opened.clone(),
        );
        to.register(
            "sessions_closed",
            "Sessions that ended, by reason",
            self.closed.clone(),
        );
        to.register(
            "heartbeats_received",
            "Heartbeats from executors",
            self.heartbeats_received.clone(),
        );
        to.register(
            "heartbeats_sent",
            "Heartbeats to executors",
            self.heartbeats_sent.clone(),
        );
        to.register_with_unit(
            "heartbeat_round_trip",
            "From a heartbeat to its answer",
            Unit::Seconds,
            self.round_trip_seconds.clone(),
        );
        self.sampled.register(to);
    }

    pub(crate) fn rejected(&self, code: Code) {
        let reason = code.as_str();
        self.rejections.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn session_opened(&self, event: Event) {
        let kind = match event {
            Event::Enrolled => "enrolled",
            Event::Rotated => "rotated",
            _ => "re-enrolled",
        };
        self.opened.get_or_create(&Kind { kind }).inc();
    }

    pub(crate) fn session_closed(&self, reason: &'static str) {
        self.closed.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn heartbeat_received(&self) {
        self.heartbeats_received.inc();
    }

    pub(crate) fn heartbeat_sent(&self) {
        self.heartbeats_sent.inc();
    }

    pub(crate) fn round_trip(&self, round_trip: Duration) {
        self.round_trip_seconds.observe(round_trip.as_secs_f64());
    }

    /// The text that Prometheus scrapes (OpenMetrics 1.0).
    pub(super) fn render(&self, sample: &Sample) -> String {
        // Closed first: a connection that ends in between cannot make the difference negative.
        let closed = self.connections_closed.get();
        let open = self.connections_accepted.get().saturating_sub(closed);
        let open = i64::try_from(open).unwrap_or(i64::MAX);
        self.sampled.connections_open.set(open);
        self.sampled.set(sample);
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// Why peers are turned away, as far as it is known before.
const REASONS: [Code; 9] = [
    Code::ClientCertificateRequired,
    Code::ClientExpired,
    Code::ClientRevoked,
    Code::ClientUnknownAuthority,
    Code::Duplicate,
    Code::SanMismatch,
    Code::Unavailable,
    Code::Usage,
    Code::VerifyFailed,
];

const HORIZONS: [(&str, Duration); 3] = [
    ("5m", Duration::from_secs(300)),
    ("1h", Duration::from_secs(3_600)),
    ("24h", Duration::from_secs(86_400)),
];

impl Sampled {
    fn register(&self, to: &mut Registry) {
        to.register(
            "connections_open",
            "TCP connections of executors open now, with those that have not finished their handshake",
            self.connections_open.clone(),
        );
        to.register("sessions", "Executors enrolled now", self.sessions.clone());
        to.register(
            "executors_flapping",
            "Executors that enrolled again at least 3 times within 10 minutes",
            self.coming_and_going.clone(),
        );
        to.register(
            "clock_timestamp_seconds",
            "Clock of this access point, Unix time",
            self.clock.clone(),
        );
        to.register_with_unit(
            "executor_clock_skew",
            "Largest difference between the clock of a live executor, as it enrolled, and this access point's",
            Unit::Seconds,
            self.clock_skew.clone(),
        );
        to.register_with_unit(
            "heartbeat_lag",
            "Longest time that a live executor has not been heard",
            Unit::Seconds,
            self.heartbeat_lag.clone(),
        );
        to.register(
            "executor_certificate_earliest_expiry_timestamp_seconds",
            "End of validity of the live executor certificate that ends first, Unix time; 0 with no executor",
            self.earliest_expiry.clone(),
        );
        to.register(
            "executor_certificates_expiring",
            "Live executor certificates that end within the time of the label",
            self.expiring.clone(),
        );
        to.register(
            "identity_certificate_expiry_timestamp_seconds",
            "End of validity of this access point's own certificate, Unix time",
            self.identity_expiry.clone(),
        );
        to.register(
            "identity_generation",
            "Generation of this access point's identity in use",
            self.identity_generation.clone(),
        );
        to.register(
            "identity_rotations",
            "How often this access point's identity was replaced",
            self.identity_rotations.clone(),
        );
        to.register(
            "identity_renewal_failures",
            "Failures to renew this access point's identity since the last success; 0 when all is well",
            self.identity_failures.clone(),
        );
        to.register(
            "store_up",
            "1 while the registry's store takes writes",
            self.store_up.clone(),
        );
        to.register(
            "store_pending",
            "Changes that wait for the store",
            self.store_pending.clone(),
        );
        to.register_with_unit(
            "store_lag",
            "Age of the oldest change that waits for the store",
            Unit::Seconds,
            self.store_lag.clone(),
        );
        to.register(
            "audit_up",
            "1 while the audit log takes lines",
            self.audit_up.clone(),
        );
        to.register(
            "audit_pending",
            "Audit lines that wait to be written",
            self.audit_pending.clone(),
        );
    }

    fn set(&self, sample: &Sample) {
        self.sessions.set(i64_of(sample.sessions.len()));
        self.coming_and_going.set(i64_of(sample.coming_and_going));
        self.clock.set(unix_seconds(sample.now));
        self.clock_skew.set(sample.clock_skew.as_secs_f64());
        let lag = sample.sessions.iter().map(|(_, silence)| *silence).max();
        self.heartbeat_lag
            .set(lag.unwrap_or_default().as_secs_f64());
        let earliest = sample
            .sessions
            .iter()
            .map(|(not_after, _)| *not_after)
            .min();
        self.earliest_expiry.set(earliest.map_or(0.0, unix_seconds));
        for (within, horizon) in HORIZONS {
            let by = sample.now + horizon;
            let count = sample
                .sessions
                .iter()
                .filter(|(not_after, _)| *not_after <= by)
                .count();
            self.expiring
                .get_or_create(&Within { within })
                .set(i64_of(count));
        }
        self.identity_expiry
            .set(sample.identity.not_after.map_or(0.0, unix_seconds));
        self.identity_generation
            .set(i64::try_from(sample.identity.generation).unwrap_or(i64::MAX));
        self.identity_rotations
            .set(i64::try_from(sample.identity.rotations).unwrap_or(i64::MAX));
        self.identity_failures.set(sample.identity.failures.into());
        self.store_up.set(sample.store_up.into());
        self.store_pending.set(i64_of(sample.store_pending));
        self.store_lag.set(sample.store_lag.as_secs_f64());
        self.audit_up.set(sample.audit_up.into());
        self.audit_pending.set(i64_of(sample.audit_pending));
    }
}

fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

fn i64_of(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
