//! A store in memory, and a process that dies at a step of the test's choice.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ah_spire_wire::model::Bundle;
use ah_spire_wire::stored::journal::{Entries, Status};
use prost::Message;
use spiffe::TrustDomain;
use tokio::sync::Notify;

use super::domain;
use crate::keys::{DiskKeys, KeyError, KeyManager, KeyType, SigningKey};
use crate::store::{BundleChange, BundleDeletion, Bundles, Journals, Page, Paged, StoreError};

/// Counts what a process does outside of itself, and stops it for ever at one of these steps.
#[derive(Default)]
pub(in crate::ca::tests) struct Life {
    steps: AtomicU64,
    end: Option<u64>,
    dead: Notify,
}

impl Life {
    pub(in crate::ca::tests) fn until(end: u64) -> Arc<Self> {
        Arc::new(Self {
            end: Some(end),
            ..Self::default()
        })
    }

    async fn step(&self) {
        if Some(self.steps.fetch_add(1, Ordering::SeqCst)) == self.end {
            self.dead.notify_one();
            std::future::pending::<()>().await;
        }
    }

    /// Runs `work` until it is done (true) or killed.
    pub(in crate::ca::tests) async fn of(&self, work: impl Future<Output = ()>) -> bool {
        tokio::select! {
            () = work => true,
            () = self.dead.notified() => false,
        }
    }
}

#[derive(Default)]
struct Kept {
    bundles: Mutex<BTreeMap<TrustDomain, Bundle>>,
    journals: Mutex<BTreeMap<u64, (String, Vec<u8>)>>,
    bundles_fail: AtomicBool,
    journals_fail: AtomicBool,
    pruned_before: Mutex<Option<i64>>,
}

/// What it keeps outlives the process that `life` is of.
#[derive(Clone, Default)]
pub(in crate::ca::tests) struct MemoryStore {
    kept: Arc<Kept>,
    life: Arc<Life>,
}

impl MemoryStore {
    pub(in crate::ca::tests) fn in_life(&self, life: Arc<Life>) -> Self {
        Self {
            kept: self.kept.clone(),
            life,
        }
    }

    pub(in crate::ca::tests) fn own(&self) -> Bundle {
        self.kept.bundles.lock().unwrap()[&domain()].clone()
    }

    pub(in crate::ca::tests) fn put(&self, bundle: Bundle) {
        let mut bundles = self.kept.bundles.lock().unwrap();
        bundles.insert(bundle.trust_domain.clone(), bundle);
    }

    pub(in crate::ca::tests) fn put_raw_journal(&self, active: &str, data: &[u8]) {
        let mut journals = self.kept.journals.lock().unwrap();
        let id = journals.len() as u64 + 1;
        journals.insert(id, (active.to_owned(), data.to_vec()));
    }

    pub(in crate::ca::tests) fn forget_journals(&self) {
        self.kept.journals.lock().unwrap().clear();
    }

    /// Every journal, with the authority that it is found by.
    pub(in crate::ca::tests) fn entries(&self) -> Vec<(String, Entries)> {
        let journals = self.kept.journals.lock().unwrap();
        journals
            .values()
            .map(|(active, data)| (active.clone(), Entries::decode(data.as_slice()).unwrap()))
            .collect()
    }

    /// The X.509 and the JWT authorities that the only journal calls active.
    pub(in crate::ca::tests) fn active(&self) -> (Vec<String>, Vec<String>) {
        let [(_, entries)] = self.entries().try_into().unwrap();
        let is_active = |status: i32| status == i32::from(Status::Active);
        let x509 = entries
            .x509_c_as
            .iter()
            .filter(|entry| is_active(entry.status));
        let jwt = entries
            .jwt_keys
            .iter()
            .filter(|entry| is_active(entry.status));
        (
            x509.map(|entry| entry.authority_id.clone()).collect(),
            jwt.map(|entry| entry.authority_id.clone()).collect(),
        )
    }

    pub(in crate::ca::tests) fn fail(&self, bundles: bool, journals: bool) {
        self.kept.bundles_fail.store(bundles, Ordering::SeqCst);
        self.kept.journals_fail.store(journals, Ordering::SeqCst);
    }

    pub(in crate::ca::tests) fn pruned_before(&self) -> Option<i64> {
        *self.kept.pruned_before.lock().unwrap()
    }

    fn check(fails: &AtomicBool) -> Result<(), StoreError> {
        if fails.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("disk is full".into()));
        }
        Ok(())
    }
}

impl Bundles for MemoryStore {
    async fn bundle(&self, of: &TrustDomain) -> Result<Option<Bundle>, StoreError> {
        Ok(self.kept.bundles.lock().unwrap().get(of).cloned())
    }

    async fn bundles(&self, _: &Page) -> Result<Paged<Bundle>, StoreError> {
        Ok(Paged {
            rows: self
                .kept
                .bundles
                .lock()
                .unwrap()
                .values()
                .cloned()
                .collect(),
            next: String::new(),
        })
    }

    async fn count_bundles(&self) -> Result<u64, StoreError> {
        Ok(self.kept.bundles.lock().unwrap().len() as u64)
    }

    async fn put_bundle(&self, bundle: &Bundle) -> Result<(), StoreError> {
        self.put(bundle.clone());
        Ok(())
    }

    async fn update_bundle(
        &self,
        of: &TrustDomain,
        _: BundleChange,
        change: impl FnOnce(Option<Bundle>) -> Option<Bundle> + Send,
    ) -> Result<Option<Bundle>, StoreError> {
        self.life.step().await;
        Self::check(&self.kept.bundles_fail)?;
        let stored = {
            let mut bundles = self.kept.bundles.lock().unwrap();
            let before = bundles.get(of).cloned();
            if let Some(mut after) = change(before.clone())
                && Some(&after) != before.as_ref()
            {
                after.sequence += 1;
                bundles.insert(of.clone(), after);
            }
            bundles.get(of).cloned()
        };
        self.life.step().await;
        Ok(stored)
    }

    async fn delete_bundle(&self, of: &TrustDomain, _: BundleDeletion) -> Result<(), StoreError> {
        self.kept.bundles.lock().unwrap().remove(of);
        Ok(())
    }

    async fn bundle_domains(&self) -> Result<BTreeSet<TrustDomain>, StoreError> {
        Ok(self.kept.bundles.lock().unwrap().keys().cloned().collect())
    }
}

impl Journals for MemoryStore {
    async fn journal(&self, active: &str) -> Result<Option<(u64, Vec<u8>)>, StoreError> {
        Self::check(&self.kept.journals_fail)?;
        let journals = self.kept.journals.lock().unwrap();
        let found = journals.iter().find(|(_, (of, _))| of == active);
        Ok(found.map(|(id, (_, data))| (*id, data.clone())))
    }

    async fn put_journal(
        &self,
        id: Option<u64>,
        active: &str,
        data: &[u8],
    ) -> Result<u64, StoreError> {
        self.life.step().await;
        Self::check(&self.kept.journals_fail)?;
        let id = {
            let mut journals = self.kept.journals.lock().unwrap();
            if id.is_some_and(|id| !journals.contains_key(&id)) {
                return Err(StoreError::NotFound("CA journal".into()));
            }
            let id = id.unwrap_or(journals.len() as u64 + 1);
            journals.insert(id, (active.to_owned(), data.to_vec()));
            id
        };
        self.life.step().await;
        Ok(id)
    }

    async fn journals(&self) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let journals = self.kept.journals.lock().unwrap();
        Ok(journals
            .iter()
            .map(|(id, (_, data))| (*id, data.clone()))
            .collect())
    }

    async fn prune_journals(&self, now: i64) -> Result<u64, StoreError> {
        *self.kept.pruned_before.lock().unwrap() = Some(now);
        Ok(0)
    }
}

/// Keys on disk of a process that may die before and after it made one.
pub(in crate::ca::tests) struct MortalKeys {
    keys: DiskKeys,
    life: Arc<Life>,
}

impl MortalKeys {
    pub(in crate::ca::tests) fn open(path: &Path, life: Arc<Life>) -> Self {
        Self {
            keys: DiskKeys::open(path).unwrap(),
            life,
        }
    }
}

impl KeyManager for MortalKeys {
    async fn generate_key(&self, id: &str, kind: KeyType) -> Result<Arc<dyn SigningKey>, KeyError> {
        self.life.step().await;
        let made = self.keys.generate_key(id, kind).await;
        self.life.step().await;
        made
    }

    async fn key(&self, id: &str) -> Result<Option<Arc<dyn SigningKey>>, KeyError> {
        self.keys.key(id).await
    }

    async fn keys(&self) -> Result<Vec<Arc<dyn SigningKey>>, KeyError> {
        self.keys.keys().await
    }
}
