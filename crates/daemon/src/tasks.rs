//! Supervised tasks: none is lost, and the end of one ends all in order.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// How a process is asked to end.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Cancelled when tasks shall finish what they have begun and then end (first TERM or INT, AP-19).
    pub drain: CancellationToken,
    /// Cancelled when there is no more time (second TERM or INT).
    pub now: CancellationToken,
}

/// The named tasks of a process.
///
/// Until [`Shutdown::drain`] is cancelled every task is expected to run. One that ends before, in
/// whatever way, cancels it, and [`Tasks::run`] says which one it was.
#[derive(Debug)]
pub struct Tasks {
    set: JoinSet<Result<(), String>>,
    names: HashMap<Id, Cow<'static, str>>,
    shutdown: Shutdown,
}

/// The task that ended the process.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("task {name} {why}")]
pub struct TaskFailed {
    /// The task's name.
    pub name: Cow<'static, str>,
    /// What it did, as the end of a sentence.
    pub why: String,
}

/// How an orderly end went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Tasks that did not end by themselves in time and were cut off, by name.
    pub cut_off: Vec<Cow<'static, str>>,
}

impl Tasks {
    /// No tasks yet; they will be ended by `shutdown`.
    pub fn new(shutdown: Shutdown) -> Self {
        Self {
            set: JoinSet::new(),
            names: HashMap::new(),
            shutdown,
        }
    }

    /// Starts a task. Its error is told through `Display`.
    pub fn spawn<F, E>(&mut self, name: impl Into<Cow<'static, str>>, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display,
    {
        let handle = self
            .set
            .spawn(async move { task.await.map_err(|e| e.to_string()) });
        self.names.insert(handle.id(), name.into());
    }

    /// Runs until all tasks have ended.
    ///
    /// Once draining begins they have `drain_timeout`; those left then, or when [`Shutdown::now`] is
    /// cancelled, are cut off. A task that failed is reported after the others were given that time.
    pub async fn run(mut self, drain_timeout: Duration) -> Result<Drained, TaskFailed> {
        let mut failed = None;
        let shutdown = self.shutdown.clone();
        tokio::select! {
            biased;
            () = shutdown.now.cancelled() => {}
            () = shutdown.drain.cancelled() => {}
            ended = self.set.join_next_with_id() => match ended {
                Some(ended) => {
                    // A task may ask for the drain itself and end before this select sees the former.
                    let expected = shutdown.drain.is_cancelled();
                    failed = self.judge(ended, expected);
                }
                None => return Ok(Drained::default()),
            }
        }
        shutdown.drain.cancel();

        let deadline = tokio::time::sleep(drain_timeout);
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                biased;
                () = shutdown.now.cancelled() => break,
                ended = self.set.join_next_with_id() => match ended {
                    Some(ended) => {
                        let bad = self.judge(ended, true);
                        failed = failed.or(bad);
                    }
                    None => break,
                },
                () = &mut deadline => break,
            }
        }

        self.set.abort_all();
        while let Some(ended) = self.set.join_next_with_id().await {
            let bad = match &ended {
                Err(e) if e.is_cancelled() => continue,
                _ => self.judge(ended, true),
            };
            failed = failed.or(bad);
        }
        match failed {
            Some(failed) => Err(failed),
            None => {
                let mut cut_off: Vec<_> = self.names.into_values().collect();
                cut_off.sort();
                Ok(Drained { cut_off })
            }
        }
    }

    /// What the end of a task means. `expected` tells whether it was asked to end.
    fn judge(
        &mut self,
        ended: Result<(Id, Result<(), String>), JoinError>,
        expected: bool,
    ) -> Option<TaskFailed> {
        let (id, why) = match ended {
            Ok((id, Ok(()))) if expected => {
                self.names.remove(&id);
                return None;
            }
            Ok((id, Ok(()))) => (id, "ended unexpectedly".to_owned()),
            Ok((id, Err(why))) => (id, format!("failed: {why}")),
            Err(e) => {
                let id = e.id();
                (id, panic_message(e))
            }
        };
        let name = self.names.remove(&id).unwrap_or(Cow::Borrowed("(unnamed)"));
        tracing::error!(task = %name, "task {why}");
        Some(TaskFailed { name, why })
    }
}

fn panic_message(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(payload) => {
            let said = payload
                .downcast_ref::<&str>()
                .copied()
                .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
            format!("panicked: {}", said.unwrap_or("(no message)"))
        }
        Err(_) => "was cancelled".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    async fn until(token: CancellationToken) -> Result<(), String> {
        token.cancelled().await;
        Ok(())
    }

    #[tokio::test]
    async fn a_panic_ends_the_others_in_order_and_is_named() {
        let shutdown = Shutdown::default();
        let mut tasks = Tasks::new(shutdown.clone());
        let said_goodbye = Arc::new(AtomicBool::new(false));
        tasks.spawn("polite", {
            let (drain, said_goodbye) = (shutdown.drain.clone(), said_goodbye.clone());
            async move {
                drain.cancelled().await;
                said_goodbye.store(true, Ordering::SeqCst);
                Ok::<_, String>(())
            }
        });
        tasks.spawn("broken", async {
            if true {
                panic!("index out of range");
            }
            Ok::<_, String>(())
        });
        let failed = tasks.run(Duration::from_secs(60)).await.unwrap_err();
        assert_eq!(failed.name, "broken");
        assert_eq!(failed.why, "panicked: index out of range");
        assert!(said_goodbye.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn an_end_that_nobody_asked_for_is_a_failure() {
        let shutdown = Shutdown::default();
        let mut tasks = Tasks::new(shutdown.clone());
        tasks.spawn("accept", async { Ok::<_, String>(()) });
        tasks.spawn("other", until(shutdown.drain.clone()));
        let failed = tasks.run(Duration::from_secs(60)).await.unwrap_err();
        assert_eq!(failed.to_string(), "task accept ended unexpectedly");
        assert!(shutdown.drain.is_cancelled());
    }

    #[tokio::test]
    async fn an_error_is_told_in_its_own_words() {
        let mut tasks = Tasks::new(Shutdown::default());
        tasks.spawn("store", async { Err("disk full") });
        let failed = tasks.run(Duration::ZERO).await.unwrap_err();
        assert_eq!(failed.to_string(), "task store failed: disk full");
    }

    // AP-19: wait at most the drain timeout.
    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_at_most_its_deadline_and_names_who_was_cut_off() {
        let shutdown = Shutdown::default();
        let mut tasks = Tasks::new(shutdown.clone());
        tasks.spawn("deaf", pending::<Result<(), String>>());
        tasks.spawn("polite", until(shutdown.drain.clone()));
        shutdown.drain.cancel();
        let begun = tokio::time::Instant::now();
        let drained = tasks.run(Duration::from_secs(30)).await.unwrap();
        assert_eq!(begun.elapsed(), Duration::from_secs(30));
        assert_eq!(drained.cut_off, ["deaf"]);
    }

    // AP-19: the second signal does not wait.
    #[tokio::test(start_paused = true)]
    async fn now_cuts_the_drain_short() {
        let shutdown = Shutdown::default();
        let mut tasks = Tasks::new(shutdown.clone());
        tasks.spawn("deaf", pending::<Result<(), String>>());
        shutdown.now.cancel();
        let begun = tokio::time::Instant::now();
        let drained = tasks.run(Duration::from_secs(30)).await.unwrap();
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert_eq!(drained.cut_off, ["deaf"]);
    }

    #[tokio::test]
    async fn a_task_may_end_the_process_by_asking_for_the_drain() {
        let shutdown = Shutdown::default();
        let mut tasks = Tasks::new(shutdown.clone());
        tasks.spawn("once", {
            let drain = shutdown.drain.clone();
            async move {
                drain.cancel();
                Ok::<_, String>(())
            }
        });
        tasks.spawn("other", until(shutdown.drain.clone()));
        let drained = tasks.run(Duration::from_secs(60)).await.unwrap();
        assert_eq!(drained, Drained::default());
    }
}
