//! `profiling_enabled` and its kin: where a running program spends its time, in the format of pprof.
//!
//! CPU time alone is profiled. The other profiles of Go's runtime are of things that there are none of here (goroutines,
//! its own heap and locks).

mod cpu;
mod endpoint;
mod files;
mod format;

use ah_spire_plugin::settings::Profiling;
use tokio_util::sync::CancellationToken;

use crate::metrics::Program;

/// Serves and writes profiles until `stop`, as `settings` ask for. Profiling never keeps a program from its work: what
/// fails is told in the log.
pub async fn profile(settings: Profiling, program: Program, stop: CancellationToken) {
    if settings.enabled {
        let serving = endpoint::serve(settings.port, stop.clone());
        let writing = files::write(&settings, program, stop.clone());
        tokio::join!(serving, writing);
    }
    stop.cancelled().await;
}

#[cfg(test)]
mod tests;
