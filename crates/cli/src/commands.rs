//! One file for each command.

pub mod access_point;
pub mod audit;
pub mod completions;
pub mod demo;
pub mod enroll;
pub mod fleet;
pub(crate) mod identity;
pub mod status;

use std::future::Future;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use ah_daemon::logging::{LogSettings, Logging};
use ah_daemon::paths::create_private;
use ah_daemon::systemd;
use ah_identity_provider::{Code, Explained};

use crate::{errors, render, start_logging};

/// Runs a service on the event loop that `runtime` builds: logging starts first, and the service's end is
/// the exit code.
fn run_service<F>(
    log: LogSettings,
    runtime: &mut tokio::runtime::Builder,
    serve: impl FnOnce(Logging) -> F,
) -> ExitCode
where
    F: Future<Output = Result<(), Explained>>,
{
    let logging = match start_logging(log) {
        Ok(logging) => logging,
        Err(explained) => return errors::fail(&[explained]),
    };
    let runtime = match runtime.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return errors::fail(&[no_runtime(&error)]),
    };
    let ended = runtime.block_on(serve(logging));
    // What runs on blocking threads is no reason to stay.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(explained) => {
            tracing::error!("{explained}");
            errors::fail(&[explained])
        }
    }
}

/// What a person at the terminal reads about a failure that is waited out (EN-13).
fn tell_retry(explained: &Explained, retry_in: Duration) {
    errors::print(std::slice::from_ref(explained));
    eprintln!("retrying in {}", brief(retry_in));
}

/// As [`tell_retry`], while there is no identity yet: the service is not ready, and systemd shows why.
fn tell_no_identity(explained: &Explained, retry_in: Duration) {
    tell_retry(explained, retry_in);
    systemd::status(&format!("waiting for an identity: {explained}"));
}

fn brief(wait: Duration) -> String {
    if wait < Duration::from_secs(10) {
        format!("{:.1}s", wait.as_secs_f64())
    } else {
        render::brief(wait)
    }
}

pub(crate) fn no_runtime(error: &std::io::Error) -> Explained {
    Explained::new(Code::Other, "cannot start the event loop")
        .cause(error)
        .hint("check the limits of open files and threads: ulimit -a")
}

/// Makes the directory of a file that is about to be made, for this user alone, when it is missing.
fn make_room(file: &Path) -> Result<(), Explained> {
    let Some(directory) = file
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    else {
        return Ok(());
    };
    if directory.exists() {
        return Ok(());
    }
    create_private(directory).map_err(|error| {
        Explained::new(
            Code::Other,
            format!("cannot make the directory {}", directory.display()),
        )
        .cause(error)
        .hint("make it for the user of this process, or set STATE_DIRECTORY and RUNTIME_DIRECTORY")
    })
}
