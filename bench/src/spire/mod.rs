//! SPIRE server and agent beside another pair of binaries, and beside the bare work: the same over the same wire, in turns.

mod agent;
mod bare;
mod failover;
mod fill;
mod flat;
mod many;
mod node;
mod server;
mod site;
mod warm;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

pub(crate) use self::bare::Bare;
use self::site::Programs;
use crate::suite::{Sample, built_peer};

/// Measures `spire-server` and `spire-agent`, ours and a peer's, and prints them with how many times the others ours is.
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
    /// Measure only these. All but `back` and `flat` by default.
    #[arg(long, value_delimiter = ',', default_values_t = Case::USUAL)]
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
    /// Seconds for which `flat` holds them.
    #[arg(long, default_value_t = 3_600)]
    duration: u64,
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
    /// A server killed, until many agents have synced with its successor.
    Back,
    /// Two servers on one PostgreSQL, and their faults (bar 18).
    Failover,
    /// An agent that is restarted, with its server and without.
    Warm,
    /// Whether an agent with open streams stays as large as it is (bar 15).
    Flat,
}

impl Case {
    const USUAL: [Self; 6] = [
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

/// Whose figures stand in a column.
#[derive(Clone, Debug)]
enum Side {
    Ours(Programs),
    /// The work without a server or agent around it. Some of it takes our programs to know what to do.
    Bare(Programs),
    /// The same with Go's standard library.
    BareGo,
    Peer(Programs),
}

/// A side with the figures and values of its runs so far.
struct Column {
    side: Side,
    figures: Vec<(Figure, Vec<f64>)>,
}

impl Side {
    fn name(&self) -> &'static str {
        match self {
            Self::Ours(_) => "ours",
            Self::Bare(_) => "bare",
            Self::BareGo => "bare Go",
            Self::Peer(_) => "peer",
        }
    }

    async fn figures(&self, case: Case, spire: &Spire) -> io::Result<Vec<Figure>> {
        match (self, case) {
            (Self::Ours(programs) | Self::Peer(programs), case) => match case {
                Case::Server => server::measure(programs, spire).await,
                Case::Agent => agent::measure(programs, spire).await,
                Case::Told => many::told(programs, spire).await,
                Case::Capacity => many::capacity(programs, spire).await,
                Case::Back => many::back(programs, spire).await,
                Case::Failover => failover::measure(programs, spire).await,
                Case::Warm => warm::measure(programs).await,
                Case::Flat => flat::measure(programs, spire).await,
            },
            (Self::Bare(_), Case::Server) => bare::of_server(spire),
            (Self::Bare(ours), Case::Agent) => bare::of_agent(ours, spire).await,
            (Self::BareGo, Case::Server) => bare::of_go(spire),
            _ => Ok(Vec::new()),
        }
    }
}

impl Column {
    /// Measures once more.
    async fn run(&mut self, spire: &Spire) -> io::Result<()> {
        for case in &spire.only {
            for figure in self.side.figures(*case, spire).await? {
                eprintln!("  {}: {} {}", figure.what, figure.value, figure.unit);
                let known = |(known, _): &&mut (Figure, _)| known.what == figure.what;
                match self.figures.iter_mut().find(known) {
                    Some((_, values)) => values.push(figure.value),
                    None => {
                        let values = vec![figure.value];
                        self.figures.push((figure, values));
                    }
                }
            }
        }
        Ok(())
    }

    fn sample(&self, what: &str) -> Option<Sample> {
        let mut figures = self.figures.iter();
        let (_, values) = figures.find(|(figure, _)| figure.what == what)?;
        Sample::of(values.clone())
    }
}

impl Spire {
    pub(crate) async fn run(self) -> io::Result<ExitCode> {
        site::stay_on_load_core()?;
        let beside = std::env::current_exe()?;
        let beside = beside.parent().map(PathBuf::from).unwrap_or_default();
        let ours = Programs::in_folder(self.ours.clone().unwrap_or(beside));
        let mut sides = vec![Side::Ours(ours.clone()), Side::Bare(ours)];
        match self
            .only
            .contains(&Case::Server)
            .then(|| built_peer("sign-go"))
        {
            Some(Ok(_)) => sides.push(Side::BareGo),
            Some(Err(error)) => eprintln!("without the bare work in Go: {error}"),
            None => {}
        }
        let peer = self.peer.clone().map(Programs::in_folder);
        sides.extend(peer.map(Side::Peer));
        let mut columns = Vec::new();
        for side in sides {
            let figures = Vec::new();
            columns.push(Column { side, figures });
        }
        for run in 0..self.runs.max(1) {
            for column in &mut columns {
                eprintln!("run {} of {}", run + 1, column.side.name());
                column.run(&self).await?;
            }
        }
        columns.retain(|column| !column.figures.is_empty());
        print!("{}", table(&columns));
        Ok(ExitCode::SUCCESS)
    }
}

/// The figures of the first column, each other column with how many times its figure the first one's is.
fn table(columns: &[Column]) -> String {
    let names = columns.iter().map(|column| column.side.name());
    let names: Vec<_> = names.collect();
    let mut text = format!("| what | {} | bar |\n", names.join(" | "));
    text.push_str(&"|---".repeat(names.len() + 2));
    text.push_str("|\n");
    let Some((ours, others)) = columns.split_first() else {
        return text;
    };
    for (figure, _) in &ours.figures {
        let Some(sample) = ours.sample(figure.what) else {
            continue;
        };
        let mut cells = vec![figure.what.to_owned(), sample.show(figure.unit)];
        cells.extend(others.iter().map(|other| match other.sample(figure.what) {
            Some(other) if other.median > 0.0 => {
                let times = sample.median / other.median;
                format!("{}: {times:.2} ×", other.show(figure.unit))
            }
            Some(other) => other.show(figure.unit),
            None => String::new(),
        }));
        cells.push(figure.bar.to_owned());
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    text
}

fn quantile(sorted: &[f64], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let at = (last as f64 * part).round() as usize;
    sorted.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_each_side_s_figure_with_how_many_times_it_ours_is() {
        let column = |side, values: &[f64]| Column {
            side,
            figures: vec![(
                Figure::new("fetches", "/s", 0.0).bar("≥ 2"),
                values.to_vec(),
            )],
        };
        let ours = Side::Ours(Programs::in_folder(PathBuf::new()));
        let columns = [column(ours, &[8.0, 6.0, 7.0]), column(Side::BareGo, &[2.0])];
        assert_eq!(
            table(&columns),
            "| what | ours | bare Go | bar |\n|---|---|---|---|\n\
             | fetches | 7.00 /s (6.00–8.00) | 2.00 /s (2.00–2.00): 3.50 × | ≥ 2 |\n"
        );
    }
}
