//! Logging to stderr (AP-15), to stdout, or to a file that can be opened again.

mod rush;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use self::rush::Rush;

/// How much is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// What needs a person.
    Error,
    /// What may soon need one.
    Warn,
    /// What happened.
    Info,
    /// What led to it.
    Debug,
    /// Everything.
    Trace,
}

/// How a line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What to log and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// The level of this product's own targets, unless `RUST_LOG` says otherwise.
    pub level: Level,
    /// The shape of a line.
    pub format: Format,
}

/// The environment's say in logging.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogEnvironment {
    /// `RUST_LOG`, when set and not empty. It wins over [`LogSettings::level`].
    pub rust_log: Option<String>,
    /// `NO_COLOR` is set and not empty (<https://no-color.org>).
    pub no_color: bool,
}

/// Logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `RUST_LOG` is not a filter.
    #[error("invalid RUST_LOG '{value}': {why}")]
    RustLog {
        /// What it holds.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// Logging was started before in this process.
    #[error("logging was started before")]
    Again,
}

/// Where lines go.
#[derive(Clone, Debug)]
pub enum LogOutput {
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// The end of a file.
    File(LogFile),
}

/// A log file. Clones write to the same one.
#[derive(Clone, Debug)]
pub struct LogFile {
    path: PathBuf,
    file: Arc<Mutex<File>>,
}

impl LogFile {
    /// Opens the file at `path` to write at its end; it is made when it is not there.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: Arc::new(Mutex::new(append(path)?)),
        })
    }

    /// Opens the file again, after somebody moved it away. On an error the one before stays.
    pub fn reopen(&self) -> io::Result<()> {
        let file = append(&self.path)?;
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = file;
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        (&*file).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The running log. Keep it until the process ends, and to change the level: lines gather in a rush only while it is
/// there.
pub struct Logging {
    filter: reload::Handle<EnvFilter, Registry>,
    rush: Rush,
    targets: &'static [&'static str],
    environment: LogEnvironment,
}

impl Level {
    /// The word on the command line and in `RUST_LOG`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    /// The level of targets that are not ours: others' chatter is of less use than ours.
    fn of_others(self) -> Self {
        match self {
            Self::Error => Self::Error,
            Self::Warn | Self::Info => Self::Warn,
            Self::Debug => Self::Info,
            Self::Trace => Self::Debug,
        }
    }
}

impl LogEnvironment {
    /// The environment of this process. A `RUST_LOG` that is no filter is an error.
    pub fn of_process() -> Result<Self, LogError> {
        let rust_log = match std::env::var_os("RUST_LOG") {
            None => None,
            Some(value) => Some(value.into_string().map_err(|value| LogError::RustLog {
                value: value.to_string_lossy().into_owned(),
                why: "not UTF-8".to_owned(),
            })?),
        };
        let rust_log = rust_log.filter(|value| !value.trim().is_empty());
        if let Some(value) = &rust_log {
            parse_filter(value)?;
        }
        Ok(Self {
            rust_log,
            no_color: std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()),
        })
    }
}

impl Logging {
    /// Starts logging to stderr for the whole process. `targets` are this product's own.
    pub fn start(
        settings: LogSettings,
        targets: &'static [&'static str],
        environment: LogEnvironment,
    ) -> Result<Self, LogError> {
        Self::start_to(LogOutput::Stderr, settings, targets, environment)
    }

    /// As [`Logging::start`], to `output`.
    pub fn start_to(
        output: LogOutput,
        settings: LogSettings,
        targets: &'static [&'static str],
        environment: LogEnvironment,
    ) -> Result<Self, LogError> {
        let filter = filter(settings.level, targets, &environment)?;
        let (filter, handle) = reload::Layer::new(filter);
        let color = !environment.no_color
            && match &output {
                LogOutput::Stderr => io::stderr().is_terminal(),
                LogOutput::Stdout => io::stdout().is_terminal(),
                LogOutput::File(_) => false,
            };
        let rush = match output {
            LogOutput::Stderr => Rush::to(io::stderr()),
            LogOutput::Stdout => Rush::to(io::stdout()),
            LogOutput::File(file) => Rush::to(file),
        };
        Registry::default()
            .with(filter)
            .with(lines(settings.format, rush.clone(), color))
            .try_init()
            .map_err(|_| LogError::Again)?;
        Ok(Self {
            filter: handle,
            rush,
            targets,
            environment,
        })
    }

    /// Changes the level, as after a reload. `RUST_LOG` still wins.
    pub fn set_level(&self, level: Level) -> Result<(), LogError> {
        let filter = filter(level, self.targets, &self.environment)?;
        // The handle fails only when the subscriber is gone, and then nobody reads lines either.
        let _ = self.filter.reload(filter);
        Ok(())
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        self.rush.end();
    }
}

impl fmt::Debug for Logging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logging")
            .field("targets", &self.targets)
            .field("environment", &self.environment)
            .finish_non_exhaustive()
    }
}

/// What passes: `RUST_LOG` when set, else `level` for our targets and less for the others.
fn filter(
    level: Level,
    targets: &[&str],
    environment: &LogEnvironment,
) -> Result<EnvFilter, LogError> {
    let directives = match &environment.rust_log {
        Some(value) => value.clone(),
        None => {
            let mut directives = level.of_others().as_str().to_owned();
            for target in targets {
                directives.push_str(&format!(",{target}={}", level.as_str()));
            }
            directives
        }
    };
    parse_filter(&directives)
}

fn parse_filter(directives: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::from_str(directives).map_err(|e| LogError::RustLog {
        value: directives.to_owned(),
        why: e.to_string(),
    })
}

/// Writes events to `writer`.
fn lines<S, W>(format: Format, writer: W, color: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    match format {
        Format::Text => layer.with_ansi(color).boxed(),
        Format::Json => layer
            .with_ansi(false)
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .boxed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // SIGUSR2 of SPIRE's daemons: whoever rotates logs moves the file away and asks for a new one.
    #[test]
    fn a_log_file_that_was_moved_away_is_opened_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let file = LogFile::open(&path).unwrap();
        let mut writer = file.clone();
        writer.write_all(b"one\n").unwrap();
        std::fs::rename(&path, directory.path().join("log.1")).unwrap();
        file.reopen().unwrap();
        writer.write_all(b"two\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\n");
    }

    const TARGETS: &[&str] = &["ah_cli", "ah_identity_provider"];

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(level: Level, format: Format, rust_log: Option<&str>, emit: impl FnOnce()) -> String {
        let environment = LogEnvironment {
            rust_log: rust_log.map(str::to_owned),
            no_color: false,
        };
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber = Registry::default()
            .with(filter(level, TARGETS, &environment).unwrap())
            .with(lines(format, move || writer.clone(), false));
        tracing::subscriber::with_default(subscriber, emit);
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn emit() {
        tracing::info!(target: "ah_cli", "ours at info");
        tracing::debug!(target: "ah_identity_provider", "ours at debug");
        tracing::info!(target: "h2", "theirs at info");
        tracing::warn!(target: "h2", "theirs at warn");
    }

    // AP-15
    #[test]
    fn our_targets_have_the_level_and_others_less() {
        let text = logged(Level::Info, Format::Text, None, emit);
        assert!(text.contains("ours at info") && text.contains("theirs at warn"));
        assert!(!text.contains("ours at debug") && !text.contains("theirs at info"));
        let text = logged(Level::Debug, Format::Text, None, emit);
        assert!(text.contains("ours at debug") && text.contains("theirs at info"));
        assert!(!text.contains('\u{1b}'), "no colour off a terminal");
    }

    // AP-15: RUST_LOG wins.
    #[test]
    fn rust_log_wins_over_the_level() {
        let rust_log = Some("ah_identity_provider=debug,ah_cli=error");
        let text = logged(Level::Trace, Format::Text, rust_log, emit);
        assert!(text.contains("ours at debug"));
        assert!(!text.contains("ours at info") && !text.contains("theirs"));
    }

    // AP-15
    #[test]
    fn a_json_line_is_one_object_with_fields() {
        let text = logged(Level::Info, Format::Json, None, || {
            tracing::info!(target: "ah_cli", { executor.id = "spiffe://a/b" }, "enrolled\nreally");
        });
        assert_eq!(text.lines().count(), 1);
        assert!(text.starts_with('{') && text.trim_end().ends_with('}'));
        assert!(text.contains(r#""executor.id":"spiffe://a/b""#));
        assert!(text.contains(r#""message":"enrolled\nreally""#));
        assert!(text.contains(r#""target":"ah_cli""#));
    }

    // AP-15
    #[test]
    fn a_bad_rust_log_is_named() {
        let environment = LogEnvironment {
            rust_log: Some("ah_cli=loud".into()),
            no_color: false,
        };
        let error = filter(Level::Info, TARGETS, &environment).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("invalid RUST_LOG 'ah_cli=loud': "),
            "{error}"
        );
    }

    // AP-15, AP-19: a reload may change the level of a running log.
    #[test]
    fn the_level_can_be_changed_while_running() {
        let environment = LogEnvironment::default();
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let first = filter(Level::Info, TARGETS, &environment).unwrap();
        let (layer, handle) = reload::Layer::new(first);
        let subscriber = Registry::default().with(layer).with(lines(
            Format::Text,
            move || writer.clone(),
            false,
        ));
        let logging = Logging {
            filter: handle,
            rush: Rush::to(io::sink()),
            targets: TARGETS,
            environment,
        };
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!(target: "ah_cli", "before");
            logging.set_level(Level::Debug).unwrap();
            tracing::debug!(target: "ah_cli", "after");
        });
        let bytes = buffer.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        assert!(!text.contains("before") && text.contains("after"), "{text}");
    }
}
