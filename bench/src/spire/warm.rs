//! How soon an agent that was restarted serves again, with its server and without.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::agent::{fetch, first, mine};
use super::site::{Agent, Programs, Site, entry};
use super::{Figure, quantile};

/// Restarts of each kind.
const RESTARTS: usize = 10;

/// Entries of other workloads, whose SVIDs the agent holds too.
const OTHERS: u32 = 100;

/// Longer than an agent takes to look at its server again: what it keeps for a restart is kept by then.
const SETTLE: Duration = Duration::from_secs(7);

/// How long an agent that cannot serve without its server is waited for.
const WITHOUT: Duration = Duration::from_secs(10);

/// How long an agent with its server may take.
const WITH: Duration = Duration::from_secs(60);

/// Between two attempts of a workload.
const AGAIN: Duration = Duration::from_micros(500);

const WITH_SERVER: [&str; 2] = [
    "agent restarted with its server until an SVID, median",
    "agent restarted with its server until an SVID, longest",
];

const WITHOUT_SERVER: [&str; 2] = [
    "agent restarted without its server until an SVID, median",
    "agent restarted without its server until an SVID, longest",
];

pub(super) async fn measure(programs: &Programs) -> io::Result<Vec<Figure>> {
    let mut site = Site::start(programs).await?;
    let mut agent = site.agent().await?;
    let others = (0..OTHERS).map(|number| entry(&agent.id, number));
    site.create(others.collect()).await?;
    site.create(vec![mine(&agent.id, 0)]).await?;
    first(&agent.socket).await?;
    tokio::time::sleep(SETTLE).await;

    let mut figures = Vec::new();
    let mut took = Vec::with_capacity(RESTARTS);
    for _ in 0..RESTARTS {
        let again = restarted(&site, &mut agent, WITH).await?;
        took.push(again.ok_or_else(|| io::Error::other("the agent does not serve again"))?);
    }
    tell(&mut figures, WITH_SERVER, took);

    tokio::time::sleep(SETTLE).await;
    site.server.end()?;
    let mut took = Vec::with_capacity(RESTARTS);
    for _ in 0..RESTARTS {
        // Who does not serve the first time has nothing to serve from.
        let Some(again) = restarted(&site, &mut agent, WITHOUT).await? else {
            break;
        };
        took.push(again);
    }
    tell(&mut figures, WITHOUT_SERVER, took);
    Ok(figures)
}

/// From the start of the agent's process to the SVIDs of a workload that waits for them, in milliseconds. `None`: not
/// within `patience`.
async fn restarted(site: &Site, agent: &mut Agent, patience: Duration) -> io::Result<Option<f64>> {
    agent.process.end()?;
    let began = Instant::now();
    agent.process = site.start_agent()?;
    let served = tokio::time::timeout(patience, serves(&agent.socket)).await;
    Ok(served
        .ok()
        .map(|()| began.elapsed().as_secs_f64() * 1_000.0))
}

async fn serves(socket: &Path) {
    while fetch(socket).await.is_err() {
        tokio::time::sleep(AGAIN).await;
    }
}

fn tell(figures: &mut Vec<Figure>, names: [&'static str; 2], mut took: Vec<f64>) {
    if took.is_empty() {
        return;
    }
    took.sort_by(f64::total_cmp);
    for (name, part) in names.into_iter().zip([0.5, 1.0]) {
        figures.push(Figure::new(name, "ms", quantile(&took, part)));
    }
}
