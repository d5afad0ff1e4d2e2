//! `healthcheck`

use ah_spire_plugin::goflag::FlagSet;
use ah_spire_wire::health::HealthCheckRequest;
use ah_spire_wire::health::health_check_response::ServingStatus;

use super::{Call, Failure};

pub(super) fn flags(flags: FlagSet) -> FlagSet {
    flags
        .bool("shallow", false, "Perform a less stringent health check")
        .bool("verbose", false, "Print verbose information")
}

pub(super) async fn run(call: &mut Call<'_>) -> Result<(), Failure> {
    let checked = check(call).await;
    checked.map_err(|failure| failure.during("server is unhealthy"))?;
    call.out.line("Server is healthy.");
    Ok(())
}

async fn check(call: &mut Call<'_>) -> Result<(), Failure> {
    let verbose = call.flags.bool("verbose");
    if verbose {
        call.out.line("Checking server health...");
    }
    let status = match ask(call).await {
        Ok(status) => status,
        Err(failure) => {
            if verbose {
                let text = format!("Failed to check health: {}", failure.0);
                call.out.error_line(&text);
            }
            return Err("unable to determine health".into());
        }
    };
    match status {
        ServingStatus::Serving => Ok(()),
        other => Err(Failure(format!(
            "server returned status \"{}\"",
            other.as_str_name()
        ))),
    }
}

async fn ask(call: &mut Call<'_>) -> Result<ServingStatus, Failure> {
    let request = HealthCheckRequest::default();
    let answer = call.server.health().await?.check(request).await?;
    Ok(answer.into_inner().status())
}
