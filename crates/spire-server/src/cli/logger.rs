//! `logger get`, `set` and `reset`

use ah_spire_plugin::goflag::FlagSet;
use ah_spire_telemetry::{describe_levels, level_named};
use ah_spire_wire::server::logger::{GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest};
use ah_spire_wire::types::Logger;

use super::{Call, Failure, json};

pub(super) fn set_flags(flags: FlagSet) -> FlagSet {
    flags.string(
        "level",
        "",
        "The new log level, one of (panic, fatal, error, warn, info, debug, trace)",
    )
}

pub(super) async fn get(call: &mut Call<'_>) -> Result<(), Failure> {
    let logger = call
        .server
        .logger()
        .await?
        .get_logger(GetLoggerRequest {})
        .await;
    let logger = logger.map_err(|error| Failure::from(error).during("error fetching logger"))?;
    told(call, &logger.into_inner())
}

pub(super) async fn set(call: &mut Call<'_>) -> Result<(), Failure> {
    let level = call
        .flags
        .nonempty("level")
        .ok_or("a value (-level) must be set")?;
    let new_level = level_named(level)
        .ok_or_else(|| Failure(format!("the value {level:?} is not a valid setting")))?;
    let request = SetLogLevelRequest {
        new_level: new_level.into(),
    };
    let logger = call.server.logger().await?.set_log_level(request).await;
    let logger = logger.map_err(|error| Failure::from(error).during("failed to set log level"))?;
    told(call, &logger.into_inner())
}

pub(super) async fn reset(call: &mut Call<'_>) -> Result<(), Failure> {
    let request = ResetLogLevelRequest {};
    let logger = call.server.logger().await?.reset_log_level(request).await;
    let logger = logger.map_err(|error| Failure::from(error).during("failed to reset logger"))?;
    told(call, &logger.into_inner())
}

fn told(call: &mut Call<'_>, logger: &Logger) -> Result<(), Failure> {
    if call.out.is_json() {
        call.out.json(&json::logger(logger));
        return Ok(());
    }
    call.out.text(&describe_levels(logger)?);
    Ok(())
}
