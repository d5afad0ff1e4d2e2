//! The kubelet's answers, shared by all who wait for one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::workload::k8s::kubelet::{Access, Kubelet};
use crate::workload::k8s::pods::Pod;

/// Asks the kubelet at most once an interval.
pub(super) struct Lists {
    kubelet: Kubelet,
    interval: Duration,
    reload: Duration,
    /// The number of the last answer.
    last: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    access: Option<(Access, Instant)>,
    /// When it was asked, answer or not.
    asked: Option<Instant>,
    answer: Option<Answer>,
}

#[derive(Clone)]
struct Answer {
    number: u64,
    pods: Result<Arc<Vec<Pod>>, String>,
}

impl Lists {
    pub(super) fn new(kubelet: Kubelet, interval: Duration, reload: Duration) -> Self {
        Self {
            kubelet,
            interval,
            reload,
            last: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }

    /// That its files can be read.
    pub(super) async fn check(&self) -> Result<(), String> {
        let access = self.kubelet.load().await?;
        self.state.lock().await.access = Some((access, Instant::now()));
        Ok(())
    }

    /// An answer that is newer than `seen`, and its number. One is enough for all who wait; a list that was asked for
    /// within the last interval counts for those who come later.
    pub(super) async fn next(&self, seen: u64) -> (u64, Result<Arc<Vec<Pod>>, String>) {
        let before = self.last.load(Ordering::Acquire);
        let mut state = self.state.lock().await;
        if let Some(answer) = &state.answer {
            let recent = state
                .asked
                .is_some_and(|asked| asked.elapsed() < self.interval);
            let waited_for = answer.number > before;
            if waited_for || (recent && answer.pods.is_ok() && answer.number > seen) {
                return (answer.number, answer.pods.clone());
            }
        }
        if let Some(asked) = state.asked {
            tokio::time::sleep_until(asked + self.interval).await;
        }
        state.asked = Some(Instant::now());
        let pods = self.ask(&mut state.access).await.map(Arc::new);
        let number = self.last.load(Ordering::Acquire) + 1;
        state.answer = Some(Answer {
            number,
            pods: pods.clone(),
        });
        self.last.store(number, Ordering::Release);
        (number, pods)
    }

    async fn ask(&self, access: &mut Option<(Access, Instant)>) -> Result<Vec<Pod>, String> {
        let fresh = access
            .take()
            .filter(|(_, since)| since.elapsed() < self.reload);
        let (now, since) = match fresh {
            Some(fresh) => fresh,
            None => (self.kubelet.load().await?, Instant::now()),
        };
        let (now, _) = access.insert((now, since));
        self.kubelet.pods(now).await
    }
}
