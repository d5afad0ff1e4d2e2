//! A thousand agents on one server: how soon a change reaches the one that it concerns, and what they cost.

use std::collections::HashMap;
use std::hash::RandomState;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::node::{Fleet, Node};
use super::site::{Identity, Programs, Site, entry, key_and_csr};
use super::{Figure, Spire, quantile};
use crate::procfs;

/// Attestations at a time.
const ATTESTATIONS: usize = 16;

/// After the last change, for those that are still on their way.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two changes.
const PAUSE: Duration = Duration::from_millis(100);

/// Bar 13: entries are created one after the other, each for another of the agents, which has to fetch it and to get its
/// SVID signed.
pub(super) async fn told(programs: &Programs, spire: &Spire) -> io::Result<Vec<Figure>> {
    let mut running = Running::start(programs, spire.agents, spire.entries).await?;
    let parents = running.parents.clone();
    let mut clock = tokio::time::interval(PAUSE);
    let mut changed = HashMap::new();
    for number in 0..spire.changes {
        clock.tick().await;
        let step = (number as usize).wrapping_mul(7_919) % parents.len().max(1);
        let Some(parent) = parents.get(step) else {
            return Err(io::Error::other("there is no agent"));
        };
        let change = entry(parent, 800_000_000 + number);
        let path = change.spiffe_id.clone().unwrap_or_default().path;
        changed.insert(path, Instant::now());
        running.fleet.site.create(vec![change]).await?;
    }
    let mut waits = Vec::new();
    while waits.len() < changed.len() {
        let next = timeout(PATIENCE, running.served.recv()).await;
        let Ok(Some((path, at))) = next else {
            let missing = changed.len() - waits.len();
            return Err(io::Error::other(format!("{missing} changes never came")));
        };
        if let Some(began) = changed.get(&path) {
            waits.push((at - *began).as_secs_f64() * 1_000.0);
        }
    }
    waits.sort_by(f64::total_cmp);
    Ok(vec![
        Figure::new(
            "entry changed until one of many agents has its SVID, p50",
            "ms",
            quantile(&waits, 0.5),
        ),
        Figure::new(
            "entry changed until one of many agents has its SVID, p99",
            "ms",
            quantile(&waits, 0.99),
        )
        .bar("13: ≤ 1,000 ms"),
    ])
}

/// Bar 16: the same agents with a tenth of the entries, while nothing changes.
pub(super) async fn capacity(programs: &Programs, spire: &Spire) -> io::Result<Vec<Figure>> {
    let running = Running::start(programs, spire.agents, spire.entries / 10).await?;
    let pid = running.fleet.site.server.pid();
    let rounds = || running.fleet.rounds.load(Ordering::Relaxed);
    let (cpu, count, began) = (procfs::cpu_time(pid)?, rounds(), Instant::now());
    // Whole intervals, so that each agent polls as often as the others.
    let window = 5.0 * (spire.seconds / 2.5).ceil();
    tokio::time::sleep(Duration::from_secs_f64(window)).await;
    let took = began.elapsed().as_secs_f64();
    let used = (procfs::cpu_time(pid)? - cpu).as_secs_f64();
    let resident = procfs::Memory::of(pid)?.resident as f64 / 1_048_576.0;
    Ok(vec![
        Figure::new("many agents connected, server's cores", "", used / took)
            .bar("16: ≤ 0.5 for 1,000 agents, 10,000 entries"),
        Figure::new("many agents connected, server's memory", "MiB", resident).bar("16: ≤ 512 MiB"),
        Figure::new(
            "many agents connected, rounds a second",
            "/s",
            (rounds() - count) as f64 / took,
        ),
    ])
}

/// The server is killed, and all agents come to its successor at once.
pub(super) async fn back(programs: &Programs, spire: &Spire) -> io::Result<Vec<Figure>> {
    let running = Running::start(programs, spire.agents, spire.entries / 10).await?;
    let fleet = &running.fleet;
    let began = Instant::now();
    let successor = fleet.site.replace_server()?;
    fleet.ready.store(0, Ordering::Relaxed);
    fleet.restarts.fetch_add(1, Ordering::Relaxed);
    running.all_ready().await?;
    let took = began.elapsed().as_secs_f64();
    let used = procfs::cpu_time(successor.pid())?.as_secs_f64();
    let resident = procfs::Memory::of(successor.pid())?.resident as f64 / 1_048_576.0;
    Ok(vec![
        Figure::new("server killed, until all agents have synced", "s", took),
        Figure::new("its successor's CPU time until then", "s", used),
        Figure::new("its successor's memory then", "MiB", resident),
    ])
}

/// Agents that have all had their first round.
struct Running {
    fleet: Arc<Fleet>,
    parents: Vec<ah_spire_wire::types::Spiffeid>,
    served: mpsc::UnboundedReceiver<(String, Instant)>,
    _nodes: JoinSet<()>,
}

impl Running {
    async fn start(programs: &Programs, agents: u32, entries: u32) -> io::Result<Self> {
        let mut site = Arc::new(Site::start(programs).await?);
        let identities = attested(&site, agents).await?;
        let parents: Vec<_> = identities.iter().map(|one| one.id.clone()).collect();
        let alone = Arc::get_mut(&mut site);
        let alone = alone.ok_or_else(|| io::Error::other("an attestation is under way"))?;
        alone.fill(&parents, entries).await?;
        let (served, receiver) = mpsc::unbounded_channel();
        let fleet = Arc::new(Fleet {
            site,
            csr: key_and_csr()?.1,
            served,
            restarts: AtomicU64::new(0),
            ready: AtomicU64::new(0),
            rounds: AtomicU64::new(0),
            hasher: RandomState::new(),
        });
        let mut nodes = JoinSet::new();
        for identity in identities {
            nodes.spawn(Node::new(fleet.clone(), identity).run());
        }
        let running = Self {
            fleet,
            parents,
            served: receiver,
            _nodes: nodes,
        };
        running.all_ready().await?;
        Ok(running)
    }

    /// Waits until each agent has had a round.
    async fn all_ready(&self) -> io::Result<()> {
        let began = Instant::now();
        let ready = || self.fleet.ready.load(Ordering::Relaxed);
        while ready() < self.parents.len() as u64 {
            if began.elapsed() > PATIENCE * 2 {
                let why = format!("{} of {} agents came", ready(), self.parents.len());
                return Err(io::Error::other(why));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

async fn attested(site: &Arc<Site>, agents: u32) -> io::Result<Vec<Identity>> {
    let mut identities = Vec::new();
    let mut under_way = JoinSet::new();
    for _ in 0..agents {
        if under_way.len() >= ATTESTATIONS
            && let Some(done) = under_way.join_next().await
        {
            identities.push(done.map_err(io::Error::other)??);
        }
        let site = site.clone();
        under_way.spawn(async move { site.attest().await });
    }
    while let Some(done) = under_way.join_next().await {
        identities.push(done.map_err(io::Error::other)??);
    }
    Ok(identities)
}
