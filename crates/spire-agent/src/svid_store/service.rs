//! The push to the stores.

use std::collections::HashMap;
use std::sync::Arc;

use ah_spire_telemetry::{CallCounter, Metrics};
use ah_spire_wire::model::Entry;
use tokio::time::Instant;

use super::cache::Work;
use super::{StoreCache, StoreFault, SvidStore};

/// Brings the stores in step with the cache.
pub(crate) struct StoreService {
    cache: Arc<StoreCache>,
    stores: HashMap<String, Arc<dyn SvidStore>>,
    rounds: CallCounter,
}

impl StoreService {
    pub(crate) fn new(
        cache: Arc<StoreCache>,
        stores: Vec<Arc<dyn SvidStore>>,
        metrics: &Metrics,
    ) -> Self {
        let stores = stores.into_iter();
        Self {
            cache,
            stores: stores.map(|it| (it.name().to_owned(), it)).collect(),
            rounds: metrics.calls(&["store", "store_svid_updates"], &[]),
        }
    }

    /// Until it is dropped.
    pub(crate) async fn run(self) {
        loop {
            let work = self.cache.work(Instant::now());
            if !work.is_empty() {
                let round = self.rounds.start();
                for work in work {
                    self.act_on(&work).await;
                }
                round.done(tonic::Code::Ok);
            }
            self.cache.wait().await;
        }
    }

    async fn act_on(&self, work: &Work) {
        let Work { id, revision, .. } = work;
        if let Some(entry) = &work.delete {
            match self.delete(entry).await {
                Ok(()) => self.cache.taken_away(id),
                Err(fault) => return self.failed(work, entry, "Failed to delete SVID", &fault),
            }
        }
        let Some((entry, svid)) = &work.put else {
            return self.cache.done(id, *revision, None);
        };
        let put = match self.store_of(entry) {
            Ok((store, metadata)) => {
                let put = store.put(svid, &metadata).await;
                // Whoever did not get an answer may have done it all the same.
                if matches!(put, Err(StoreFault::Failed(_))) {
                    self.cache.may_stand(id, entry);
                }
                put
            }
            Err(fault) => Err(fault),
        };
        match put {
            Ok(()) => {
                self.cache.done(id, *revision, Some(entry));
                tracing::debug!(
                    entry = %id, spiffe_id = %entry.spiffe_id, revision, "SVID stored successfully"
                );
            }
            Err(fault) => self.failed(work, entry, "Failed to put X509-SVID", &fault),
        }
    }

    fn failed(&self, work: &Work, entry: &Entry, what: &str, fault: &StoreFault) {
        let wait = self.cache.failed(&work.id, work.revision);
        tracing::error!(
            entry = %work.id, spiffe_id = %entry.spiffe_id, error = %fault, retry_in = ?wait, "{what}"
        );
    }

    async fn delete(&self, entry: &Entry) -> Result<(), StoreFault> {
        let (store, metadata) = self.store_of(entry)?;
        match store.delete(&metadata).await {
            // Then it cannot have put anything there either.
            Err(StoreFault::Malformed(why)) => {
                tracing::debug!(
                    entry = %entry.id, error = why, "Failed to delete SVID because of malformed selectors"
                );
                Ok(())
            }
            Ok(()) => {
                tracing::debug!(entry = %entry.id, "SVID deleted successfully");
                Ok(())
            }
            failed => failed,
        }
    }

    fn store_of(&self, entry: &Entry) -> Result<(&dyn SvidStore, Vec<String>), StoreFault> {
        let first = entry.selectors.first();
        let first = first.ok_or_else(|| StoreFault::Failed("no selectors found".into()))?;
        let name = &first.kind;
        if entry.selectors.iter().any(|other| other.kind != *name) {
            let why = "selector contains multiple types".to_owned();
            return Err(StoreFault::Failed(why));
        }
        let store = self.stores.get(name).ok_or_else(|| {
            StoreFault::Failed(format!(
                "SVIDStore {name:?} not found: add it to the agent's plugins, or mend the entry's selectors"
            ))
        })?;
        let values = entry.selectors.iter();
        Ok((
            store.as_ref(),
            values.map(|selector| selector.value.clone()).collect(),
        ))
    }
}
