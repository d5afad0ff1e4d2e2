//! Executors that come and go: who came back too often of late.
//!
//! One that cannot stay enrolled (a process that is restarted over and over, a network that drops it) is hard to
//! see among ten thousand: each single coming back is ordinary.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::registry::lock;
use crate::store::ExecutorId;

/// How far back counts.
pub(super) const WINDOW: Duration = Duration::from_secs(600);
/// So often within the window is too often. A restart of the access point brings everybody back once.
pub(super) const OFTEN: usize = 3;
/// Executors to keep before those that have been calm since are looked for.
const ROOM: usize = 1024;

/// The last times that each executor came back: those within [`WINDOW`], at most [`OFTEN`].
#[derive(Debug)]
pub(super) struct Comebacks(Mutex<Kept>);

#[derive(Debug)]
struct Kept {
    times: HashMap<ExecutorId, VecDeque<Instant>>,
    tidy_at: usize,
}

impl Default for Comebacks {
    fn default() -> Self {
        Self(Mutex::new(Kept {
            times: HashMap::new(),
            tidy_at: ROOM,
        }))
    }
}

impl Comebacks {
    /// Notes that an executor came back. True when that makes it one that comes back too often.
    pub(super) fn note(&self, executor: &ExecutorId) -> bool {
        let now = Instant::now();
        let mut kept = lock(&self.0);
        if kept.times.len() >= kept.tidy_at {
            kept.tidy(now);
            kept.tidy_at = ROOM.max(2 * kept.times.len());
        }
        let times = kept.times.entry(executor.clone()).or_default();
        let was = is_often(times, now);
        times.push_back(now);
        if times.len() > OFTEN {
            times.pop_front();
        }
        !was && is_often(times, now)
    }

    /// How many executors come back too often.
    pub(super) fn often(&self) -> usize {
        let now = Instant::now();
        let mut kept = lock(&self.0);
        kept.tidy(now);
        let often = kept.times.values().filter(|times| is_often(times, now));
        often.count()
    }
}

impl Kept {
    fn tidy(&mut self, now: Instant) {
        self.times.retain(|_, times| {
            times
                .back()
                .is_some_and(|last| now.saturating_duration_since(*last) < WINDOW)
        });
    }
}

fn is_often(times: &VecDeque<Instant>, now: Instant) -> bool {
    times.len() >= OFTEN
        && times
            .front()
            .is_some_and(|first| now.saturating_duration_since(*first) < WINDOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> ExecutorId {
        name.into()
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_back_too_often_is_told_once_and_counted_until_calm() {
        let comebacks = Comebacks::default();
        let minute = Duration::from_secs(60);
        assert!(!comebacks.note(&id("a")) && !comebacks.note(&id("b")));
        tokio::time::advance(minute).await;
        assert!(!comebacks.note(&id("a")));
        assert_eq!(comebacks.often(), 0);
        tokio::time::advance(minute).await;
        assert!(comebacks.note(&id("a")));
        assert!(!comebacks.note(&id("a")), "told once");
        assert_eq!(comebacks.often(), 1);
        // The last three are from minutes 1 and 2: they count until the window has passed the first of them.
        tokio::time::advance(9 * minute - Duration::from_secs(1)).await;
        assert_eq!(comebacks.often(), 1);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(comebacks.often(), 0);
        // Three in an hour are no trouble.
        for _ in 0..3 {
            tokio::time::advance(20 * minute).await;
            assert!(!comebacks.note(&id("b")));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_kept_for_ever() {
        let comebacks = Comebacks::default();
        for round in 0..5 {
            for n in 0..ROOM {
                comebacks.note(&id(&format!("{round}-{n}")));
            }
            tokio::time::advance(WINDOW).await;
        }
        assert!(lock(&comebacks.0).times.len() <= 2 * ROOM);
        assert_eq!(comebacks.often(), 0);
        assert!(lock(&comebacks.0).times.is_empty());
    }
}
