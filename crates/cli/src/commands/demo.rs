//! `ah agent demo`: the main job on this machine, with real processes, told as it happens.
//!
//! What happened is read where an operator would read it: the access point's admin socket and the
//! executors' status sockets. A step that does not happen in time fails the demo.

mod screen;
mod stage;
mod story;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use ah_identity_provider::Explained;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::no_runtime;
use crate::args::DemoArgs;
use crate::errors;
use crate::render::brief;
use screen::Screen;
use stage::Stage;
use story::Story;

/// As a shell says of a command that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// Plays the whole story. Exit code: 0 all of it happened, 1 something did not, 130 interrupted.
pub fn run(_: &DemoArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return errors::fail(&[no_runtime(&error)]),
    };
    // What is still running when this returns is killed with the event loop.
    runtime.block_on(play())
}

async fn play() -> ExitCode {
    let signals = Interruptions::install();
    let stage = Stage::new();
    let (mut signals, stage) = match (signals, stage) {
        (Ok(signals), Ok(stage)) => (signals, stage),
        (Err(error), _) => return errors::fail(&[no_runtime(&error)]),
        (_, Err(explained)) => return errors::fail(&[explained]),
    };
    let screen = Screen::new();
    let begun = Instant::now();
    screen.print(&format!(
        "Agent Harbor {}: an access point and three executors, real processes on this machine",
        env!("CARGO_PKG_VERSION")
    ));
    screen.tell(&format!(
        "state, sockets and logs are in {} until the end",
        stage.path().display()
    ));
    let mut story = Story::new(&stage, &screen);
    let ended = tokio::select! {
        ended = story.play() => Some(ended),
        () = signals.next() => None,
    };
    if matches!(ended, Some(Ok(()))) && screen.is_live() {
        tokio::time::sleep(LAST_LOOK).await;
    }
    story.curtain().await;
    screen.clear();
    drop(story);
    match ended {
        Some(Ok(())) => {
            let took = brief(begun.elapsed());
            screen.print(&format!("\nall of it happened, in {took}"));
            ExitCode::SUCCESS
        }
        Some(Err(explained)) => failed(stage, explained),
        None => {
            screen.print("\ninterrupted; every process was ended");
            ExitCode::from(INTERRUPTED)
        }
    }
}

/// How long the last picture stays on a terminal.
const LAST_LOOK: Duration = Duration::from_secs(1);

fn failed(stage: Stage, explained: Explained) -> ExitCode {
    let logs = stage.logs();
    stage.keep();
    let explained = explained.hint(format!("each process's log is in {}", logs.display()));
    errors::print(&[explained]);
    ExitCode::from(1)
}

/// The signals by which a person or a service manager ends the demo.
struct Interruptions([Signal; 3]);

impl Interruptions {
    fn install() -> std::io::Result<Self> {
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
