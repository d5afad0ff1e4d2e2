//! Throughput: connect, enroll, leave, as fast as the server can, or at a given rate.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, MissedTickBehavior};

use super::connect::{Dialer, Target, executors};
use super::session::Stay;
use super::stats::{Clock, Event, Tally};

#[derive(Args, Clone, Debug)]
pub(crate) struct Rate {
    #[command(flatten)]
    target: Target,
    /// Executors that connect, enroll and leave, each as often as it can.
    #[arg(long, default_value_t = 64)]
    workers: u32,
    /// Executors that the workers share out and take turns with; as many as there are workers by default.
    #[arg(long)]
    executors: Option<u32>,
    /// Length of the measured time in seconds.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Time before that in seconds.
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
}

impl Rate {
    pub(crate) async fn run(self) -> io::Result<()> {
        let dialer = Arc::new(Dialer::new(&self.target)?);
        let tally = Arc::new(Tally::new()?);
        let workers = usize::try_from(self.workers).map_err(io::Error::other)?;
        let executors = executors(&self.target, self.executors.unwrap_or(0).max(self.workers))?;
        for worker in 0..workers {
            let own: Vec<_> = (executors.iter().skip(worker))
                .step_by(workers)
                .cloned()
                .collect();
            let (dialer, tally) = (dialer.clone(), tally.clone());
            tokio::spawn(async move {
                for executor in own.iter().cycle() {
                    let begun = Instant::now();
                    match dialer.visit(executor, Stay::Leave, || {}).await {
                        Ok(()) => tally.completed(begun.elapsed()),
                        Err(error) => {
                            tally.failed(&error);
                            // A server that refuses shall not turn this into a loop that only burns CPU.
                            tokio::time::sleep(Duration::from_millis(10)).await;
                        }
                    }
                }
            });
        }
        tokio::time::sleep(Duration::from_secs_f64(self.warm_up)).await;
        tally.reset();
        let clock = Clock::start(self.target.server_pid)?;
        tokio::time::sleep(Duration::from_secs_f64(self.seconds)).await;
        Event::Done(tally.report(clock.stop()?)).print();
        Ok(())
    }
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Open {
    #[command(flatten)]
    target: Target,
    /// Executors that take turns.
    #[arg(long, default_value_t = 1_000)]
    executors: u32,
    /// Arrivals a second, whether or not earlier ones are done.
    #[arg(long)]
    per_second: f64,
    /// Length of the run in seconds.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// How long each executor stays, in seconds.
    #[arg(long, default_value_t = 0.0)]
    linger: f64,
    /// Longest time for an arrival, in seconds; then it counts as failed.
    #[arg(long, default_value_t = 10.0)]
    timeout: f64,
}

impl Open {
    /// Latency counts from the moment an arrival was due, so that a stalled server is seen in full.
    pub(crate) async fn run(self) -> io::Result<()> {
        let dialer = Arc::new(Dialer::new(&self.target)?);
        let tally = Arc::new(Tally::new()?);
        let stay = if self.linger > 0.0 {
            Stay::For(Duration::from_secs_f64(self.linger))
        } else {
            Stay::Leave
        };
        let timeout = Duration::from_secs_f64(self.timeout);
        let executors = executors(&self.target, self.executors)?;
        let end = Instant::now() + Duration::from_secs_f64(self.seconds);
        let mut arrivals = tokio::time::interval(Duration::from_secs_f64(1.0 / self.per_second));
        arrivals.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let clock = Clock::start(self.target.server_pid)?;
        for executor in executors.iter().cycle() {
            let due = arrivals.tick().await;
            if due >= end {
                break;
            }
            let (dialer, tally, executor) = (dialer.clone(), tally.clone(), executor.clone());
            tokio::spawn(async move {
                let (confirm, confirmed) = tokio::sync::oneshot::channel();
                let visit = dialer.visit(&executor, stay, || {
                    tally.completed(due.elapsed());
                    let _ = confirm.send(());
                });
                tokio::pin!(visit);
                let result = tokio::select! {
                    result = &mut visit => result,
                    _ = confirmed => visit.await,
                    () = tokio::time::sleep_until(due + timeout) => Err(io::ErrorKind::TimedOut.into()),
                };
                if let Err(error) = result {
                    tally.failed(&error);
                }
            });
        }
        let used = clock.stop()?;
        // What is still under way gets its time to finish or to fail.
        tokio::time::sleep(
            timeout.min(Duration::from_secs(2)) + Duration::from_secs_f64(self.linger),
        )
        .await;
        Event::Done(tally.report(used)).print();
        Ok(())
    }
}
