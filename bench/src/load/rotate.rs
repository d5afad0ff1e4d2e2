//! Server certificates swapped under load: in files, by a Workload API, where a command finds them, or by whom the server
//! asks.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ah_testkit::workload_api::{Answer, WorkloadApi};
use clap::{ArgAction, Args};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use rustls_pki_types::CertificateDer;

use super::connect::{Dialed, Dialer, Target, executors};
use super::session::Stay;
use super::stats::{Clock, Event, Tally, unix_us};
use crate::pki::{Authority, Files, Leaf};

#[derive(Args, Clone, Debug)]
pub(crate) struct Rotate {
    #[command(flatten)]
    target: Target,
    /// How often the server's certificate and key are replaced.
    #[arg(long, default_value_t = 100)]
    swaps: usize,
    /// Milliseconds from one to the next.
    #[arg(long, default_value_t = 600)]
    interval_ms: u64,
    /// Executors that connect, look at the certificate and leave.
    #[arg(long, default_value_t = 8)]
    watchers: u32,
    /// Pause of a watcher between two connections in milliseconds.
    #[arg(long, default_value_t = 10)]
    pause_ms: u64,
    /// Sessions held meanwhile; each one that ends is reported.
    #[arg(long, default_value_t = 500)]
    held: u32,
    /// Serve the certificates as a Workload API on this socket, instead of replacing files. The server must use
    /// the socket already: it is waited for until it calls.
    #[arg(long)]
    workload_api: Option<PathBuf>,
    /// Tell the server by a HUP signal after each replacement: for identities that are asked for.
    #[arg(long, action = ArgAction::Set, default_value_t = false)]
    hup: bool,
    /// Nothing is put in place: at each HUP the server gets another certificate from its own source. Take `--hup` and
    /// `--server-pid` with it.
    #[arg(long, action = ArgAction::Set, default_value_t = false)]
    issued: bool,
}

/// Where a certificate is put.
enum Place {
    Files(Files),
    Stream(WorkloadApi),
    /// The server asks somebody itself.
    Issuer,
}

impl Place {
    fn put(&self, leaf: &Leaf, authority: &Authority) -> io::Result<()> {
        match self {
            Self::Files(files) => leaf.install(files)?,
            Self::Stream(api) => api.say(Answer::Set(leaf.svids(authority))),
            Self::Issuer => {}
        }
        Ok(())
    }
}

/// When which certificate was put in place, and how late it was still missing.
#[derive(Debug)]
struct Swaps {
    /// By certificate, the number of the swap that replaces it.
    replaced_by: Mutex<HashMap<CertificateDer<'static>, usize>>,
    /// Certificates are numbered as they are first seen: they are made elsewhere.
    learns: bool,
    done: Mutex<Vec<Swap>>,
}

#[derive(Debug)]
struct Swap {
    at: Instant,
    unix_us: u64,
    late: Duration,
}

impl Swaps {
    /// Notes a handshake: if a newer certificate was in place when it began, that swap was late by so much.
    fn saw(&self, dialed: &Dialed) {
        let newer = dialed.server_certificate().map_or(0, |found| {
            let mut known = self
                .replaced_by
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let next = known.len();
            match known.get(found) {
                Some(newer) => *newer,
                None if self.learns => *known.entry(found.clone()).or_insert(next),
                None => 0,
            }
        });
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(swap) = done.get_mut(newer) {
            swap.late = swap
                .late
                .max(dialed.begun.saturating_duration_since(swap.at));
        }
    }
}

impl Rotate {
    /// What is known before the first swap: that a certificate made here is replaced by the swap after its own.
    fn swaps(&self, leaves: &[Leaf]) -> Swaps {
        let made = leaves.iter().map(|leaf| leaf.certificate.clone());
        let replaced_by = match self.issued {
            true => HashMap::new(),
            false => made.zip(1..).collect(),
        };
        Swaps {
            replaced_by: Mutex::new(replaced_by),
            learns: self.issued,
            done: Mutex::default(),
        }
    }

    pub(crate) async fn run(self) -> io::Result<()> {
        if self.issued && !(self.hup && self.target.server_pid.is_some()) {
            return Err(io::Error::other(
                "--issued takes --hup=true and --server-pid",
            ));
        }
        let files = Files::at(&self.target.pki);
        let authority = Authority::open(&files)?;
        let leaves: Vec<_> = std::iter::repeat_with(|| authority.server())
            .take(self.swaps)
            .collect::<io::Result<_>>()?;
        let place = match &self.workload_api {
            None if self.issued => Place::Issuer,
            None => Place::Files(files),
            Some(socket) => {
                let first = Answer::Set(authority.server()?.svids(&authority));
                let api = WorkloadApi::unix(socket, first);
                api.wait_for_calls(1);
                Place::Stream(api)
            }
        };
        let swaps = Arc::new(self.swaps(&leaves));
        let dialer = Arc::new(Dialer::new(&self.target)?);
        let tally = Arc::new(Tally::new()?);
        let mut executors = executors(&self.target, self.watchers + self.held)?.into_iter();
        for executor in executors
            .by_ref()
            .take(usize::try_from(self.held).unwrap_or(0))
        {
            let dialer = dialer.clone();
            let (confirm, confirmed) = tokio::sync::oneshot::channel::<()>();
            tokio::spawn(async move {
                let visit = dialer.visit(&executor, Stay::UntilClosed, || drop(confirm));
                if let Err(error) = visit.await {
                    let (executor, reason) = (executor.number, error.to_string());
                    Event::Closed {
                        executor,
                        reason,
                        unix_us: unix_us(),
                    }
                    .print();
                }
            });
            let _ = confirmed.await;
        }
        Event::Held {
            count: self.held,
            unix_us: unix_us(),
        }
        .print();
        if let Some(executor) = executors.as_slice().first() {
            swaps.saw(&dialer.dial(executor).await?);
        }
        for executor in executors {
            let (dialer, tally, swaps) = (dialer.clone(), tally.clone(), swaps.clone());
            let pause = Duration::from_millis(self.pause_ms);
            tokio::spawn(async move {
                loop {
                    let begun = Instant::now();
                    let visit = async {
                        let dialed = dialer.dial(&executor).await?;
                        swaps.saw(&dialed);
                        dialer.converse(dialed, &executor, Stay::Leave, || {}).await
                    };
                    match visit.await {
                        Ok(()) => tally.completed(begun.elapsed()),
                        Err(error) => tally.failed(&error),
                    }
                    tokio::time::sleep(pause).await;
                }
            });
        }
        let clock = Clock::start(self.target.server_pid)?;
        let told = self.target.server_pid.filter(|_| self.hup);
        let mut pace = tokio::time::interval(Duration::from_millis(self.interval_ms));
        for leaf in leaves {
            pace.tick().await;
            place.put(&leaf, &authority)?;
            if let Some(server) = told {
                let server = i32::try_from(server).map_err(io::Error::other)?;
                signal::kill(Pid::from_raw(server), Signal::SIGHUP)?;
            }
            let swap = Swap {
                at: Instant::now(),
                unix_us: unix_us(),
                late: Duration::ZERO,
            };
            swaps
                .done
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(swap);
        }
        // The last swap gets its time to be seen, and more than the bar allows.
        tokio::time::sleep(Duration::from_secs(2)).await;
        for (swap, done) in swaps
            .done
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .enumerate()
        {
            let late_us = u64::try_from(done.late.as_micros()).unwrap_or(u64::MAX);
            Event::Swapped {
                swap,
                unix_us: done.unix_us,
                late_us,
            }
            .print();
        }
        let seen = swaps.replaced_by.lock().map_or(0, |known| known.len());
        if self.issued && seen != self.swaps + 1 {
            return Err(io::Error::other(format!(
                "the server showed {seen} certificates in {} swaps",
                self.swaps
            )));
        }
        Event::Done(tally.report(clock.stop()?)).print();
        Ok(())
    }
}
