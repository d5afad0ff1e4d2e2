//! A plugin's process and the group that it leads.

use std::io;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use tokio::sync::{oneshot, watch};

/// A process that is killed with its group when this is dropped.
pub(crate) struct Process {
    group: Group,
    ended: watch::Receiver<Option<String>>,
}

/// The number of a group while nobody else can have it.
#[derive(Clone)]
struct Group(Arc<Mutex<Option<Pid>>>);

impl Group {
    fn kill(&self) {
        let leader = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(leader) = *leader {
            let _ = killpg(leader, Signal::SIGKILL);
        }
    }

    /// The last of it is killed, and the number let go.
    fn end(&self) {
        self.kill();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Process {
    /// Starts `command`, whose stdout and stderr have to be pipes.
    ///
    /// A thread starts it and waits for it: the kernel kills the process with the thread that it is a child of, and those
    /// of the runtime come and go.
    pub(crate) async fn start(command: Command) -> io::Result<(Self, ChildStdout, ChildStderr)> {
        let (started, start) = oneshot::channel();
        let (tell, ended) = watch::channel(None);
        std::thread::Builder::new()
            .name("plugin".to_owned())
            .spawn(move || run(command, started, &tell))?;
        let (group, stdout, stderr) = start.await.map_err(io::Error::other)??;
        Ok((Self { group, ended }, stdout, stderr))
    }

    /// Kills it with everything that it started.
    pub(crate) fn kill(&self) {
        self.group.kill();
    }

    /// How it ended, once it has.
    pub(crate) async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        let told = ended.wait_for(Option::is_some).await;
        told.ok().and_then(|told| told.clone()).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

type Start = io::Result<(Group, ChildStdout, ChildStderr)>;

fn run(
    mut command: Command,
    started: oneshot::Sender<Start>,
    ended: &watch::Sender<Option<String>>,
) {
    let spawned = command.spawn();
    // Its copies of the pipes are not ours to keep open.
    drop(command);
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    let leader = i32::try_from(child.id()).ok().map(Pid::from_raw);
    let group = Group(Arc::new(Mutex::new(leader)));
    let pipes = child.stdout.take().zip(child.stderr.take());
    let start = match pipes {
        Some((stdout, stderr)) => Ok((group.clone(), stdout, stderr)),
        None => Err(io::Error::other("the plugin has no pipes")),
    };
    if started.send(start).is_err() {
        // Nobody waits for it any more.
        group.kill();
    }
    let status = wait(&mut child, &group);
    let told = status.map_or_else(|error| error.to_string(), |status| status.to_string());
    let _ = ended.send(Some(told));
}

/// Waits for the leader, and kills what is left of its group before the group's number is free.
fn wait(child: &mut Child, group: &Group) -> io::Result<ExitStatus> {
    if let Some(leader) = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap_or(0)) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while let Err(rustix::io::Errno::INTR) = waitid(WaitId::Pid(leader), options) {}
    }
    group.end();
    child.wait()
}
