//! `api watch`

use std::path::Path;
use std::time::{Duration, Instant};

use ah_spire_plugin::goflag::{FlagSet, Flags};
use ah_spire_wire::workload::{X509svidRequest, X509svidResponse};
use tonic::{Code, Status};

use super::call::{Agent, secured};
use super::failure::Failure;
use super::svids::Svids;
use super::{output, socket};

/// The pause after a failed attempt grows by this up to [`LONGEST_PAUSE`], as in go-spiffe.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

pub(super) fn flags() -> FlagSet {
    let usage = "Path to the SPIRE Agent API Unix domain socket";
    socket::with_flags(FlagSet::new("watch"), usage)
}

/// Runs until it is interrupted; the end of an agent is told and waited out.
pub(super) async fn run(flags: &Flags) -> Result<(), Failure> {
    let path = socket::path(flags)?;
    let interrupted = async {
        match tokio::signal::ctrl_c().await {
            Ok(()) => (),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        failure = watch(&path) => Err(failure),
        () = interrupted => Err(Failure::refused(&Status::cancelled("context canceled"))),
    }
}

async fn watch(path: &Path) -> Failure {
    let mut since = Instant::now();
    let mut pause = PAUSE;
    loop {
        let failure = match Agent::at(path.to_owned(), Duration::ZERO).await {
            Err(failure) => failure,
            Ok(agent) => {
                let mut printed = false;
                let ended = follow(&agent, &mut since, &mut printed).await;
                if printed {
                    pause = PAUSE;
                }
                match ended {
                    Ended::ByAgent(status) if status.code() == Code::InvalidArgument => {
                        return agent.failed(&status);
                    }
                    // grpc-go's words for an agent that stopped.
                    Ended::ByAgent(status) if printed && Agent::was_lost(&status) => {
                        Failure::refused(&Status::unavailable("error reading from server: EOF"))
                    }
                    Ended::ByAgent(status) => agent.failed(&status),
                    Ended::Here(failure) => return failure,
                }
            }
        };
        eprintln!("{failure}");
        tokio::time::sleep(pause).await;
        pause = pause.saturating_add(PAUSE).min(LONGEST_PAUSE);
    }
}

enum Ended {
    ByAgent(Status),
    /// Such as a closed pipe.
    Here(Failure),
}

/// Prints each message of one stream.
async fn follow(agent: &Agent, since: &mut Instant, printed: &mut bool) -> Ended {
    let mut api = agent.workload_api();
    let mut messages = match api.fetch_x509svid(secured(X509svidRequest {})).await {
        Ok(messages) => messages.into_inner(),
        Err(status) => return Ended::ByAgent(status),
    };
    loop {
        let message = match messages.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return Ended::ByAgent(Status::unknown("EOF")),
            Err(status) => return Ended::ByAgent(status),
        };
        match print(message, since.elapsed()) {
            Ok(()) => *printed = true,
            Err(failure) => return Ended::Here(failure),
        }
        *since = Instant::now();
    }
}

fn print(message: X509svidResponse, after: Duration) -> Result<(), Failure> {
    match Svids::read(message) {
        Ok(svids) => output::print(&svids.named_for_watching().pretty(after)),
        Err(unusable) => {
            eprintln!("{unusable}");
            Ok(())
        }
    }
}
