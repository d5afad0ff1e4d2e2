//! What an agent does for its workloads, and what it keeps for them.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use ah_spire_wire::Channel;
use ah_spire_wire::types;
use ah_spire_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use ah_spire_wire::workload::{X509svidRequest, X509svidResponse};
use tokio::time::timeout;
use tonic::metadata::MetadataValue;
use tonic::{Request, Streaming};

use super::server::per_core;
use super::site::{Programs, Site, entry};
use super::{Figure, Spire, quantile};
use crate::procfs;

/// Times that a first SVID is fetched one after the other.
const FETCHES: usize = 1_000;
/// Changes whose way to the workload is timed.
pub(super) const CHANGES: u32 = 10;

pub(super) async fn measure(programs: &Programs, spire: &Spire) -> io::Result<Vec<Figure>> {
    let site = Site::start(programs).await?;
    let agent = site.agent().await?;
    let pid = agent.process.pid();
    let mut figures = Vec::new();
    let kib = |pid| procfs::Memory::of(pid).map(|memory| memory.proportional as f64 / 1_024.0);
    figures.push(Figure::new(
        "agent memory, idle",
        "MiB",
        kib(pid)? / 1_024.0,
    ));

    site.create(vec![mine(&agent.id, 0)]).await?;
    let (_channel, _, mut watching) = first(&agent.socket).await?;

    // Bar 13.
    let mut waits = Vec::new();
    for number in 1..=CHANGES {
        let began = Instant::now();
        site.create(vec![mine(&agent.id, number)]).await?;
        let wanted = number as usize + 1;
        loop {
            let next = timeout(Duration::from_secs(60), watching.message()).await;
            let message = next.map_err(io::Error::other)?.map_err(io::Error::other)?;
            let Some(message) = message else {
                return Err(io::Error::other("the stream ended"));
            };
            if message.svids.len() >= wanted {
                break;
            }
        }
        waits.push(began.elapsed().as_secs_f64() * 1_000.0);
    }
    waits.sort_by(f64::total_cmp);
    figures.push(Figure::new(
        "entry created until served, median",
        "ms",
        quantile(&waits, 0.5),
    ));
    figures.push(Figure::new(
        "entry created until served, longest",
        "ms",
        quantile(&waits, 1.0),
    ));

    // Bar 14.
    figures.extend(fetches(&agent.socket, pid, spire).await?);

    // Bar 15.
    let before = kib(pid)?;
    let mut open = Vec::new();
    for _ in 0..spire.streams {
        open.push(first(&agent.socket).await?);
    }
    let slope = (kib(pid)? - before) / f64::from(spire.streams);
    figures.push(Figure::new("agent memory for an open stream", "KiB", slope).bar("15: ≤ 64 KiB"));
    drop(open);

    let before = kib(pid)?;
    let parent = &agent.id;
    site.create(
        (0..900)
            .map(|number| entry(parent, 500_000 + number))
            .collect(),
    )
    .await?;
    site.create(vec![mine(parent, CHANGES + 1)]).await?;
    while timeout(Duration::from_secs(60), watching.message())
        .await
        .map_err(io::Error::other)?
        .map_err(io::Error::other)?
        .is_some_and(|message| message.svids.len() < CHANGES as usize + 2)
    {}
    let grown = (kib(pid)? - before) / 1_024.0;
    figures.push(Figure::new("agent memory for 900 more SVIDs", "MiB", grown));
    Ok(figures)
}

/// How long a first answer takes on connections that are made one after the other, and how many a second process `pid`
/// gives when its core is full.
pub(super) async fn fetches(socket: &Path, pid: u32, spire: &Spire) -> io::Result<Vec<Figure>> {
    let mut took = Vec::with_capacity(FETCHES);
    for _ in 0..FETCHES {
        let began = Instant::now();
        first(socket).await?;
        took.push(began.elapsed().as_secs_f64() * 1_000_000.0);
    }
    took.sort_by(f64::total_cmp);
    let rate = per_core(pid, spire.seconds, || {
        let socket = socket.to_owned();
        async move { first(&socket).await.map(|_| 1) }
    })
    .await?;
    Ok(vec![
        Figure::new(
            "first SVIDs on a new connection, p50",
            "µs",
            quantile(&took, 0.5),
        )
        .bar("14: ≤ 2 × bare"),
        Figure::new(
            "first SVIDs on a new connection, p99",
            "µs",
            quantile(&took, 0.99),
        )
        .bar("14: ≤ 5 × bare"),
        Figure::new("fetches a second and core", "/s", rate),
    ])
}

/// An entry that this process itself is entitled to.
pub(super) fn mine(parent: &types::Spiffeid, number: u32) -> types::Entry {
    let user = nix::unistd::getuid();
    let mut mine = entry(parent, 900_000 + number);
    mine.selectors = vec![types::Selector {
        r#type: "unix".to_owned(),
        value: format!("uid:{user}"),
    }];
    mine
}

/// A new connection, the first message on it, and the stream after that. The agent may not know of the entry yet.
pub(super) async fn first(
    socket: &Path,
) -> io::Result<(Channel, X509svidResponse, Streaming<X509svidResponse>)> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match fetch(socket).await {
            Err(_) if Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            fetched => return fetched,
        }
    }
}

/// [`first`], tried once.
pub(super) async fn fetch(
    socket: &Path,
) -> io::Result<(Channel, X509svidResponse, Streaming<X509svidResponse>)> {
    let channel = Channel::unix(socket).await?;
    let mut client = SpiffeWorkloadApiClient::with_origin(channel.clone(), Channel::origin());
    let mut request = Request::new(X509svidRequest {});
    let header = MetadataValue::from_static("true");
    request.metadata_mut().insert("workload.spiffe.io", header);
    let answer = client.fetch_x509svid(request).await;
    let mut stream = answer.map_err(io::Error::other)?.into_inner();
    match stream.message().await.map_err(io::Error::other)? {
        Some(message) => Ok((channel, message, stream)),
        None => Err(io::Error::other("the stream ended")),
    }
}
