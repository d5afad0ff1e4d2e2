//! Wall clocks that are wrong, for processes under test: libfaketime, preloaded.
//!
//! Its own program `faketime` is not used. That makes a semaphore of the whole machine with its process id for a name, and
//! refuses to start where a killed process of the same id has left one; the library alone does not mind.

use std::path::Path;
use std::process::Command;

/// A wall clock that is wrong. What measures time goes on as it is.
#[derive(Debug, Clone)]
pub struct FalseClock {
    environment: Vec<(&'static str, String)>,
}

impl FalseClock {
    /// One that is off by `offset`, such as `-3d` or `+45s`. `None` where libfaketime is not installed, as [`crate::need`].
    pub fn off_by(offset: &str) -> Option<Self> {
        Self::new([("FAKETIME", offset.to_owned())])
    }

    /// One that is off by what `file` says at the time, which has to be replaced by one rename. `None` as above.
    pub fn following(file: &Path) -> Option<Self> {
        Self::new([
            ("FAKETIME_TIMESTAMP_FILE", file.display().to_string()),
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
        ])
    }

    fn new<const N: usize>(settings: [(&'static str, String); N]) -> Option<Self> {
        let library = format!(
            "/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1",
            std::env::consts::ARCH
        );
        if !Path::new(&library).is_file() {
            crate::need(&library);
            return None;
        }
        let mut environment = vec![
            ("LD_PRELOAD", library),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ];
        environment.extend(settings);
        Some(Self { environment })
    }

    /// Has `command` go by this clock.
    pub fn set<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.envs(self.environment.iter().map(|(name, value)| (name, value)))
    }

    /// The words before a command that has to go by this clock.
    pub fn wrapper(&self) -> Vec<String> {
        let settings = self
            .environment
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        std::iter::once("env".to_owned()).chain(settings).collect()
    }
}
