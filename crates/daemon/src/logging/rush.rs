//! Log lines that leave together when there are many.
//!
//! A line costs a system call and wakes whoever reads it: in a rush of enrollments more than the rest of telling them.
//! The first few lines are written at once, by who tells them; those of a rush gather and leave in one write, 10 ms
//! later at most. A warning or an error takes all that waits along, at once.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// How long a line waits at most.
const GATHER: Duration = Duration::from_millis(10);

/// Lines that are written at once in such a time.
const AT_ONCE: u32 = 4;

/// Bytes that wait at most: above it the teller of the next line writes, and waits where the reader is slow.
const MOST: usize = 64 * 1024;

/// Lines on their way to `output`. Clones share it.
#[derive(Clone)]
pub(super) struct Rush(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Tells the thread that lines wait, or that there will be none.
    work: Condvar,
}

struct State {
    output: Box<dyn Write + Send>,
    waiting: Vec<u8>,
    /// When the time began in which `told` lines were written at once.
    since: Instant,
    told: u32,
    thread: Thread,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Thread {
    /// Not needed so far.
    None,
    Running,
    /// There is none: each line is written at once.
    Over,
}

impl Rush {
    pub(super) fn to(output: impl Write + Send + 'static) -> Self {
        let state = State {
            output: Box::new(output),
            waiting: Vec::new(),
            since: Instant::now(),
            told: 0,
            thread: Thread::None,
        };
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            work: Condvar::new(),
        }))
    }

    /// Writes what waits. From now on each line is written at once.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.flush();
        state.thread = Thread::Over;
        self.0.work.notify_all();
    }

    fn tell(&self, line: &[u8], at_once: bool) {
        let mut state = self.lock();
        let now = Instant::now();
        if now.duration_since(state.since) >= GATHER {
            (state.since, state.told) = (now, 0);
        }
        state.told = state.told.saturating_add(1);
        let calm = state.told <= AT_ONCE && state.waiting.is_empty();
        let full = state.waiting.len() + line.len() > MOST;
        let first = state.waiting.is_empty();
        state.waiting.extend_from_slice(line);
        if at_once || calm || full || !self.has_thread(&mut state) {
            state.flush();
        } else if first {
            self.0.work.notify_one();
        }
    }

    /// Starts the thread with the first rush: most processes never have one.
    fn has_thread(&self, state: &mut State) -> bool {
        if state.thread == Thread::None {
            let rush = self.clone();
            let started = std::thread::Builder::new()
                .name("log".to_owned())
                .spawn(move || rush.run());
            state.thread = match started {
                Ok(_) => Thread::Running,
                Err(_) => Thread::Over,
            };
        }
        state.thread == Thread::Running
    }

    fn run(&self) {
        let mut state = self.lock();
        while state.thread == Thread::Running {
            if state.waiting.is_empty() {
                let woken = self.0.work.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let woken = self.0.work.wait_timeout(state, GATHER);
            (state, _) = woken.unwrap_or_else(PoisonError::into_inner);
            state.flush();
            // The rush goes on: no line of the next 10 ms is a first one.
            (state.since, state.told) = (Instant::now(), AT_ONCE);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock, and a line more or less harms nobody.
        let state = self.0.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn flush(&mut self) {
        // Nobody is left to be told that a line could not be told.
        let _ = self.output.write_all(&self.waiting);
        let _ = self.output.flush();
        self.waiting.clear();
    }
}

impl<'a> MakeWriter<'a> for Rush {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Line {
            rush: self,
            at_once: true,
        }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Self::Writer {
        Line {
            rush: self,
            at_once: *meta.level() <= Level::WARN,
        }
    }
}

/// Takes one line, whole.
pub(super) struct Line<'a> {
    rush: &'a Rush,
    at_once: bool,
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.rush.tell(line, self.at_once);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    struct Output(Sender<Vec<u8>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn rush() -> (Rush, Receiver<Vec<u8>>) {
        let (sender, written) = channel();
        (Rush::to(Output(sender)), written)
    }

    fn numbered(n: u32) -> String {
        format!("line {n}\n")
    }

    #[test]
    fn a_lone_line_is_out_at_once_and_a_rush_leaves_in_order_in_few_writes() {
        let (rush, written) = rush();
        rush.tell(b"alone\n", false);
        assert_eq!(written.try_recv().unwrap(), b"alone\n");
        let count = 10_000;
        for n in 0..count {
            rush.tell(numbered(n).as_bytes(), false);
        }
        // Without another line, and without an end.
        let expected = (0..count).map(numbered).collect::<String>();
        let mut text = Vec::new();
        let mut writes = 0;
        while text.len() < expected.len() {
            text.extend(written.recv_timeout(Duration::from_secs(30)).unwrap());
            writes += 1;
        }
        assert_eq!(String::from_utf8(text).unwrap(), expected);
        assert!(writes < count / 4, "{writes}");
        rush.end();
    }

    #[test]
    fn a_warning_takes_along_what_waits() {
        let (rush, written) = rush();
        for n in 0..100 {
            rush.tell(numbered(n).as_bytes(), false);
        }
        rush.tell(b"warning\n", true);
        let text = written.try_iter().flatten().collect::<Vec<_>>();
        assert!(text.starts_with(b"line 0\n") && text.ends_with(b"line 99\nwarning\n"));
        rush.end();
    }

    #[test]
    fn nothing_is_left_at_the_end_and_what_follows_is_out_at_once() {
        let (rush, written) = rush();
        for n in 0..100 {
            rush.tell(numbered(n).as_bytes(), false);
        }
        rush.end();
        let text = written.try_iter().flatten().collect::<Vec<_>>();
        assert!(text.ends_with(b"line 99\n"));
        for n in 0..100 {
            rush.tell(numbered(n).as_bytes(), false);
            assert_eq!(written.try_recv().unwrap(), numbered(n).as_bytes());
        }
    }
}
