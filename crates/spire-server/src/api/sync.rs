//! The conversation of `SyncAuthorizedEntries`: what changed is asked for, not everything is sent.
//!
//! With few entries the first answer has them all. Otherwise pages of revisions come first, and then the agent asks
//! by ID for those it wants whole, as often as it likes.

use std::sync::Arc;

use ah_spire_wire::encoded::SyncAuthorizedEntriesResponse;
use ah_spire_wire::server::entry::{EntryRevision, SyncAuthorizedEntriesRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::audit::Audit;
use crate::entries::{Fields, Held, encoded};

/// Entries in one answer.
pub(super) const PAGE: usize = 500;

/// Answers `requests` from `entries`. The task ends with the stream, on either side.
pub(super) fn start(
    requests: Streaming<SyncAuthorizedEntriesRequest>,
    entries: Vec<Arc<Held>>,
    page: usize,
    audit: Audit,
) -> ReceiverStream<Result<SyncAuthorizedEntriesResponse, Status>> {
    audit.apart();
    let (answers, stream) = mpsc::channel(1);
    tokio::spawn(async move {
        let talk = Talk {
            entries,
            page: page.max(1),
            answers: answers.clone(),
        };
        let ended = match talk.run(requests).await {
            Ok(()) | Err(Ended::Done) => Ok(()),
            Err(Ended::Failed(status)) => Err(status),
        };
        audit.ended(&ended);
        if let Err(status) = ended {
            // Fails when nobody listens any more.
            let _ = answers.send(Err(status)).await;
        }
    });
    ReceiverStream::new(stream)
}

struct Talk {
    entries: Vec<Arc<Held>>,
    page: usize,
    answers: mpsc::Sender<Result<SyncAuthorizedEntriesResponse, Status>>,
}

enum Ended {
    /// The agent has what it wants, or went.
    Done,
    Failed(Status),
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        Self::Failed(status)
    }
}

impl Talk {
    async fn run(
        mut self,
        mut requests: Streaming<SyncAuthorizedEntriesRequest>,
    ) -> Result<(), Ended> {
        let first = next(&self.answers, &mut requests).await?;
        if !first.ids.is_empty() {
            return Err(Status::invalid_argument(
                "specifying IDs on initial request is not supported",
            )
            .into());
        }
        let mask = first.output_mask;
        if mask.is_some_and(|mask| !mask.revision_number) {
            return Err(Status::invalid_argument("revision number cannot be masked").into());
        }
        let fields = Fields::from(mask.as_ref());
        if self.entries.len() <= self.page {
            return self.send(&self.entries, fields, false).await;
        }
        self.send_revisions().await?;
        self.entries
            .sort_unstable_by(|a, b| a.id_bytes().cmp(b.id_bytes()));
        loop {
            let mut ids = next(&self.answers, &mut requests).await?.ids;
            ids.sort_unstable();
            ids.dedup();
            let found = ids.iter().filter_map(|id| {
                let at = self
                    .entries
                    .binary_search_by(|entry| entry.id_bytes().cmp(id.as_bytes()))
                    .ok()?;
                self.entries.get(at).cloned()
            });
            let found: Vec<_> = found.collect();
            let mut rest = found.as_slice();
            while let Some((page, more)) = rest.split_at_checked(self.page)
                && !more.is_empty()
            {
                self.send(page, fields, true).await?;
                rest = more;
            }
            self.send(rest, fields, false).await?;
        }
    }

    async fn send_revisions(&self) -> Result<(), Ended> {
        let mut pages = self.entries.chunks(self.page).peekable();
        while let Some(page) = pages.next() {
            let revisions = page.iter().map(|entry| EntryRevision {
                id: entry.id().to_owned(),
                revision_number: entry.revision,
                created_at: entry.created_at,
            });
            self.answer(SyncAuthorizedEntriesResponse {
                entry_revisions: revisions.collect(),
                entries: Vec::new(),
                more: pages.peek().is_some(),
            })
            .await?;
        }
        Ok(())
    }

    async fn send(&self, entries: &[Arc<Held>], fields: Fields, more: bool) -> Result<(), Ended> {
        self.answer(SyncAuthorizedEntriesResponse {
            entry_revisions: Vec::new(),
            entries: encoded(entries, fields),
            more,
        })
        .await
    }

    async fn answer(&self, answer: SyncAuthorizedEntriesResponse) -> Result<(), Ended> {
        let sent = self.answers.send(Ok(answer)).await;
        sent.map_err(|_| Ended::Done)
    }
}

/// The agent's next request; its end, and the end of the connection, are no errors.
async fn next(
    answers: &mpsc::Sender<Result<SyncAuthorizedEntriesResponse, Status>>,
    requests: &mut Streaming<SyncAuthorizedEntriesRequest>,
) -> Result<SyncAuthorizedEntriesRequest, Ended> {
    let request = tokio::select! {
        request = requests.message() => request,
        () = answers.closed() => return Err(Ended::Done),
    };
    match request {
        Ok(Some(request)) => Ok(request),
        Ok(None) => Err(Ended::Done),
        Err(status) if status.code() == tonic::Code::Cancelled => Err(Ended::Done),
        Err(status) => Err(Ended::Failed(status)),
    }
}
