//! Idle sessions, and executors that come back when they lose theirs.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use clap::{Args, ValueEnum};
use rand::RngExt;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::Instant;

use super::connect::{Dialer, Executor, Target, executors};
use super::session::Stay;
use super::stats::{Clock, Event, Tally, unix_us};

/// Connections of one process: each takes two descriptors of 20,000 where the hard limit is low.
pub(crate) const MOST: u32 = 9_500;

#[derive(Args, Clone, Debug)]
pub(crate) struct Hold {
    #[command(flatten)]
    target: Target,
    /// Most sessions that will be asked for.
    #[arg(long, default_value_t = MOST, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST)))]
    most: u32,
    /// Handshakes under way at a time.
    #[arg(long, default_value_t = 64)]
    concurrent: usize,
}

impl Hold {
    /// Reads session counts from standard input, opens sessions up to each, says when they are held; ends with the input.
    pub(crate) async fn run(self) -> io::Result<()> {
        let dialer = Arc::new(Dialer::new(&self.target)?);
        let tally = Arc::new(Tally::new()?);
        let mut waiting = executors(&self.target, self.most)?.into_iter();
        let mut held = 0;
        let clock = Clock::start(self.target.server_pid)?;
        let mut counts = counts_from_stdin();
        while let Some(wanted) = counts.recv().await {
            let wanted = wanted?;
            let doors = Arc::new(Semaphore::new(self.concurrent));
            let (sender, mut opened) = mpsc::unbounded_channel();
            while held < wanted {
                let Some(executor) = waiting.next() else {
                    return Err(io::Error::other("more sessions asked for than --most"));
                };
                held += 1;
                let door = doors
                    .clone()
                    .acquire_owned()
                    .await
                    .map_err(io::Error::other)?;
                let (dialer, tally, sender) = (dialer.clone(), tally.clone(), sender.clone());
                tokio::spawn(async move {
                    let begun = Instant::now();
                    let result = dialer
                        .visit(&executor, Stay::UntilClosed, || {
                            tally.completed(begun.elapsed());
                            drop((door, sender));
                        })
                        .await;
                    if let Err(error) = result {
                        tally.failed(&error);
                        Event::Closed {
                            executor: executor.number,
                            reason: error.to_string(),
                            unix_us: unix_us(),
                        }
                        .print();
                    }
                });
            }
            // Ends when every session has dropped its sender: it is open or it has failed.
            drop(sender);
            let _: Option<()> = opened.recv().await;
            let count = u32::try_from(tally.count()).unwrap_or(u32::MAX);
            Event::Held {
                count,
                unix_us: unix_us(),
            }
            .print();
        }
        Event::Done(tally.report(clock.stop()?)).print();
        Ok(())
    }
}

fn counts_from_stdin() -> mpsc::UnboundedReceiver<io::Result<u32>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in io::stdin().lines() {
            let count = line.and_then(|line| line.trim().parse().map_err(io::Error::other));
            if sender.send(count).is_err() {
                break;
            }
        }
    });
    receiver
}

/// How an executor without a session tries again.
#[derive(ValueEnum, Clone, Copy, Debug)]
enum Temper {
    /// Waits a random time within the back-off window, as the product does.
    Polite,
    /// Gives up after one second and is back within 50 to 200 ms.
    Hostile,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Storm {
    #[command(flatten)]
    target: Target,
    /// Executors.
    #[arg(long, default_value_t = MOST, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST)))]
    executors: u32,
    /// How they try again.
    #[arg(long, value_enum)]
    temper: Temper,
    /// Back-off window of polite executors in seconds.
    #[arg(long, default_value_t = 5.0)]
    window: f64,
    /// The run ends after this time in seconds, whatever happened.
    #[arg(long, default_value_t = 120.0)]
    seconds: f64,
}

/// How many executors have a session just now.
#[derive(Debug, Default)]
struct Enrolled {
    count: AtomicU32,
    changed: Notify,
}

impl Enrolled {
    fn add(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_one();
    }

    fn remove(&self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.changed.notify_one();
    }
}

impl Storm {
    /// Says `held` whenever all executors are enrolled, `closed` once when the first of them is lost again.
    pub(crate) async fn run(self) -> io::Result<()> {
        let dialer = Arc::new(Dialer::new(&self.target)?);
        let tally = Arc::new(Tally::new()?);
        let enrolled = Arc::new(Enrolled::default());
        let clock = Clock::start(None)?;
        let window = Duration::from_secs_f64(self.window);
        let executors = executors(&self.target, self.executors)?;
        Event::Begun { unix_us: unix_us() }.print();
        for executor in executors {
            let (dialer, tally, enrolled) = (dialer.clone(), tally.clone(), enrolled.clone());
            tokio::spawn(insist(
                dialer,
                executor,
                self.temper,
                window,
                tally,
                enrolled,
            ));
        }
        let end = Instant::now() + Duration::from_secs_f64(self.seconds);
        let mut complete = false;
        while tokio::time::timeout_at(end, enrolled.changed.notified())
            .await
            .is_ok()
        {
            let count = enrolled.count.load(Ordering::Relaxed);
            let now = unix_us();
            if count == self.executors && !complete {
                complete = true;
                Event::Held {
                    count,
                    unix_us: now,
                }
                .print();
            } else if count < self.executors && complete {
                complete = false;
                let reason = "an executor lost its session".to_owned();
                Event::Closed {
                    executor: count,
                    reason,
                    unix_us: now,
                }
                .print();
            }
        }
        Event::Done(tally.report(clock.stop()?)).print();
        Ok(())
    }
}

async fn insist(
    dialer: Arc<Dialer>,
    executor: Executor,
    temper: Temper,
    window: Duration,
    tally: Arc<Tally>,
    enrolled: Arc<Enrolled>,
) {
    let mut since = Instant::now();
    loop {
        let (confirm, confirmed) = tokio::sync::oneshot::channel();
        let mut held = false;
        let visit = dialer.visit(&executor, Stay::UntilClosed, || {
            let _ = confirm.send(());
        });
        tokio::pin!(visit);
        let patience = match temper {
            Temper::Polite => Duration::from_secs(10),
            Temper::Hostile => Duration::from_secs(1),
        };
        let result = tokio::select! {
            biased;
            Ok(()) = confirmed => {
                held = true;
                tally.completed(since.elapsed());
                enrolled.add();
                visit.await
            }
            result = &mut visit => result,
            () = tokio::time::sleep(patience) => Err(io::ErrorKind::TimedOut.into()),
        };
        if held {
            enrolled.remove();
            since = Instant::now();
        }
        if let Err(error) = result {
            tally.failed(&error);
        }
        let pause = match temper {
            Temper::Polite => window.mul_f64(rand::random::<f64>()),
            Temper::Hostile => Duration::from_millis(rand::rng().random_range(50..=200)),
        };
        tokio::time::sleep(pause).await;
    }
}
