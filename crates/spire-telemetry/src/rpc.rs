//! Counting the calls to a service as `rpc.<service>.<method>`.

mod counted;
mod names;

use std::collections::HashMap;
use std::sync::Arc;

use tower::Layer;

pub use self::counted::Counted;
use self::names::{SERVICES, metric_key};
use crate::metrics::{CallCounter, Metrics, Running};

/// A tower layer around what answers gRPC calls. Only methods of SPIFFE's and SPIRE's services are counted: no caller
/// can make up metrics.
#[derive(Clone, Debug, Default)]
pub struct RpcMetrics(Option<Arc<HashMap<String, CallCounter>>>);

impl RpcMetrics {
    /// Counts in `metrics`.
    pub fn new(metrics: &Metrics) -> Self {
        if !metrics.is_on() {
            return Self(None);
        }
        let mut by_path = HashMap::new();
        for (service, methods) in SERVICES {
            for method in *methods {
                let key = metric_key("rpc", service, method);
                let parts = key.iter().map(String::as_str).collect::<Vec<_>>();
                let calls = metrics.calls(&parts, &[]);
                by_path.insert(format!("/{service}/{method}"), calls);
            }
        }
        Self(Some(Arc::new(by_path)))
    }

    fn start(&self, path: &str) -> Option<Running> {
        let calls = self.0.as_ref()?.get(path)?;
        Some(calls.start())
    }
}

/// Waits for a turn to call `method`, where that is limited: `rateLimit.<service>.<method>`.
pub fn rate_limits(metrics: &Metrics, service: &str, method: &str) -> CallCounter {
    let key = metric_key("rateLimit", service, method);
    let key = key.iter().map(String::as_str).collect::<Vec<_>>();
    metrics.calls(&key, &[])
}

impl<S> Layer<S> for RpcMetrics {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted::new(inner, self.clone())
    }
}
