//! SPIRE server and agent beside another pair of binaries: the same work over the same wire, in turns.

mod agent;
mod failover;
mod fill;
mod many;
mod node;
mod server;
mod site;
mod warm;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use self::site::Programs;
use crate::suite::Sample;

/// Measures `spire-server` and `spire-agent`, ours and a peer's, and prints both with their ratio.
#[derive(Args, Clone, Debug)]
pub(crate) struct Spire {
    /// Folder with our two binaries; that of this program by default.
    #[arg(long)]
    ours: Option<PathBuf>,
    /// Folder with the peer's two binaries.
    #[arg(long)]
    peer: Option<PathBuf>,
    /// Runs of each measurement.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Measure only these.
    #[arg(long, value_delimiter = ',', default_values_t = Case::ALL)]
    only: Vec<Case>,
    /// Registration entries in the datastore; a tenth of them for the capacity.
    #[arg(long, default_value_t = 100_000)]
    entries: u32,
    /// Agents that are connected at a time.
    #[arg(long, default_value_t = 1_000)]
    agents: u32,
    /// Changes that are told to one of many agents each.
    #[arg(long, default_value_t = 200)]
    changes: u32,
    /// Seconds of each throughput measurement.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Streams held open on the agent.
    #[arg(long, default_value_t = 1_000)]
    streams: u32,
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Case {
    /// Writing, starting, syncing and signing (bars 11 and 12).
    Server,
    /// One agent and its workloads (bars 14 and 15).
    Agent,
    /// How soon a change reaches one of many agents (bar 13).
    Told,
    /// What many agents cost that poll and listen (bar 16).
    Capacity,
    /// Two servers on one PostgreSQL, and their faults (bar 18).
    Failover,
    /// An agent that is restarted, with its server and without.
    Warm,
}

impl Case {
    const ALL: [Self; 6] = [
        Self::Server,
        Self::Agent,
        Self::Told,
        Self::Capacity,
        Self::Failover,
        Self::Warm,
    ];
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.to_possible_value() {
            Some(value) => f.write_str(value.get_name()),
            None => Ok(()),
        }
    }
}

/// One figure of one implementation.
pub(crate) struct Figure {
    what: &'static str,
    unit: &'static str,
    value: f64,
    /// The bar's number and what it asks for, where it asks for a figure of its own.
    bar: &'static str,
}

impl Figure {
    fn new(what: &'static str, unit: &'static str, value: f64) -> Self {
        Self {
            what,
            unit,
            value,
            bar: "",
        }
    }

    fn bar(self, bar: &'static str) -> Self {
        Self { bar, ..self }
    }
}

impl Spire {
    pub(crate) async fn run(self) -> io::Result<ExitCode> {
        site::stay_on_load_core()?;
        let beside = std::env::current_exe()?;
        let beside = beside.parent().map(PathBuf::from).unwrap_or_default();
        let mut sides = vec![(
            "ours",
            Programs::in_folder(self.ours.clone().unwrap_or(beside)),
        )];
        if let Some(peer) = &self.peer {
            sides.push(("peer", Programs::in_folder(peer.clone())));
        }
        let mut columns: Vec<Vec<(Figure, Vec<f64>)>> = sides.iter().map(|_| Vec::new()).collect();
        for run in 0..self.runs.max(1) {
            for ((name, programs), column) in sides.iter().zip(&mut columns) {
                eprintln!("run {} of {name}", run + 1);
                for figure in self.figures(programs).await? {
                    match column
                        .iter_mut()
                        .find(|(known, _)| known.what == figure.what)
                    {
                        Some((_, values)) => values.push(figure.value),
                        None => {
                            let values = vec![figure.value];
                            column.push((figure, values));
                        }
                    }
                }
            }
        }
        println!("| what | ours | peer | ours ÷ peer | bar |\n|---|---|---|---|---|");
        let mut columns = columns.into_iter();
        let ours = columns.next().unwrap_or_default();
        let peers = columns.next().unwrap_or_default();
        for (figure, values) in ours {
            let Some(sample) = Sample::of(values) else {
                continue;
            };
            let peer = peers
                .iter()
                .find(|(other, _)| other.what == figure.what)
                .and_then(|(_, values)| Sample::of(values.clone()));
            let (shown, ratio) = match &peer {
                Some(peer) if peer.median > 0.0 => (
                    peer.show(figure.unit),
                    format!("{:.2}", sample.median / peer.median),
                ),
                Some(peer) => (peer.show(figure.unit), String::new()),
                None => Default::default(),
            };
            println!(
                "| {} | {} | {shown} | {ratio} | {} |",
                figure.what,
                sample.show(figure.unit),
                figure.bar
            );
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn figures(&self, programs: &Programs) -> io::Result<Vec<Figure>> {
        let mut figures = Vec::new();
        for case in &self.only {
            eprintln!("  {case}");
            figures.extend(match case {
                Case::Server => server::measure(programs, self).await?,
                Case::Agent => agent::measure(programs, self).await?,
                Case::Told => many::told(programs, self).await?,
                Case::Capacity => many::capacity(programs, self).await?,
                Case::Failover => failover::measure(programs, self).await?,
                Case::Warm => warm::measure(programs).await?,
            });
        }
        Ok(figures)
    }
}

fn quantile(sorted: &[f64], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let at = (last as f64 * part).round() as usize;
    sorted.get(at).copied().unwrap_or_default()
}
