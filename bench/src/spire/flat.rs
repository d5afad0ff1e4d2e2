//! Whether an agent that has streams open stays as large as it is (bar 15).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use super::site::{Programs, Site};
use super::{Figure, Spire, agent};
use crate::procfs::Size;

/// Time to live of the SVIDs: each stream is sent a new one again and again, in the time that is there.
const TTL_SECONDS: i32 = 120;

/// The end is compared with minute five, or a twelfth of a shorter run.
pub(super) async fn measure(programs: &Programs, spire: &Spire) -> io::Result<Vec<Figure>> {
    let site = Site::start(programs).await?;
    let agent = site.agent().await?;
    let pid = agent.process.pid();
    let mut entry = agent::mine(&agent.id, 0);
    entry.x509_svid_ttl = TTL_SECONDS;
    site.create(vec![entry]).await?;

    let sent = Arc::new(AtomicU64::new(0));
    let mut open = JoinSet::new();
    for _ in 0..spire.streams {
        let (channel, _, mut stream) = agent::first(&agent.socket).await?;
        let sent = sent.clone();
        open.spawn(async move {
            let _channel = channel;
            while let Ok(Some(_)) = stream.message().await {
                sent.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let length = Duration::from_secs(spire.duration);
    let before = Duration::from_secs(300).min(length / 12);
    tokio::time::sleep(before).await;
    let early = size(pid, length).await?;
    tokio::time::sleep(length.saturating_sub(before)).await;
    let late = size(pid, length).await?;

    let mut ended = 0;
    while open.try_join_next().is_some() {
        ended += 1;
    }
    let sent = sent.load(Ordering::Relaxed) as f64 / f64::from(spire.streams);
    let change = |early: f64, late: f64| 100.0 * (late - early) / early;
    let mib = |size: Size| size.memory / 1_048_576.0;
    Ok(vec![
        Figure::new("agent with open streams, early", "MiB", mib(early)),
        Figure::new("agent with open streams, at the end", "MiB", mib(late)),
        Figure::new("its memory", "% more", change(early.memory, late.memory)).bar("15: flat"),
        Figure::new(
            "its descriptors",
            "% more",
            change(early.descriptors, late.descriptors),
        )
        .bar("15: flat"),
        Figure::new("SVIDs sent to each stream", "", sent),
        Figure::new("streams that ended", "", f64::from(ended)).bar("15: 0"),
    ])
}

async fn size(pid: u32, length: Duration) -> io::Result<Size> {
    tokio::task::spawn_blocking(move || Size::of(pid, length, || Ok(0.0)))
        .await
        .map_err(io::Error::other)?
}
