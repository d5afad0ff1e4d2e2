//! SPIRE server and agent beside another pair of binaries: the same work over the same wire, in turns.

mod agent;
mod server;
mod site;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

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
    /// Registration entries in the datastore.
    #[arg(long, default_value_t = 10_000)]
    entries: u32,
    /// Seconds of each throughput measurement.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Streams held open on the agent.
    #[arg(long, default_value_t = 1_000)]
    streams: u32,
}

/// One figure of one implementation.
pub(crate) struct Figure {
    what: &'static str,
    unit: &'static str,
    value: f64,
}

impl Figure {
    fn new(what: &'static str, unit: &'static str, value: f64) -> Self {
        Self { what, unit, value }
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
                let mut figures = server::measure(programs, &self).await?;
                figures.extend(agent::measure(programs, &self).await?);
                for figure in figures {
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
        println!("| what | ours | peer | ours ÷ peer |\n|---|---|---|---|");
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
                Some(peer) => (
                    peer.show(figure.unit),
                    format!("{:.2}", sample.median / peer.median),
                ),
                None => Default::default(),
            };
            println!(
                "| {} | {} | {shown} | {ratio} |",
                figure.what,
                sample.show(figure.unit)
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}
