//! What SPIRE's server and agent tell of themselves (inventory section 10).
//!
//! - [`Metrics`]: counters, gauges, summaries and call counters under upstream's names, and the listener that
//!   Prometheus asks ([`PrometheusListener`]). Handles are made once and kept: counting takes no lock.
//! - [`RpcMetrics`]: counts the calls to a service.
//! - [`HealthChecks`]: looks at the parts of a process, and answers `/live` and `/ready`.

mod health;
mod http;
mod listener;
mod metrics;
mod rpc;

pub use health::{Check, HealthChecks, HealthListener, State};
pub use listener::PrometheusListener;
pub use metrics::{CallCounter, Counter, Gauge, Metrics, Program, Running, Summary};
pub use rpc::{Counted, RpcMetrics};
