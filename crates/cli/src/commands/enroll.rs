//! `ah agent enroll` (contract §3).

use std::process::ExitCode;
use std::sync::Arc;

use ah_daemon::logging::Logging;
use ah_daemon::signals::Signals;
use ah_daemon::systemd;
use ah_daemon::tasks::{Shutdown, Tasks};
use ah_fleet::executor::{Event, Executor, Remote, Status, StatusSocket, serve_status};
use ah_identity_provider::dev::DevRole;
use ah_identity_provider::{Clock, Code, Explained, SystemClock};
use ah_tls::{ClientConfigs, Expect, Role};
use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};

use super::identity::{Bearer, Source};
use super::{make_room, no_runtime};
use crate::errors;
use crate::settings::value::Host;
use crate::settings::{EnrollSettings, Launch};

/// Runs an executor until it is told to stop or fails for good (EN-13).
pub fn run(launch: Launch<EnrollSettings>) -> ExitCode {
    let log = launch.settings.log;
    // One thread: an executor has one connection, and its memory counts on every host.
    super::run_service(log, &mut Builder::new_current_thread(), |logging| {
        serve(launch, logging)
    })
}

/// What `--validate` looks at beyond the form of the settings: the identity itself (AP-18).
pub fn check(settings: &EnrollSettings) -> Vec<Explained> {
    super::identity::check(&settings.identity, bearer(settings))
}

/// For whom the identity of an executor is.
pub(crate) fn bearer(settings: &EnrollSettings) -> Bearer {
    Bearer {
        role: Role::Executor,
        dev: DevRole::Executor {
            name: settings.name.as_str().to_owned(),
        },
        name: settings.name.as_str().to_owned(),
        remote_servers: settings
            .servers
            .iter()
            .map(|server| format!("https://{server}"))
            .collect(),
        strict_svid: false,
    }
}

async fn serve(mut launch: Launch<EnrollSettings>, logging: Logging) -> Result<(), Explained> {
    let settings = launch.settings.clone();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let shutdown = Shutdown::default();
    let (signals, mut reloads) = Signals::install().map_err(|error| no_runtime(&error))?;
    tokio::spawn(signals.act_on(shutdown.clone()));

    make_room(&settings.status_socket)?;
    let socket = StatusSocket::bind(&settings.status_socket)?;
    let source = Source::new(&settings.identity, bearer(&settings), &clock);
    let (kind, health) = (source.kind, source.health.clone());
    let refresher = source.refresher.clone();
    let remotes: Vec<Remote> = settings.servers.iter().map(remote).collect();
    let name = settings.name.as_str();
    let starting = Status::starting(name, remotes.first(), kind);
    let status = watch::Sender::new(starting.clone());
    let mut tasks = Tasks::new(shutdown.clone());
    let stop = shutdown.drain.clone();
    let answers = serve_status(socket, status.subscribe());
    tasks.spawn("status socket", async move {
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            ended = answers => ended,
        }
    });

    let first = async {
        match settings.once {
            Some(_) => source.first_or_failure().await,
            None => {
                let tell = |failure: &Explained, retry_in| {
                    let now = clock.now();
                    status.send_modify(|status| status.no_identity(failure.clone(), now, retry_in));
                    super::tell_no_identity(failure, retry_in);
                };
                source.first(tell).await
            }
        }
    };
    let running = tokio::select! {
        running = first => running?,
        () = shutdown.drain.cancelled() => return Ok(()),
    };
    status.send_replace(starting);
    let expect = Expect::new(
        settings.expected_server_id.clone(),
        kind,
        &running.identity.current().identity,
    );
    let (configs, follow) =
        ClientConfigs::publish(running.identity, expect, false, Arc::clone(&clock))?;
    let executor = Executor {
        remotes,
        name: name.to_owned(),
        labels: settings.labels.clone(),
        connect_timeout: settings.connect_timeout,
        once: settings.once,
        configs,
        health,
        provider: kind,
        clock,
    };

    let stop = shutdown.drain.clone();
    tasks.spawn("identity", async move {
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            gave_up = running.supervising => Err(gave_up),
            () = follow => Ok(()),
        }
    });
    let stop = shutdown.drain.clone();
    tasks.spawn("reload", async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok::<(), std::convert::Infallible>(()),
                Some(()) = reloads.next() => {
                    systemd::reloading();
                    refresher.refresh();
                    reload(&mut launch, &logging);
                    systemd::ready("reloaded");
                }
            }
        }
    });
    let watchdog = tokio::spawn(systemd::feed_watchdog(|| true, shutdown.drain.clone()));
    systemd::ready("connecting");

    // The end of the enrollment, in order or for good, is the end of the process; its reason is kept whole.
    let (outcome, mut ended) = mpsc::channel(1);
    let stop = shutdown.drain.clone();
    let done = shutdown.drain.clone();
    tasks.spawn("enrollment", async move {
        let ended = executor.run(status, tell, stop).await;
        done.cancel();
        let _ = outcome.send(ended).await;
        Ok::<(), std::convert::Infallible>(())
    });
    let finished = tasks.run(settings.drain_timeout).await;
    watchdog.abort();
    systemd::stopping("leaving");
    if let Ok(ended) = ended.try_recv() {
        ended?;
    }
    match finished {
        Ok(_) => Ok(()),
        Err(failed) => Err(Explained::new(Code::Other, failed.to_string())
            .hint("the log above tells more; start it again once the cause is mended")),
    }
}

/// An access point as it is dialled.
pub(crate) fn remote(server: &crate::settings::value::RemoteServer) -> Remote {
    Remote {
        // As a name to resolve and to verify, an IPv6 address has no brackets.
        host: match &server.host {
            Host::Dns(name) => name.clone(),
            Host::Ip(ip) => ip.to_string(),
        },
        port: server.port,
    }
}

/// What a person at the terminal reads at once: the error in full, and what happens next (EN-13).
fn tell(event: &Event) {
    match event {
        Event::Failed {
            explained,
            retry_in,
        } => {
            super::tell_retry(explained, *retry_in);
        }
        Event::Draining { retry_in } => {
            eprintln!(
                "access point is draining; reconnecting in {}",
                super::brief(*retry_in)
            );
            systemd::status("access point is draining");
        }
        Event::Enrolled {
            executor_id,
            access_point,
        } => systemd::status(&format!("enrolled as {executor_id} at {access_point}")),
        Event::Rotated { serial } => systemd::status(&format!("enrolled; certificate {serial}")),
    }
}

/// Takes the log level of the settings file into use; everything else takes a restart and says so.
fn reload(launch: &mut Launch<EnrollSettings>, logging: &Logging) {
    match launch.reload() {
        Ok(new) => {
            if new.settings.log.level != launch.settings.log.level
                && let Err(error) = logging.set_level(new.settings.log.level)
            {
                tracing::warn!(%error, "the log level cannot be changed");
            }
            let old = std::mem::replace(&mut launch.settings, new.settings);
            let mut comparable = old;
            comparable.log = launch.settings.log;
            if comparable != launch.settings {
                tracing::warn!(
                    "settings besides the log level changed in the settings file; they take a restart"
                );
            }
        }
        Err(faults) => {
            tracing::error!("reload: the settings cannot be used; what was in use stays");
            errors::print(&faults);
        }
    }
}
