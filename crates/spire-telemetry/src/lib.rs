//! What SPIRE's server and agent tell of themselves (inventory section 10).
//!
//! - [`Metrics`]: counters, gauges, summaries and call counters under upstream's names, the listener that Prometheus asks
//!   ([`PrometheusListener`]), and the sinks that are told ([`Sinks`]). Handles are made once and kept: counting waits
//!   for nobody.
//! - [`RpcMetrics`]: counts the calls to a service.
//! - [`Log`]: upstream's lines, at a level that can be changed while the process runs.
//! - [`HealthChecks`]: looks at the parts of a process, and answers `/live` and `/ready`.
//! - [`profile`]: where the program spends its time, for `go tool pprof`.
//! - [`Http`]: the small HTTP server under all that.

mod health;
mod http;
mod listener;
mod log;
mod metrics;
mod profiling;
mod rpc;

pub use health::{Check, HealthChecks, HealthListener, State};
pub use http::{Http, Peer, answer, answer_on, listen};
pub use listener::{Known, PrometheusListener};
pub use log::{Log, describe_levels, level_asked_for, level_named};
pub use metrics::{CallCounter, Counter, Gauge, Metrics, Program, Running, Sinks, Summary};
pub use profiling::profile;
pub use rpc::{Counted, RpcMetrics, rate_limits};
