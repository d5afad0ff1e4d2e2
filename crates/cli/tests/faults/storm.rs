//! Handshakes that go on while a certificate changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ah_testkit::ca::TestLeaf;
use ah_testkit::process::eventually;
use ah_tls::{ClientConfigs, connect};
use tokio::io::AsyncReadExt;
use tokio::runtime::Runtime;
use tokio::task::{JoinHandle, JoinSet};

/// One handshake of the storm: when it began, and whose certificate it was shown.
type Seen = (Instant, Result<String, String>);

/// 200 connects a second.
pub(crate) struct Storm {
    going: Arc<AtomicBool>,
    begun: Arc<AtomicUsize>,
    task: JoinHandle<Vec<Seen>>,
}

impl Storm {
    pub(crate) fn begin(runtime: &Runtime, configs: ClientConfigs, port: u16) -> Self {
        let going = Arc::new(AtomicBool::new(true));
        let begun = Arc::new(AtomicUsize::new(0));
        let task = {
            let (going, begun) = (Arc::clone(&going), Arc::clone(&begun));
            runtime.spawn(async move {
                let mut beat = tokio::time::interval(Duration::from_millis(5));
                let mut tasks = JoinSet::new();
                while going.load(Ordering::Relaxed) {
                    beat.tick().await;
                    begun.fetch_add(1, Ordering::Relaxed);
                    tasks.spawn(handshake(configs.clone(), port));
                }
                tasks.join_all().await
            })
        };
        Self { going, begun, task }
    }

    /// Waits until so many more handshakes have begun.
    pub(crate) fn wait(&self, count: usize) {
        let until = self.begun.load(Ordering::Relaxed) + count;
        eventually("the storm goes on", || {
            (self.begun.load(Ordering::Relaxed) >= until).then_some(())
        });
    }

    /// Ends it. No handshake may have failed, and none that began more than `slack` after `from` may have been
    /// shown another certificate than `new`.
    pub(crate) fn end(
        self,
        runtime: &Runtime,
        (old, new): (&TestLeaf, &TestLeaf),
        from: Instant,
        slack: Duration,
    ) {
        self.going.store(false, Ordering::Relaxed);
        let seen = runtime.block_on(self.task).unwrap();
        let (old, new) = (serial(old), serial(new));
        let mut latest_old = Duration::ZERO;
        for (begun, shown) in &seen {
            let shown = shown.as_ref().expect("no handshake fails");
            if *shown == old {
                latest_old = latest_old.max(begun.saturating_duration_since(from));
            } else {
                assert_eq!(*shown, new);
            }
        }
        println!(
            "{} handshakes; the last to be shown the old certificate began {latest_old:?} after the change",
            seen.len()
        );
        assert!(latest_old <= slack, "{latest_old:?}");
        let after = seen.iter().filter(|(begun, _)| *begun > from + slack);
        assert!(after.count() > 50, "the storm went on");
    }
}

async fn handshake(configs: ClientConfigs, port: u16) -> Seen {
    let begun = Instant::now();
    let limit = Duration::from_secs(30);
    let shown = async {
        let connected = connect("127.0.0.1", port, &configs, limit)
            .await
            .map_err(|error| error.to_string())?;
        let serial = connected.server.leaf().serial.clone();
        // Under TLS 1.3 only an answer proves that the access point has accepted our certificate.
        let mut stream = connected.stream;
        let mut first = [0; 1];
        match tokio::time::timeout(limit, stream.read(&mut first)).await {
            Ok(Ok(1)) => Ok(serial),
            other => Err(format!("no answer after the handshake: {other:?}")),
        }
    };
    (begun, shown.await)
}

/// The serial number of a leaf.
pub(crate) fn serial(leaf: &TestLeaf) -> String {
    let facts = ah_identity_provider::CertificateFacts::from_der(leaf.der());
    facts.unwrap().serial
}
