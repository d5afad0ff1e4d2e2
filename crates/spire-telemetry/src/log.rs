//! The log: upstream's lines, a level that can be changed, a file that can be opened again.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io;
use std::sync::atomic::{AtomicI32, Ordering};

use ah_daemon::logging::LogFile;
use ah_spire_plugin::settings::{LogConfig, LogFormat, LogLevel as Configured};
use ah_spire_wire::types::{LogLevel, Logger};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tonic::Status;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

/// Where each SQL statement is told.
const STATEMENTS: &str = "sqlx::query";

/// The field whose value is a JSON object of fields that are known only when the line is written.
const FIELDS: &str = "fields";

/// The running log.
pub struct Log {
    filter: reload::Handle<Targets, Registry>,
    targets: &'static [&'static str],
    statements: bool,
    launch: LogLevel,
    current: AtomicI32,
    file: Option<LogFile>,
}

impl Log {
    /// Starts the log of this process. `targets` are its own; others are told at a level less. With `statements` those
    /// of SQL are told at DEBUG, without their values.
    ///
    /// # Errors
    /// The file cannot be written, or there is a log already.
    pub fn start(
        config: &LogConfig,
        targets: &'static [&'static str],
        statements: bool,
    ) -> Result<Self, String> {
        let launch = match config.level {
            Configured::Panic => LogLevel::Panic,
            Configured::Fatal => LogLevel::Fatal,
            Configured::Error => LogLevel::Error,
            Configured::Warn => LogLevel::Warn,
            Configured::Info => LogLevel::Info,
            Configured::Debug => LogLevel::Debug,
            Configured::Trace => LogLevel::Trace,
        };
        let file = config.file.as_ref().map(|path| {
            LogFile::open(path)
                .map_err(|error| format!("unable to open log file {}: {error}", path.display()))
        });
        let file = file.transpose()?;
        let (filter, handle) = reload::Layer::new(filter(launch, targets, statements));
        let lines = Lines {
            json: config.format == LogFormat::Json,
            source: config.source_location,
        };
        let layer = tracing_subscriber::fmt::layer().event_format(lines);
        let layer: Box<dyn Layer<_> + Send + Sync> = match file.clone() {
            Some(file) => layer.with_writer(move || file.clone()).boxed(),
            None => layer.with_writer(io::stdout).boxed(),
        };
        Registry::default()
            .with(filter)
            .with(layer)
            .try_init()
            .map_err(|error| error.to_string())?;
        Ok(Self {
            filter: handle,
            targets,
            statements,
            launch,
            current: AtomicI32::new(launch.into()),
            file,
        })
    }

    /// Opens the log file again, after somebody moved it away.
    pub fn reopen(&self) {
        match self.file.as_ref().map(LogFile::reopen) {
            None => tracing::info!("There is no log file to open again"),
            Some(Ok(())) => tracing::info!("The log file was opened again"),
            Some(Err(error)) => tracing::error!(%error, "The log file cannot be opened again"),
        }
    }
}

impl Log {
    /// The level now.
    pub fn current(&self) -> LogLevel {
        let current = self.current.load(Ordering::Relaxed);
        LogLevel::try_from(current).unwrap_or(self.launch)
    }

    /// The level that the configuration names.
    pub fn launch(&self) -> LogLevel {
        self.launch
    }

    /// Changes the level.
    ///
    /// # Errors
    /// The log has ended.
    pub fn set(&self, level: LogLevel) -> Result<(), String> {
        self.filter
            .reload(filter(level, self.targets, self.statements))
            .map_err(|error| error.to_string())?;
        self.current.store(level.into(), Ordering::Relaxed);
        Ok(())
    }
}

/// The level with this name on a command line, in whatever case.
pub fn level_named(name: &str) -> Option<LogLevel> {
    Some(match name.to_ascii_lowercase().as_str() {
        "panic" => LogLevel::Panic,
        "fatal" => LogLevel::Fatal,
        "error" => LogLevel::Error,
        "warn" | "warning" => LogLevel::Warn,
        "info" => LogLevel::Info,
        "debug" => LogLevel::Debug,
        "trace" => LogLevel::Trace,
        _ => return None,
    })
}

/// The level that a `SetLogLevelRequest` asks for.
///
/// # Errors
/// `InvalidArgument`, in upstream's words.
pub fn level_asked_for(number: i32) -> Result<LogLevel, Status> {
    match LogLevel::try_from(number) {
        Ok(LogLevel::Unspecified) => Err(Status::invalid_argument(
            "newLevel value cannot be LogLevel_UNSPECIFIED",
        )),
        Ok(level) => Ok(level),
        Err(_) => Err(Status::invalid_argument("unsupported log level")),
    }
}

/// What `logger get` prints.
///
/// # Errors
/// A level is not told.
pub fn describe_levels(logger: &Logger) -> Result<String, String> {
    let current = level_name(logger.current_level(), "current")?;
    let launch = level_name(logger.launch_level(), "launch")?;
    Ok(format!(
        "Logger Level : {current}\nLaunch Level : {launch}\n\n"
    ))
}

fn level_name(level: LogLevel, which: &str) -> Result<&'static str, String> {
    Ok(match level {
        LogLevel::Unspecified => {
            return Err(format!(
                "internal error: returned {which} log level is undefined; please report this as a bug"
            ));
        }
        LogLevel::Panic => "panic",
        LogLevel::Fatal => "fatal",
        LogLevel::Error => "error",
        LogLevel::Warn => "warning",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    })
}

fn filter(level: LogLevel, targets: &[&str], statements: bool) -> Targets {
    let (own, others) = match level {
        LogLevel::Panic | LogLevel::Fatal => (LevelFilter::OFF, LevelFilter::OFF),
        LogLevel::Error => (LevelFilter::ERROR, LevelFilter::ERROR),
        LogLevel::Warn => (LevelFilter::WARN, LevelFilter::WARN),
        LogLevel::Info | LogLevel::Unspecified => (LevelFilter::INFO, LevelFilter::WARN),
        LogLevel::Debug => (LevelFilter::DEBUG, LevelFilter::INFO),
        LogLevel::Trace => (LevelFilter::TRACE, LevelFilter::DEBUG),
    };
    let ours = targets.iter().map(|target| (*target, own));
    // Slow statements are warned about in any case.
    let statements = if statements {
        own
    } else {
        own.min(LevelFilter::WARN)
    };
    Targets::new()
        .with_default(others)
        .with_targets(ours)
        .with_target(STATEMENTS, statements)
}

/// Lines as logrus writes them: `time="…" level=info msg="…" key=value`, or the same as JSON.
struct Lines {
    json: bool,
    source: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let meta = event.metadata();
        if self.source
            && let (Some(file), Some(line)) = (meta.file(), meta.line())
        {
            fields.add("file", format!("{file}:{line}"));
        }
        let now = OffsetDateTime::now_utc();
        let now = now.replace_nanosecond(0).unwrap_or(now);
        let now = now.format(&Rfc3339).map_err(|_| fmt::Error)?;
        let level = match *meta.level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        let line = if self.json {
            json(&now, level, &fields)
        } else {
            text(&now, level, &fields)
        };
        writeln!(writer, "{line}")
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    others: BTreeMap<String, Value>,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.take(field, format!("{value:?}"));
    }
}

impl Fields {
    fn take(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            FIELDS => match serde_json::from_str::<BTreeMap<String, Value>>(&value) {
                Ok(several) => self.others.extend(several),
                Err(_) => self.add(FIELDS, value),
            },
            name => self.add(name, value),
        }
    }

    fn add(&mut self, name: &str, value: String) {
        self.others.insert(name.to_owned(), value.into());
    }
}

fn text(now: &str, level: &str, fields: &Fields) -> String {
    let mut line = format!(
        "time=\"{now}\" level={level} msg={}",
        quoted(&fields.message)
    );
    for (name, value) in &fields.others {
        let _ = match value {
            Value::String(value) => write!(line, " {name}={}", quoted(value)),
            value => write!(line, " {name}={value}"),
        };
    }
    line
}

fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/@^+".contains(c);
    if value.chars().all(plain) {
        value.to_owned()
    } else {
        format!("{value:?}")
    }
}

fn json(now: &str, level: &str, fields: &Fields) -> String {
    let others = fields.others.clone().into_iter();
    let mut object: serde_json::Map<_, _> = others.collect();
    object.insert("level".to_owned(), level.into());
    object.insert("msg".to_owned(), fields.message.clone().into());
    object.insert("time".to_owned(), now.into());
    Value::Object(object).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Inventory section 10: upstream's lines, which log collectors parse.
    #[test]
    fn lines_are_those_of_logrus() {
        let mut fields = Fields {
            message: "Starting Server APIs".into(),
            ..Fields::default()
        };
        fields.add("network", "tcp".into());
        fields.add("address", "127.0.0.1:8081".into());
        assert_eq!(
            text("2026-11-22T05:00:00Z", "info", &fields),
            "time=\"2026-11-22T05:00:00Z\" level=info msg=\"Starting Server APIs\" address=\"127.0.0.1:8081\" network=tcp"
        );
        assert_eq!(
            json("2026-11-22T05:00:00Z", "info", &fields),
            r#"{"address":"127.0.0.1:8081","level":"info","msg":"Starting Server APIs","network":"tcp","time":"2026-11-22T05:00:00Z"}"#
        );
        assert_eq!(quoted("a\nb"), "\"a\\nb\"");
    }

    // Inventory section 7: DataStore sql, log_sql.
    #[test]
    fn statements_are_told_when_they_are_asked_for() {
        let told = |level, statements, at: &Level| {
            filter(level, &[], statements).would_enable(STATEMENTS, at)
        };
        assert!(told(LogLevel::Debug, true, &Level::DEBUG));
        assert!(!told(LogLevel::Info, true, &Level::DEBUG));
        assert!(!told(LogLevel::Trace, false, &Level::DEBUG));
        assert!(told(LogLevel::Trace, false, &Level::WARN));
    }
}
