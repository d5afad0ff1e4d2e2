//! What a server does in a second, and what it keeps.

use std::io;
use std::time::{Duration, Instant};

use ah_spire_wire::server::entry::entry_client::EntryClient;
use ah_spire_wire::server::entry::{BatchCreateEntryRequest, GetAuthorizedEntriesRequest};
use ah_spire_wire::server::svid::svid_client::SvidClient;
use ah_spire_wire::server::svid::{BatchNewX509svidRequest, NewX509svidParams};
use ah_spire_wire::{Channel, MAX_MESSAGE_BYTES, types};
use tokio::task::JoinSet;

use super::site::{Programs, Site, entry, key_and_csr};
use super::{Figure, Spire};
use crate::procfs;

/// Entries that the measured agent is authorized for.
const AUTHORIZED: u32 = 100;
/// SVIDs asked for at once.
const BATCH: usize = 10;
/// Calls under way at a time: enough to keep a server's one core full.
const CALLS: usize = 8;

/// What is measured bare too.
pub(super) const WRITTEN_BY_ONE: &str = "entries written a second, one client";
pub(super) const WRITTEN_BY_16: &str = "entries written a second, 16 clients";
pub(super) const SIGNED: &str = "X509-SVIDs signed a second and core";

pub(super) async fn measure(programs: &Programs, spire: &Spire) -> io::Result<Vec<Figure>> {
    let mut site = Site::start(programs).await?;
    let identity = site.attest().await?;
    let mut figures = Vec::new();

    // Bar 12.
    for (what, clients) in [(WRITTEN_BY_ONE, 1), (WRITTEN_BY_16, 16)] {
        let rate = writes(&site, clients, spire.seconds).await?;
        figures.push(Figure::new(what, "/s", rate).bar("12: ≥ 0.6 × bare"));
    }

    let own = (0..AUTHORIZED).map(|number| entry(&identity.id, number));
    site.create(own.collect()).await?;
    // The rest belongs to a hundred agents that are not there.
    let others = (0..100).map(|number| types::Spiffeid {
        path: format!("/spire/agent/other/{number}"),
        ..identity.id.clone()
    });
    let others: Vec<_> = others.collect();
    site.fill(&others, spire.entries.saturating_sub(AUTHORIZED))
        .await?;
    let seconds = site.restart(&identity).await?.as_secs_f64();
    figures.push(Figure::new(
        "cold start until an agent has its entries",
        "s",
        seconds,
    ));
    let pid = site.server.pid();
    let memory = procfs::Memory::of(pid)?.proportional as f64 / 1_048_576.0;
    figures.push(Figure::new("server memory with all entries", "MiB", memory));

    let channel = site.connect(Some(&identity)).await?;
    let ids = authorized(channel.clone()).await?;
    if ids.len() != AUTHORIZED as usize {
        return Err(io::Error::other(format!(
            "{} entries instead of {AUTHORIZED}",
            ids.len()
        )));
    }
    let rate = per_core(pid, spire.seconds, || {
        let channel = channel.clone();
        async move { authorized(channel).await.map(|_| 1) }
    })
    .await?;
    figures.push(Figure::new("agents synced a second and core", "/s", rate));

    // Bar 11.
    let (_, csr) = key_and_csr()?;
    let params = ids.iter().take(BATCH).map(|id| NewX509svidParams {
        entry_id: id.clone(),
        csr: csr.clone(),
    });
    let params: Vec<_> = params.collect();
    let rate = per_core(pid, spire.seconds, || {
        let mut client = SvidClient::with_origin(channel.clone(), Channel::origin());
        let params = params.clone();
        async move {
            let request = BatchNewX509svidRequest { params };
            let answer = client.batch_new_x509svid(request).await;
            let results = answer.map_err(io::Error::other)?.into_inner().results;
            let signed = results.iter().filter(|result| result.svid.is_some());
            Ok(signed.count())
        }
    })
    .await?;
    let bar = "11: ≥ 0.5 × bare, ≥ 1.5 × bare Go, ≥ 2 × peer";
    figures.push(Figure::new(SIGNED, "/s", rate).bar(bar));
    Ok(figures)
}

/// The IDs of the entries that the agent on `channel` is authorized for.
pub(super) async fn authorized(channel: Channel) -> io::Result<Vec<String>> {
    let mut client = EntryClient::with_origin(channel, Channel::origin())
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let answer = client
        .get_authorized_entries(GetAuthorizedEntriesRequest::default())
        .await
        .map_err(io::Error::other)?;
    let entries = answer.into_inner().entries;
    Ok(entries.into_iter().map(|entry| entry.id).collect())
}

async fn writes(site: &Site, clients: u32, seconds: f64) -> io::Result<f64> {
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let parent = types::Spiffeid {
        trust_domain: "example.org".to_owned(),
        path: "/spire/agent/nobody".to_owned(),
    };
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        let channel = site.local().await?;
        let parent = parent.clone();
        tasks.spawn(async move {
            let mut entries = EntryClient::with_origin(channel, Channel::origin());
            let mut written = 0_u32;
            while Instant::now() < end {
                let number = (clients * 16 + client) * 1_000_000 + written;
                let request = BatchCreateEntryRequest {
                    entries: vec![entry(&parent, number)],
                    ..Default::default()
                };
                let answer = entries.batch_create_entry(request).await;
                let results = answer.map_err(io::Error::other)?.into_inner().results;
                if results.iter().any(|result| result.entry.is_none()) {
                    return Err(io::Error::other("an entry was refused"));
                }
                written += 1;
            }
            Ok(written)
        });
    }
    let mut written = 0;
    while let Some(done) = tasks.join_next().await {
        written += done.map_err(io::Error::other)??;
    }
    Ok(f64::from(written) / began.elapsed().as_secs_f64())
}

/// What `call` counts, for each second of CPU time of process `pid`.
pub(super) async fn per_core<F>(pid: u32, seconds: f64, call: impl Fn() -> F) -> io::Result<f64>
where
    F: Future<Output = io::Result<usize>> + Send + 'static,
{
    let before = procfs::cpu_time(pid)?;
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let mut done = 0;
    let mut calls = JoinSet::new();
    for _ in 0..CALLS {
        calls.spawn(call());
    }
    while let Some(counted) = calls.join_next().await {
        done += counted.map_err(io::Error::other)??;
        if Instant::now() < end {
            calls.spawn(call());
        }
    }
    let used = procfs::cpu_time(pid)?.saturating_sub(before);
    Ok(done as f64 / used.as_secs_f64())
}
