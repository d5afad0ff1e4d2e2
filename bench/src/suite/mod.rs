//! Runs the measurements and prints the table of bars.

mod bench;
mod churn;
mod faults;
mod http;
mod memory;
mod process;
mod rotation;
mod subject;
mod table;
mod throughput;
mod vault;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};

use self::bench::{Bench, Effort};
pub(crate) use self::process::{LOAD_CORE, Running, SERVER_CORE, pinned};
use self::rotation::Origin;
use self::subject::Places;
pub(crate) use self::subject::built_peer;
pub(crate) use self::table::Sample;
use self::table::{Row, Verdict, markdown};
use crate::load::MOST;
use crate::pki::Authority;

#[derive(Args, Clone, Debug)]
pub(crate) struct Suite {
    /// Measure only these bars.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Runs of each throughput and memory measurement.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Fewer runs, sessions and swaps: says whether everything works, not how well.
    #[arg(long)]
    quick: bool,
    /// Length of the churn (bar 17) in seconds.
    #[arg(long, default_value_t = 3_600)]
    duration: u64,
    /// Arrivals of the churn (bar 17) a second; half of bar 1 by default.
    #[arg(long)]
    churn_rate: Option<f64>,
    /// Where the certificates of the rotations (bar 6) come from; all by default.
    #[arg(long, value_delimiter = ',')]
    rotations: Vec<Origin>,
    /// Least share of its core, in percent, that a server must have used for a throughput run to count.
    #[arg(long, default_value_t = 95)]
    least_busy: u32,
    /// The `ah` binary; the one beside this one by default.
    #[arg(long)]
    ah: Option<PathBuf>,
    /// Write the rows as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the table as Markdown.
    #[arg(long)]
    markdown: Option<PathBuf>,
}

impl Suite {
    /// Succeeds when something was measured and no bar was missed.
    pub(crate) fn run(self) -> io::Result<ExitCode> {
        let scratch = tempfile::Builder::new().prefix("ah-bench-").tempdir()?;
        let mut bench = Bench::new(self.places(scratch.path())?, self.effort());
        Authority::create(&bench.places.files())?;
        let mut rows = Vec::new();
        for Measurement { bar, measure } in MEASUREMENTS {
            if self.only.is_empty() || self.only.iter().any(|only| only == bar) {
                eprintln!("measuring bar {bar}");
                match measure(&mut bench) {
                    Ok(measured) => rows.extend(measured),
                    Err(error) => rows.push(Row::skipped(bar, "", error)),
                }
            }
        }
        bench.notes.push(machine());
        if cfg!(debug_assertions) {
            let note = "built without --release: these figures say only that everything works";
            bench.notes.push(note.to_owned());
        }
        let complaints = bench.complaints();
        if !complaints.is_empty() {
            bench
                .notes
                .push(format!("load generator: {}", complaints.trim()));
        }
        let text = markdown(&rows, &bench.notes);
        print!("{text}");
        if let Some(path) = &self.markdown {
            fs::write(path, &text)?;
        }
        if let Some(path) = &self.json {
            fs::write(path, serde_json::to_string_pretty(&rows)?)?;
        }
        let is = |verdict| rows.iter().any(|row| row.verdict == verdict);
        let met = is(Verdict::Pass) && !is(Verdict::Miss);
        Ok(ExitCode::from(u8::from(!met)))
    }

    fn effort(&self) -> Effort {
        let least_busy = f64::from(self.least_busy) / 100.0;
        if self.quick {
            return Effort {
                runs: self.runs.min(2),
                seconds: 3.0,
                sessions: 2_000,
                swaps: 10,
                sockets: 1_000,
                churn: Duration::from_secs(self.duration.min(60)),
                churn_rate: self.churn_rate,
                rotations: self.rotations(),
                least_busy,
            };
        }
        Effort {
            runs: self.runs.max(1),
            seconds: 8.0,
            sessions: MOST,
            swaps: 100,
            sockets: 5_000,
            churn: Duration::from_secs(self.duration),
            churn_rate: self.churn_rate,
            rotations: self.rotations(),
            least_busy,
        }
    }

    fn rotations(&self) -> Vec<Origin> {
        match self.rotations.as_slice() {
            [] => Origin::value_variants().to_vec(),
            some => some.to_vec(),
        }
    }

    fn places(&self, scratch: &Path) -> io::Result<Places> {
        let ah = match &self.ah {
            Some(path) => path.clone(),
            None => subject::sibling_ah()?,
        };
        let source = Path::new(env!("CARGO_MANIFEST_DIR"));
        Ok(Places {
            pki: scratch.to_owned(),
            scratch: scratch.to_owned(),
            ah,
            disk: source.join("../target"),
            tools: subject::tools(),
        })
    }
}

/// Processor and kernel: figures of different machines are not to be mixed.
fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, model)| model);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{model}, Linux {}", kernel.trim())
}

/// One bar, or several rows that are measured together.
struct Measurement {
    bar: &'static str,
    measure: fn(&mut Bench) -> io::Result<Vec<Row>>,
}

const fn bar(bar: &'static str, measure: fn(&mut Bench) -> io::Result<Vec<Row>>) -> Measurement {
    Measurement { bar, measure }
}

const MEASUREMENTS: [Measurement; 13] = [
    bar("1", |bench| Ok(throughput::sessions(bench))),
    bar("2", |bench| Ok(throughput::accept_path(bench))),
    bar("3", throughput::validation),
    bar("4", |bench| Ok(memory::idle(bench))),
    bar("5", |bench| Ok(memory::stuck(bench))),
    bar("6", |bench| rotation::rotation(bench)),
    bar("7", |bench| faults::revocation(bench)),
    bar("8", faults::restart),
    bar("9", faults::hostile),
    bar("10", |bench| faults::noise(bench)),
    bar("E1", |bench| Ok(throughput::durable(bench))),
    bar("E2", |bench| memory::executor(bench)),
    bar("17", churn::churn),
];
