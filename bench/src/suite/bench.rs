//! What every measurement of the suite needs, and the loads it starts.

use std::fs::{self, File};
use std::io;
use std::time::Duration;

use super::process::{LoadRun, Server};
use super::rotation::Origin;
use super::subject::{Places, Subject};
use super::table::Sample;
use crate::load::Protocol;
use crate::load::stats::Report;

/// How thorough a run of the suite is.
#[derive(Clone, Debug)]
pub(crate) struct Effort {
    /// Runs of each throughput and memory measurement.
    pub(crate) runs: usize,
    /// Seconds of one throughput measurement.
    pub(crate) seconds: f64,
    /// Sessions of the large measurements.
    pub(crate) sessions: u32,
    /// Certificate swaps.
    pub(crate) swaps: usize,
    /// Sockets of the noise measurements.
    pub(crate) sockets: u32,
    /// Length of the churn.
    pub(crate) churn: Duration,
    /// Arrivals of the churn a second, unless half of bar 1.
    pub(crate) churn_rate: Option<f64>,
    /// Where the certificates of the rotations come from.
    pub(crate) rotations: Vec<Origin>,
    /// Least share of its core that a server must have used for a throughput run to count.
    pub(crate) least_busy: f64,
}

/// Who has the sessions of a throughput run. A server may know those that come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Executors {
    /// Few, again and again.
    Returning,
    /// Each for the first time.
    New,
}

/// The suite's places and effort, and what it learns on the way.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) places: Places,
    pub(crate) effort: Effort,
    /// Remarks for the end of the table.
    pub(crate) notes: Vec<String>,
    /// Sessions a second and core of the access point, once measured.
    access_point_rate: Option<f64>,
}

impl Bench {
    pub(crate) fn new(places: Places, effort: Effort) -> Self {
        Self {
            places,
            effort,
            notes: Vec::new(),
            access_point_rate: None,
        }
    }

    /// Starts `ah-bench load KIND` on `server`. The words of `options` are passed on as they are.
    pub(crate) fn load(
        &self,
        kind: &str,
        server: &Server,
        protocol: Protocol,
        options: &[(&str, String)],
    ) -> io::Result<LoadRun> {
        let protocol = clap::ValueEnum::to_possible_value(&protocol)
            .map_or_else(String::new, |value| value.get_name().to_owned());
        let mut arguments = vec![
            kind.to_owned(),
            format!("--target={}", server.address),
            format!("--protocol={protocol}"),
            format!("--pki={}", self.places.pki.display()),
            format!("--server-pid={}", server.pid()),
        ];
        for (name, value) in options {
            arguments.push(format!("--{name}={value}"));
        }
        let complaints = File::options()
            .create(true)
            .append(true)
            .open(self.places.scratch.join("load.log"))?;
        LoadRun::start(&arguments, complaints)
    }

    /// What load generators complained about.
    pub(crate) fn complaints(&self) -> String {
        fs::read_to_string(self.places.scratch.join("load.log")).unwrap_or_default()
    }

    /// One throughput run with executors that come back again and again; an error when it measured something else than
    /// the server.
    pub(crate) fn rate(&self, server: &Server, protocol: Protocol) -> io::Result<Report> {
        self.rate_of(server, protocol, Executors::Returning)
    }

    /// As [`Self::rate`].
    pub(crate) fn rate_of(
        &self,
        server: &Server,
        protocol: Protocol,
        executors: Executors,
    ) -> io::Result<Report> {
        let seconds = self.effort.seconds;
        let mut options = vec![("seconds", seconds.to_string())];
        if executors == Executors::New {
            // More than a core serves in the time: none comes twice.
            let count = (seconds + 1.0) * 4_000.0;
            options.push(("executors", format!("{count:.0}")));
        }
        let run = self.load("rate", server, protocol, &options)?;
        let (report, _) = run.finish(Duration::from_secs_f64(seconds + 40.0))?;
        let busy = report.server_busy().unwrap_or(0.0);
        if let Some((error, _)) = report.errors.iter().max_by_key(|(_, count)| **count)
            && report.failed * 100 > report.completed
        {
            return Err(io::Error::other(format!(
                "{} of {} sessions failed, most with: {error}",
                report.failed,
                report.failed + report.completed
            )));
        }
        if busy < self.effort.least_busy {
            return Err(io::Error::other(format!(
                "discarded, the server was {:.0} % busy and the load generator {:.0} % (bottleneck: {:?})",
                100.0 * busy,
                100.0 * report.load_busy(),
                report.bottleneck
            )));
        }
        Ok(report)
    }

    /// Throughput of each subject, run in turns. A subject that cannot be had or measured gets a reason instead.
    pub(crate) fn rates(&mut self, subjects: &[Subject]) -> Vec<Result<Sample, String>> {
        let returning = subjects.iter().map(|one| (*one, Executors::Returning));
        self.rates_of(&returning.collect::<Vec<_>>())
    }

    /// As [`Self::rates`].
    pub(crate) fn rates_of(
        &mut self,
        subjects: &[(Subject, Executors)],
    ) -> Vec<Result<Sample, String>> {
        self.interleaved(subjects, |bench, (subject, executors)| {
            let server = bench.places.start(subject)?;
            let report = bench.rate_of(&server, subject.protocol(), executors)?;
            report
                .per_core_second()
                .ok_or_else(|| io::Error::other("used no CPU time"))
        })
    }

    /// Measures each subject `runs` times, in turns, so that a drift of the machine meets all alike.
    pub(crate) fn interleaved<T: Copy>(
        &mut self,
        subjects: &[T],
        measure: impl Fn(&Self, T) -> io::Result<f64>,
    ) -> Vec<Result<Sample, String>> {
        let mut values = vec![Vec::new(); subjects.len()];
        let mut reasons = vec![String::new(); subjects.len()];
        for _ in 0..self.effort.runs {
            for ((subject, values), reason) in subjects.iter().zip(&mut values).zip(&mut reasons) {
                // What failed on its first run is not there; later failures are single bad runs.
                if values.is_empty() && !reason.is_empty() && !reason.contains("discarded") {
                    continue;
                }
                match measure(self, *subject) {
                    Ok(value) => values.push(value),
                    Err(error) => *reason = error.to_string(),
                }
            }
        }
        let samples = values.into_iter().zip(reasons);
        samples
            .map(|(values, reason)| Sample::of(values).ok_or(reason))
            .collect()
    }

    /// Rate of bar 1 with new executors, which other bars are multiples of: as measured before, or by one run now.
    pub(crate) fn access_point_rate(&mut self) -> io::Result<f64> {
        if let Some(rate) = self.access_point_rate {
            return Ok(rate);
        }
        let server = self.places.start(Subject::AccessPoint)?;
        let report = self.rate_of(&server, Protocol::Fleet, Executors::New)?;
        let rate = report
            .per_core_second()
            .ok_or_else(|| io::Error::other("used no CPU time"))?;
        self.access_point_rate = Some(rate);
        Ok(rate)
    }

    pub(crate) fn learn_access_point_rate(&mut self, rate: f64) {
        self.access_point_rate = Some(rate);
    }

    /// A hold run with `sessions` open.
    pub(crate) fn hold(
        &self,
        server: &Server,
        protocol: Protocol,
        sessions: u32,
    ) -> io::Result<LoadRun> {
        let mut run = self.load("hold", server, protocol, &[("most", sessions.to_string())])?;
        run.ask(sessions)?;
        let (count, _) = run.held(Duration::from_secs(60))?;
        if count < sessions {
            return Err(io::Error::other(format!(
                "only {count} of {sessions} sessions opened"
            )));
        }
        Ok(run)
    }
}
