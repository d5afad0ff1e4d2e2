//! A bounded number of places, from which the longest holder can be sent away.

use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// At most so many peers at once. Clones share the places.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    max: usize,
    /// A holder of at least this age makes room when all places are taken.
    patience: Duration,
    taken: Arc<Mutex<Taken>>,
    /// News of places that were given back.
    freed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    /// How many places were given back so far.
    given_back: u64,
    /// Oldest first. Dropping the sender sends its holder away.
    holders: BTreeMap<u64, (Instant, oneshot::Sender<()>)>,
    /// Who is next, in the order of arrival.
    queue: VecDeque<oneshot::Sender<Slot>>,
}

impl Slots {
    pub(crate) fn new(max: usize, patience: Duration) -> Self {
        Self {
            max,
            patience,
            taken: Arc::default(),
            freed: Arc::default(),
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
        Some(self.enter(&mut taken, now))
    }

    fn enter(&self, taken: &mut Taken, now: Instant) -> Slot {
        let (sender, cut) = oneshot::channel();
        let number = taken.next;
        taken.next += 1;
        taken.holders.insert(number, (now, sender));
        Slot {
            slots: self.clone(),
            number,
            cut,
        }
    }

    /// A place, if need be the next that is given back, before those who come later. `None` when that takes longer than
    /// `patience`.
    pub(crate) async fn take_within(&self, patience: Duration) -> Option<Slot> {
        if let Some(slot) = self.take() {
            return Some(slot);
        }
        let (next, mine) = oneshot::channel();
        self.lock().queue.push_back(next);
        match tokio::time::timeout(patience, mine).await {
            Ok(slot) => slot.ok(),
            Err(_) => self.take(),
        }
    }

    /// Whether there is no place now, nor a holder that has had its time; and how many were given back so far.
    fn full(&self) -> (bool, u64) {
        let taken = self.lock();
        let full = taken.holders.len() >= self.max
            && taken
                .holders
                .first_key_value()
                .is_none_or(|(_, (since, _))| since.elapsed() < self.patience);
        (full, taken.given_back)
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
        let mut taken = self.slots.lock();
        if taken.holders.remove(&self.number).is_none() {
            return;
        }
        taken.given_back += 1;
        // Whoever has lost patience has left the other end.
        while let Some(next) = taken.queue.pop_front() {
            if !next.is_closed() {
                let slot = self.slots.enter(&mut taken, Instant::now());
                drop(taken);
                // One that leaves this very moment gives its place back, outside of the lock.
                let _ = next.send(slot);
                return;
            }
        }
        drop(taken);
        self.slots.freed.notify_waiters();
    }
}

/// Patience with those who come while all places are taken: used up by waiting, won back with each place that is given
/// back. So those behind wait for as long as handshakes come to an end, and for no time where none does.
#[derive(Debug)]
pub(crate) struct Excess {
    most: Duration,
    for_each: Duration,
    left: Duration,
    given_back: u64,
}

/// What became of waiting for a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// Whether there is one.
    pub(crate) found: bool,
    pub(crate) waited: Duration,
}

impl Excess {
    /// At most `most` of it; each place that is given back adds `for_each`.
    pub(crate) fn new(most: Duration, for_each: Duration) -> Self {
        Self {
            most,
            for_each,
            left: most,
            given_back: 0,
        }
    }

    /// Waits for a place of `slots`, or until patience is at its end.
    pub(crate) async fn room(&mut self, slots: &Slots) -> Room {
        let mut waited = Duration::ZERO;
        loop {
            let mut freed = pin!(slots.freed.notified());
            // What is given back from here on is heard of.
            freed.as_mut().enable();
            let (full, given_back) = slots.full();
            let more = u32::try_from(given_back - self.given_back).unwrap_or(u32::MAX);
            self.given_back = given_back;
            self.left = (self.left + self.for_each.saturating_mul(more)).min(self.most);
            if !full || self.left.is_zero() {
                let found = !full;
                return Room { found, waited };
            }
            let since = Instant::now();
            let _ = tokio::time::timeout(self.left, freed).await;
            let time = since.elapsed();
            waited += time;
            self.left = self.left.saturating_sub(time);
        }
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

    #[tokio::test(start_paused = true)]
    async fn a_place_that_comes_free_goes_to_whoever_waits_longest() {
        // AP-16
        let slots = Slots::new(1, Duration::from_secs(9));
        let holder = slots.take().unwrap();
        let wait = |patience| {
            let slots = slots.clone();
            tokio::spawn(async move { slots.take_within(Duration::from_millis(patience)).await })
        };
        let (hasty, first, second) = (wait(10), wait(1000), wait(1000));
        assert!(hasty.await.unwrap().is_none());
        drop(holder);
        assert!(slots.take().is_none(), "it is spoken for");
        let first = first.await.unwrap().unwrap();
        assert_eq!(slots.held(), 1);
        second.abort();
        let _ = second.await;
        drop(first);
        assert_eq!(slots.held(), 0, "nobody is left to have it");
        assert!(slots.take().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_to_a_full_house_waits_while_places_come_free() {
        // AP-16
        let millis = Duration::from_millis;
        let slots = Slots::new(1, Duration::from_secs(2));
        let mut excess = Excess::new(millis(100), millis(4));
        let room = |found, waited| Room {
            found,
            waited: millis(waited),
        };
        assert_eq!(excess.room(&slots).await, room(true, 0));

        // None comes free: once patience is used up, nobody waits.
        let holder = slots.take().unwrap();
        assert_eq!(excess.room(&slots).await, room(false, 100));
        assert_eq!(excess.room(&slots).await, room(false, 0));

        // One that comes free is worth a short wait.
        drop(holder);
        assert_eq!(excess.room(&slots).await, room(true, 0));
        let holder = slots.take().unwrap();
        assert_eq!(excess.room(&slots).await, room(false, 4));

        // Where each is given back in that time, nobody is turned away.
        drop(holder);
        for _ in 0..1000 {
            let holder = slots.take().unwrap();
            let (found, ()) = tokio::join!(excess.room(&slots), async {
                tokio::time::sleep(millis(3)).await;
                drop(holder);
            });
            assert_eq!(found, room(true, 3));
        }
        // Nor is it where a holder has had its time.
        let _holder = slots.take().unwrap();
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(excess.room(&slots).await, room(true, 0));
    }
}
