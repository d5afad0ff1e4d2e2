//! `healthcheck`

use std::time::Duration;

use ah_spire_plugin::goflag::{FlagSet, Flags};
use ah_spire_wire::Channel;
use ah_spire_wire::health::HealthCheckRequest;
use ah_spire_wire::health::health_check_response::ServingStatus;
use ah_spire_wire::health::health_client::HealthClient;

use super::call::Agent;
use super::failure::Failure;
use super::{output, socket};

/// An agent that does not answer is not healthy.
const TIMEOUT: Duration = Duration::from_secs(30);

pub(super) fn flags() -> FlagSet {
    let flags = FlagSet::new("health")
        .bool("shallow", false, "Perform a less stringent health check")
        .bool("verbose", false, "Print verbose information");
    socket::with_flags(flags, "Path to the SPIRE Agent API socket")
}

/// `-shallow` is taken and changes nothing, as upstream.
pub(super) async fn run(flags: &Flags) -> Result<(), Failure> {
    let verbose = flags.bool("verbose");
    if verbose {
        output::print("Checking agent health...\n")?;
    }
    match check(flags).await {
        Ok(ServingStatus::Serving) => output::print("Agent is healthy.\n"),
        Ok(other) => Err(unhealthy(&format!(
            "agent returned status \"{}\"",
            other.as_str_name()
        ))),
        Err(failure) => {
            if verbose {
                eprintln!("Failed to check health: {failure}");
            }
            Err(unhealthy("unable to determine health"))
        }
    }
}

async fn check(flags: &Flags) -> Result<ServingStatus, Failure> {
    let agent = Agent::at(socket::path(flags)?, TIMEOUT).await?;
    let mut health = HealthClient::with_origin(agent.channel.clone(), Channel::origin());
    let answer = agent.answer(health.check(HealthCheckRequest::default()));
    let answer = answer.await.map_err(|status| agent.failed(&status))?;
    Ok(answer.status())
}

fn unhealthy(why: &str) -> Failure {
    Failure::new(format!("Agent is unhealthy: {why}"))
}
