//! Two servers on one PostgreSQL (bar 18): one is killed and comes back, then the database, while clients write.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ah_spire_wire::server::entry::entry_client::EntryClient;
use ah_spire_wire::server::entry::{BatchCreateEntryRequest, ListEntriesRequest};
use ah_spire_wire::{Channel, MAX_MESSAGE_BYTES, types};
use ah_testkit::postgres::Postgres;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::Code;

use super::server::authorized;
use super::site::{Datastore, Programs, Site, entry};
use super::{Figure, Spire};

/// Clients that write without a pause.
const WRITERS: u32 = 4;
/// A call that takes longer is made anew at the other server.
const ATTEMPT: Duration = Duration::from_secs(1);
/// Before, between and after the faults.
const QUIET: Duration = Duration::from_secs(3);
/// Until both servers' caches have everything; upstream's look every five seconds.
const SETTLE: Duration = Duration::from_secs(30);

/// When writes began and were acknowledged, by the path of what was written.
type Written = BTreeMap<String, (Instant, Instant)>;

pub(super) async fn measure(programs: &Programs, _spire: &Spire) -> io::Result<Vec<Figure>> {
    let Some(database) = Postgres::private("bar 18") else {
        return Ok(Vec::new());
    };
    let database = Arc::new(database);
    let url = format!("{}?sslmode=disable", database.fresh_database());
    let datastore = Datastore::Postgres(url);
    let mut one = Site::start_on(programs, &datastore).await?;
    let two = Site::start_on(programs, &datastore).await?;
    let identity = two.attest().await?;

    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for number in 0..WRITERS {
        let writer = Writer {
            number,
            sockets: [one.socket(), two.socket()],
            parent: identity.id.clone(),
            stop: stop.clone(),
        };
        writers.spawn(writer.run());
    }
    sleep(QUIET).await;
    let killed = Instant::now();
    one.kill()?;
    sleep(QUIET).await;
    one.revive().await?;
    sleep(QUIET).await;
    let (down, up) = (database.clone(), database.clone());
    let crashed = Instant::now();
    tokio::task::spawn_blocking(move || down.stop())
        .await
        .map_err(io::Error::other)?;
    sleep(Duration::from_secs(1)).await;
    tokio::task::spawn_blocking(move || up.start())
        .await
        .map_err(io::Error::other)?;
    let restarted = Instant::now();
    sleep(QUIET * 2).await;
    stop.store(true, Ordering::Relaxed);
    let mut all = Vec::new();
    while let Some(written) = writers.join_next().await {
        all.push(written.map_err(io::Error::other)?);
    }

    let paths: BTreeSet<&String> = all.iter().flat_map(BTreeMap::keys).collect();
    let stored = stored(&two).await?;
    let missing = paths.iter().filter(|path| !stored.contains_key(**path));
    let missing = missing.count();
    let twice = stored.values().filter(|times| **times > 1).count();
    let mut lacking = 0;
    for site in [&one, &two] {
        let began = Instant::now();
        loop {
            let channel = site.connect(Some(&identity)).await?;
            lacking = stored.len().abs_diff(authorized(channel).await?.len());
            if lacking == 0 || began.elapsed() > SETTLE {
                break;
            }
            sleep(Duration::from_millis(100)).await;
        }
        if lacking > 0 {
            break;
        }
    }
    Ok(vec![
        Figure::new(
            "a server killed, until every client writes again",
            "ms",
            back(&all, killed, crashed)?,
        )
        .bar("18: ≤ 2,000 ms"),
        Figure::new(
            "the database back, until every client writes again",
            "ms",
            back(&all, restarted, restarted + QUIET * 2)?,
        )
        .bar("18: ≤ 2,000 ms"),
        Figure::new("acknowledged writes that are lost", "", missing as f64).bar("18: 0"),
        Figure::new("writes that are there twice", "", twice as f64).bar("18: 0"),
        Figure::new("writes that a server does not serve", "", lacking as f64).bar("18: 0"),
    ])
}

/// The longest that a writer took, after `fault`, to have something acknowledged that was written after it; in
/// milliseconds.
fn back(all: &[Written], fault: Instant, until: Instant) -> io::Result<f64> {
    let mut longest = Duration::ZERO;
    for written in all {
        // A write that was under way when the fault came counts too: it is the one that had to wait.
        let done = written.values().map(|(_, done)| *done);
        let next = done.filter(|done| *done > fault && *done < until).min();
        let next = next.ok_or_else(|| io::Error::other("a client did not come back"))?;
        longest = longest.max(next - fault);
        let waits = written
            .values()
            .filter(|(began, done)| {
                *began < fault + Duration::from_secs(1) && *done > fault && *done < until
            })
            .map(|(began, done)| *done - (*began).max(fault));
        longest = waits.fold(longest, Duration::max);
    }
    Ok(longest.as_secs_f64() * 1_000.0)
}

struct Writer {
    number: u32,
    sockets: [PathBuf; 2],
    parent: types::Spiffeid,
    stop: Arc<AtomicBool>,
}

impl Writer {
    async fn run(self) -> Written {
        let mut written = Written::new();
        let mut server = self.number as usize;
        let mut channel = None;
        let mut count = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let one = entry(&self.parent, self.number * 10_000_000 + count);
            let path = one.spiffe_id.clone().unwrap_or_default().path;
            let began = Instant::now();
            while !self.stop.load(Ordering::Relaxed) {
                if self.write(&mut channel, server, &one).await {
                    written.insert(path, (began, Instant::now()));
                    break;
                }
                channel = None;
                server += 1;
                sleep(Duration::from_millis(20)).await;
            }
            count += 1;
        }
        written
    }

    /// Whether the server has it, by this attempt or an earlier one.
    async fn write(
        &self,
        channel: &mut Option<Channel>,
        server: usize,
        one: &types::Entry,
    ) -> bool {
        let attempt = async {
            let open = match channel.take() {
                Some(open) => open,
                None => {
                    let socket = self.sockets.get(server % 2).map(PathBuf::as_path);
                    Channel::unix(socket.unwrap_or_else(|| "".as_ref()))
                        .await
                        .ok()?
                }
            };
            let mut client = EntryClient::with_origin(open.clone(), Channel::origin());
            let request = BatchCreateEntryRequest {
                entries: vec![one.clone()],
                ..Default::default()
            };
            let results = client.batch_create_entry(request).await.ok()?;
            let result = results.into_inner().results.into_iter().next()?;
            match Code::from(result.status?.code) {
                Code::Ok | Code::AlreadyExists => Some(open),
                _ => None,
            }
        };
        *channel = timeout(ATTEMPT, attempt).await.ok().flatten();
        channel.is_some()
    }
}

/// How often each path is in the datastore.
async fn stored(site: &Site) -> io::Result<BTreeMap<String, u32>> {
    let mut client = EntryClient::with_origin(site.local().await?, Channel::origin())
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let mut found = BTreeMap::new();
    let mut page_token = String::new();
    loop {
        let request = ListEntriesRequest {
            page_size: 1_000,
            page_token,
            ..Default::default()
        };
        let page = client.list_entries(request).await;
        let page = page.map_err(io::Error::other)?.into_inner();
        for entry in page.entries {
            *found
                .entry(entry.spiffe_id.unwrap_or_default().path)
                .or_default() += 1;
        }
        if page.next_page_token.is_empty() {
            return Ok(found);
        }
        page_token = page.next_page_token;
    }
}
