//! `logger get`, `logger set` and `logger reset`

use ah_spire_plugin::goflag::{FlagSet, Flags};
use ah_spire_telemetry::{describe_levels, level_named};
use ah_spire_wire::Channel;
use ah_spire_wire::agent::logger::logger_client::LoggerClient;
use ah_spire_wire::agent::logger::{GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest};
use ah_spire_wire::types::Logger;
use serde_json::json;

use super::failure::Failure;
use super::{admin, gotext, output};

pub(super) fn set_flags() -> FlagSet {
    admin::flags("logger set").string(
        "level",
        "",
        "The new log level, one of (panic, fatal, error, warn, info, debug, trace)",
    )
}

pub(super) async fn get(flags: &Flags) -> Result<(), Failure> {
    let logger = client(flags).await?.get_logger(GetLoggerRequest {}).await;
    let logger = logger.map_err(|status| admin::failed("error fetching logger", &status))?;
    tell(flags, logger.get_ref())
}

pub(super) async fn set(flags: &Flags) -> Result<(), Failure> {
    let level = flags.string("level");
    if level.is_empty() {
        return Err(Failure::new("Error: a value (-level) must be set"));
    }
    let new_level = level_named(level).ok_or_else(|| {
        Failure::new(format!("Error: the value {level:?} is not a valid setting"))
    })?;
    let request = SetLogLevelRequest {
        new_level: new_level.into(),
    };
    let logger = client(flags).await?.set_log_level(request).await;
    let logger = logger.map_err(|status| admin::failed("failed to set log level", &status))?;
    tell(flags, logger.get_ref())
}

pub(super) async fn reset(flags: &Flags) -> Result<(), Failure> {
    let request = ResetLogLevelRequest {};
    let logger = client(flags).await?.reset_log_level(request).await;
    let logger = logger.map_err(|status| admin::failed("failed to reset logger", &status))?;
    tell(flags, logger.get_ref())
}

async fn client(flags: &Flags) -> Result<LoggerClient<Channel>, Failure> {
    let channel = admin::connect(flags).await?;
    Ok(LoggerClient::with_origin(channel, Channel::origin()))
}

fn tell(flags: &Flags, logger: &Logger) -> Result<(), Failure> {
    if output::is_json(flags, "output") {
        let levels = json!({
            "current_level": logger.current_level().as_str_name(),
            "launch_level": logger.launch_level().as_str_name(),
        });
        return output::print(&format!("{}\n", gotext::json(&levels)));
    }
    let told = describe_levels(logger).map_err(|why| Failure::new(format!("Error: {why}")))?;
    output::print(&told)
}
