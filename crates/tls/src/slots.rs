//! A bounded number of places, from which the longest holder can be sent away.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

/// At most so many peers at once. Clones share the places.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    max: usize,
    /// A holder of at least this age makes room when all places are taken.
    patience: Duration,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    /// Oldest first. Dropping the sender sends its holder away.
    holders: BTreeMap<u64, (Instant, oneshot::Sender<()>)>,
}

impl Slots {
    pub(crate) fn new(max: usize, patience: Duration) -> Self {
        Self {
            max,
            patience,
            taken: Arc::default(),
        }
    }

    /// A place, at the expense of the oldest holder where that has had its time. `None` when all are taken.
    pub(crate) fn take(&self) -> Option<Slot> {
        let now = Instant::now();
        let mut taken = self.lock();
        if taken.holders.len() >= self.max {
            let oldest = taken.holders.first_entry()?;
            if now.duration_since(oldest.get().0) < self.patience {
                return None;
            }
            oldest.remove();
        }
        let (sender, cut) = oneshot::channel();
        let number = taken.next;
        taken.next += 1;
        taken.holders.insert(number, (now, sender));
        Some(Slot {
            slots: self.clone(),
            number,
            cut,
        })
    }

    /// Whether there is no place now, nor a holder that has had its time.
    pub(crate) fn full(&self) -> bool {
        let taken = self.lock();
        taken.holders.len() >= self.max
            && taken
                .holders
                .first_key_value()
                .is_none_or(|(_, (since, _))| since.elapsed() < self.patience)
    }

    /// Sends the `count` oldest holders away.
    pub(crate) fn cut_oldest(&self, count: usize) {
        let mut taken = self.lock();
        for _ in 0..count {
            if taken.holders.pop_first().is_none() {
                return;
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.lock().holders.len()
    }

    /// No holder panics while it holds the lock, so the map is whole even after a poisoning.
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One place; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Slots,
    number: u64,
    cut: oneshot::Receiver<()>,
}

impl Slot {
    /// Resolves when this place was given to somebody else.
    pub(crate) async fn cut(&mut self) {
        let _ = (&mut self.cut).await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.lock().holders.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_full_house_turns_away_until_the_oldest_has_had_its_time() {
        let slots = Slots::new(2, Duration::from_secs(2));
        let mut oldest = slots.take().unwrap();
        let second = slots.take().unwrap();
        assert!(slots.take().is_none());

        tokio::time::advance(Duration::from_secs(2)).await;
        let third = slots.take().unwrap();
        oldest.cut().await;
        assert_eq!(slots.held(), 2);
        drop(oldest);
        assert_eq!(slots.held(), 2, "a holder that was cut gives nothing back");
        drop((second, third));
        assert_eq!(slots.held(), 0);
    }
}
