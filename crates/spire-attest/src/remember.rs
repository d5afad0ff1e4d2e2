//! Answers that are dear to find and stay true for a while.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::time::Instant;

/// A bounded cache in which callers who ask for the same thing at once share one search for it.
pub(crate) struct Remember<K, V> {
    slots: Mutex<HashMap<K, Slot<V>>>,
    most: usize,
    keep: Duration,
}

struct Slot<V> {
    answer: Arc<OnceCell<V>>,
    since: Instant,
}

impl<K: Clone + Eq + Hash, V: Clone> Remember<K, V> {
    /// Holds at most `most` answers, each for `keep`.
    pub(crate) fn new(most: usize, keep: Duration) -> Self {
        Self {
            slots: Mutex::new(HashMap::new()),
            most,
            keep,
        }
    }

    /// The answer for `key`, by `search` unless it is known. A failed search is not remembered.
    pub(crate) async fn answer<E>(
        &self,
        key: &K,
        search: impl Future<Output = Result<V, E>>,
    ) -> Result<V, E> {
        let slot = self.slot(key);
        slot.get_or_try_init(|| search).await.cloned()
    }

    fn slot(&self, key: &K) -> Arc<OnceCell<V>> {
        let now = Instant::now();
        let mut slots = self.locked();
        if let Some(slot) = slots.get(key)
            && now.duration_since(slot.since) < self.keep
        {
            return Arc::clone(&slot.answer);
        }
        if slots.len() >= self.most {
            slots.retain(|_, slot| now.duration_since(slot.since) < self.keep);
        }
        if slots.len() >= self.most {
            let oldest = slots.iter().min_by_key(|(_, slot)| slot.since);
            let oldest = oldest.map(|(key, _)| key.clone());
            oldest.map(|key| slots.remove(&key));
        }
        let answer = Arc::new(OnceCell::new());
        let slot = Slot {
            answer: Arc::clone(&answer),
            since: now,
        };
        slots.insert(key.clone(), slot);
        answer
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, HashMap<K, Slot<V>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures_util::future::join_all;

    use super::*;

    const KEEP: Duration = Duration::from_secs(10);

    async fn count(cache: &Remember<u32, u32>, key: u32, searches: &AtomicU32) -> u32 {
        let search = async {
            tokio::task::yield_now().await;
            Ok::<_, Infallible>(searches.fetch_add(1, Ordering::SeqCst))
        };
        cache.answer(&key, search).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn many_at_once_share_one_search_and_later_ones_its_answer_until_it_is_old() {
        let cache = Remember::new(2, KEEP);
        let searches = AtomicU32::new(0);
        let answers = join_all((0..100).map(|_| count(&cache, 7, &searches))).await;
        assert!(answers.iter().all(|answer| *answer == 0));
        tokio::time::advance(KEEP - Duration::from_millis(1)).await;
        assert_eq!(count(&cache, 7, &searches).await, 0);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(count(&cache, 7, &searches).await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn it_never_holds_more_than_it_may_and_loses_the_oldest_first() {
        let cache = Remember::new(2, KEEP);
        let searches = AtomicU32::new(0);
        for key in [1, 2, 3] {
            count(&cache, key, &searches).await;
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(cache.locked().len(), 2);
        assert_eq!(count(&cache, 3, &searches).await, 2);
        assert_eq!(count(&cache, 2, &searches).await, 1);
        assert_eq!(count(&cache, 1, &searches).await, 3);
    }

    #[tokio::test]
    async fn a_failed_search_is_made_again() {
        let cache = Remember::<u32, u32>::new(2, KEEP);
        assert_eq!(cache.answer(&1, async { Err("no") }).await, Err("no"));
        assert_eq!(cache.answer(&1, async { Ok::<_, ()>(5) }).await, Ok(5));
    }
}
