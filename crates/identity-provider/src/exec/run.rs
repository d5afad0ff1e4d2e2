//! One run of the command: bounded in time and in what it prints, and nothing of it stays behind when it fails.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep_until, timeout};
use zeroize::Zeroizing;

use super::output::MAX_OUTPUT;
use super::stderr::Tail;

/// How long the pipes are still listened to once the command itself has ended. What it wrote is in them already;
/// a child that it left in the background may hold them open for ever.
const AFTER_EXIT: Duration = Duration::from_millis(500);

/// How much is read at once.
const CHUNK: usize = 8192;

/// A run that ended by itself with success.
pub(super) struct Ran {
    pub(super) stdout: Zeroizing<Vec<u8>>,
    pub(super) stderr: Tail,
    group: Group,
}

impl Ran {
    /// Lets go of what the command left in the background; else it ends with this value.
    pub(super) fn succeeded(mut self) {
        self.group.0 = None;
    }
}

/// Why a run gave nothing to look at.
#[derive(Debug)]
pub(super) enum RunFault {
    /// It could not be started.
    Start(io::Error),
    /// Its pipes or its end could not be read.
    Lost(io::Error),
    /// It ended without success.
    Failed { status: ExitStatus, stderr: Tail },
    /// It took longer than this, and was killed.
    TimedOut { after: Duration, stderr: Tail },
    /// It printed more than [`MAX_OUTPUT`], and was killed.
    TooMuch { stderr: Tail },
}

/// Runs `command` in a process group of its own for at most `within`.
pub(super) async fn run(mut command: Command, within: Duration) -> Result<Ran, RunFault> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(RunFault::Start)?;
    let group = Group::of(&child);
    let mut heard = Heard::default();
    let ended = timeout(within, heard.listen(&mut child)).await;
    let Heard { stdout, stderr } = heard;
    // Wherever this returns early, `group` is dropped and all of it killed.
    match ended {
        Err(_) => Err(RunFault::TimedOut {
            after: within,
            stderr,
        }),
        Ok(Err(error)) => Err(RunFault::Lost(error)),
        Ok(Ok(None)) => Err(RunFault::TooMuch { stderr }),
        Ok(Ok(Some(status))) if !status.success() => Err(RunFault::Failed { status, stderr }),
        Ok(Ok(Some(_))) => Ok(Ran {
            stdout,
            stderr,
            group,
        }),
    }
}

/// What came through the pipes.
#[derive(Default)]
struct Heard {
    stdout: Zeroizing<Vec<u8>>,
    stderr: Tail,
}

impl Heard {
    /// Listens until `child` has ended and its pipes are empty. `None` when it printed too much.
    async fn listen(&mut self, child: &mut Child) -> io::Result<Option<ExitStatus>> {
        let mut stdout = child.stdout.take();
        let mut stderr = child.stderr.take();
        let mut out = Zeroizing::new(vec![0; CHUNK]);
        let mut err = vec![0; CHUNK];
        let mut ended: Option<(ExitStatus, Instant)> = None;
        loop {
            if let Some((status, _)) = ended
                && stdout.is_none()
                && stderr.is_none()
            {
                return Ok(Some(status));
            }
            let patience = ended.map(|(_, until)| until);
            tokio::select! {
                chunk = read(&mut stdout, &mut out) => {
                    append(&mut self.stdout, chunk?);
                    if self.stdout.len() > MAX_OUTPUT {
                        return Ok(None);
                    }
                }
                chunk = read(&mut stderr, &mut err) => self.stderr.push(chunk?),
                status = child.wait(), if ended.is_none() => {
                    ended = Some((status?, Instant::now() + AFTER_EXIT));
                }
                () = until(patience) => {
                    stdout = None;
                    stderr = None;
                }
            }
        }
    }
}

/// The next bytes of a pipe, which is closed here once it has come to its end. Never resolves for a closed one.
/// Cancel safe.
async fn read<'a>(
    pipe: &mut Option<impl AsyncRead + Unpin>,
    buffer: &'a mut [u8],
) -> io::Result<&'a [u8]> {
    let Some(open) = pipe else {
        return std::future::pending().await;
    };
    let length = open.read(buffer).await?;
    if length == 0 {
        *pipe = None;
    }
    Ok(buffer.get(..length).unwrap_or_default())
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// Appends to a secret, wiping what is outgrown.
fn append(secret: &mut Zeroizing<Vec<u8>>, bytes: &[u8]) {
    let needed = secret.len().saturating_add(bytes.len());
    if secret.capacity() < needed {
        let room = needed.max(secret.capacity().saturating_mul(2));
        let mut bigger = Zeroizing::new(Vec::with_capacity(room));
        bigger.extend_from_slice(secret);
        *secret = bigger;
    }
    secret.extend_from_slice(bytes);
}

/// The process group of a run. Killed when dropped, all at once, so that nothing can fork its way out.
struct Group(Option<Pid>);

impl Group {
    /// The group that `child` leads.
    fn of(child: &Child) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Self(id.map(Pid::from_raw))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A group that is empty is not found. Its number is not given to another process while it has members,
        // and the leader ended this moment at the earliest.
        if let Some(group) = self.0.take() {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}
