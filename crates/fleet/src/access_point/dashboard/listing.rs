//! The fleet as pages see it: read once for all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::access_point::{ListFilter, Listing, Operator};

/// Pages that ask within this time share one reading.
const FRESH: Duration = Duration::from_millis(400);

/// The last reading.
pub(super) struct Kept {
    operator: Operator,
    /// How often something was changed from a page.
    changes: AtomicU64,
    last: Mutex<Option<Arc<Snapshot>>>,
}

/// All executors at one moment.
pub(super) struct Snapshot {
    /// What `fleet list` says.
    pub(super) listing: Listing,
    /// When, by the access point's clock.
    pub(super) at: SystemTime,
    taken: Instant,
    changes: u64,
}

impl Kept {
    pub(super) fn new(operator: Operator) -> Self {
        Self {
            operator,
            changes: AtomicU64::new(0),
            last: Mutex::default(),
        }
    }

    /// The fleet as it was a moment ago at most, and after every change that was made from a page. Whoever asks while
    /// it is read waits for the same reading.
    pub(super) async fn now(&self) -> Arc<Snapshot> {
        let mut last = self.last.lock().await;
        let changes = self.changes.load(Ordering::Acquire);
        if let Some(last) = &*last
            && last.changes == changes
            && last.taken.elapsed() < FRESH
        {
            return Arc::clone(last);
        }
        let taken = Instant::now();
        let at = self.operator.now();
        let listing = self.operator.list(&ListFilter::default()).await;
        let read = Arc::new(Snapshot {
            listing,
            at,
            taken,
            changes,
        });
        *last = Some(Arc::clone(&read));
        read
    }

    /// The next page reads anew.
    pub(super) fn forget(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }
}
