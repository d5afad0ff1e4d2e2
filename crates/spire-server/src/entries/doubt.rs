//! Which agents are known for sure, so that a call may be judged by what is in memory.

use std::collections::HashMap;
use std::sync::Mutex;

use spiffe::SpiffeId;

use super::locked;

/// Agents that this server is writing, and those of whom only the store knows what was written: two writes at a time,
/// or one that failed or was given up.
#[derive(Default)]
pub(super) struct Doubts(Mutex<HashMap<SpiffeId, Doubt>>);

#[derive(Default)]
struct Doubt {
    writes: u32,
    /// It does not end with the writes.
    lasting: bool,
}

/// A write that is under way.
pub(super) struct Writing<'a> {
    doubts: &'a Doubts,
    id: &'a SpiffeId,
    done: bool,
}

impl Doubts {
    /// `id` is about to be written.
    pub(super) fn writing<'a>(&'a self, id: &'a SpiffeId) -> Writing<'a> {
        let mut doubts = locked(&self.0);
        let doubt = doubts.entry(id.clone()).or_default();
        doubt.lasting |= doubt.writes > 0;
        doubt.writes += 1;
        Writing {
            doubts: self,
            id,
            done: false,
        }
    }

    pub(super) fn contain(&self, id: &SpiffeId) -> bool {
        locked(&self.0).contains_key(id)
    }

    /// Those that nobody is writing. They are settled once they were read after this, unless they are written meanwhile
    /// without a good end.
    pub(super) fn begin_settling(&self) -> Vec<SpiffeId> {
        let mut doubts = locked(&self.0);
        let idle = doubts.iter_mut().filter(|(_, doubt)| doubt.writes == 0);
        idle.map(|(id, doubt)| {
            doubt.lasting = false;
            id.clone()
        })
        .collect()
    }

    /// What the store has of `read` is in the cache.
    pub(super) fn settle(&self, read: &[SpiffeId]) {
        let mut doubts = locked(&self.0);
        for id in read {
            if doubts
                .get(id)
                .is_some_and(|doubt| doubt.writes == 0 && !doubt.lasting)
            {
                doubts.remove(id);
            }
        }
    }
}

impl Writing<'_> {
    /// What was written is in the cache.
    pub(super) fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        let mut doubts = locked(&self.doubts.0);
        let Some(doubt) = doubts.get_mut(self.id) else {
            return;
        };
        doubt.writes = doubt.writes.saturating_sub(1);
        doubt.lasting |= !self.done;
        if doubt.writes == 0 && !doubt.lasting {
            doubts.remove(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubt_lasts_until_the_store_was_asked() {
        let doubts = Doubts::default();
        let id = SpiffeId::new("spiffe://example.org/spire/agent/a").unwrap();
        let settle = || doubts.settle(&doubts.begin_settling());

        let alone = doubts.writing(&id);
        assert!(doubts.contain(&id));
        settle();
        assert!(doubts.contain(&id), "it is still being written");
        alone.done();
        assert!(!doubts.contain(&id));

        let (first, second) = (doubts.writing(&id), doubts.writing(&id));
        first.done();
        second.done();
        assert!(doubts.contain(&id), "nobody knows which was first");
        settle();
        assert!(!doubts.contain(&id));

        drop(doubts.writing(&id));
        let read = doubts.begin_settling();
        drop(doubts.writing(&id));
        doubts.settle(&read);
        assert!(doubts.contain(&id), "it was read too early");
        settle();
        assert!(!doubts.contain(&id));

        drop(doubts.writing(&id));
        let read = doubts.begin_settling();
        let later = doubts.writing(&id);
        doubts.settle(&read);
        assert!(doubts.contain(&id));
        later.done();
        assert!(!doubts.contain(&id), "a later write says it all");
    }
}
