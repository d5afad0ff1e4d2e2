//! The CPU profiler. There is one in a process, for its signal is the process's.

use pprof::{ProfilerGuard, ProfilerGuardBuilder};

use super::format;

/// Samples a second of CPU time, as Go's.
const FREQUENCY: i32 = 100;

/// What a signal may not interrupt and then unwind.
const LEFT_ALONE: &[&str] = &["libc", "libgcc", "pthread", "vdso"];

/// A profiler that runs until it is dropped.
pub(super) struct Cpu(ProfilerGuard<'static>);

impl Cpu {
    /// # Errors
    /// Another one runs, or there can be none; for people.
    pub(super) fn start() -> Result<Self, String> {
        let guard = ProfilerGuardBuilder::default()
            .frequency(FREQUENCY)
            .blocklist(LEFT_ALONE)
            .build();
        match guard {
            Ok(guard) => Ok(Self(guard)),
            Err(pprof::Error::Running) => Err("cpu profiling already in use".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Ends it, and tells what it saw: a gzipped profile.
    pub(super) async fn finish(self) -> Result<Vec<u8>, String> {
        // Finding the names of functions takes a while.
        let made = tokio::task::spawn_blocking(move || {
            let report = self.0.report().build().map_err(|error| error.to_string())?;
            drop(self);
            format::gzipped(&report, FREQUENCY).map_err(|error| error.to_string())
        });
        made.await.map_err(|error| error.to_string())?
    }
}
