use std::io;
use std::sync::{Arc, Mutex};

use ah_identity_provider::{Code, Explained};
use ah_spire_attest::peer::PeerInfo;
use ah_spire_attest::workload::{WorkloadAttestor, attest};
use ah_spire_attest::{AttestError, Selector};
use tokio::sync::Barrier;
use tracing::subscriber::DefaultGuard;

/// What a [`Fake`] answers: values of selectors, or why there are none.
#[derive(Clone)]
enum Answer {
    Says(&'static [&'static str]),
    Fails(&'static str),
    Hangs,
}
use Answer::{Fails, Hangs, Says};

/// An attestor as this test wants it.
struct Fake {
    name: &'static str,
    /// Everybody meets here before answering: this hangs unless all run at once.
    barrier: Arc<Barrier>,
    /// How often it gives way to the others before it answers.
    turns: u32,
    answer: Answer,
}

impl WorkloadAttestor for Fake {
    fn name(&self) -> &str {
        self.name
    }

    async fn attest(&self, _peer: &PeerInfo) -> Result<Vec<Selector>, AttestError> {
        self.barrier.wait().await;
        for _ in 0..self.turns {
            tokio::task::yield_now().await;
        }
        match self.answer {
            Says(values) => {
                let selectors = values.iter().map(|value| Selector::new(self.name, *value));
                Ok(selectors.collect())
            }
            Fails(why) => Err(AttestError::Internal(
                Explained::new(Code::Other, why).hint(format!("mend {}", self.name)),
            )),
            Hangs => std::future::pending().await,
        }
    }
}

fn fakes<const N: usize>(answers: [(&'static str, u32, Answer); N]) -> Vec<Fake> {
    let barrier = Arc::new(Barrier::new(N));
    let fake = |(name, turns, answer)| Fake {
        name,
        barrier: Arc::clone(&barrier),
        turns,
        answer,
    };
    answers.into_iter().map(fake).collect()
}

/// What this thread logs from now on, until the guard goes.
fn logged() -> (Arc<Mutex<Vec<u8>>>, DefaultGuard) {
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let lines = Arc::default();
    let writer = Arc::clone(&lines);
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || Lines(Arc::clone(&writer)))
        .finish();
    (lines, tracing::subscriber::set_default(subscriber))
}

fn this_process() -> PeerInfo {
    PeerInfo::of_process(std::process::id().cast_signed()).unwrap()
}

#[tokio::test]
async fn all_run_at_once_and_answer_in_the_order_of_the_configuration() {
    let attestors = fakes([
        ("slow", 50, Says(&["a", "b"])),
        ("fast", 0, Says(&["c"])),
        ("medium", 5, Says(&["d"])),
    ]);
    for _ in 0..3 {
        let selectors = attest(&attestors, &this_process()).await.unwrap();
        let texts: Vec<_> = selectors.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["slow:a", "slow:b", "fast:c", "medium:d"]);
    }
}

#[tokio::test]
async fn one_that_fails_is_skipped_and_the_others_count() {
    let (log, _guard) = logged();
    let attestors = fakes([
        ("docker", 3, Fails("no socket")),
        ("unix", 0, Says(&["uid:0"])),
    ]);
    let selectors = attest(&attestors, &this_process()).await.unwrap();
    assert_eq!(selectors, ["unix:uid:0".parse().unwrap()]);
    let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
    for word in [
        "ERROR",
        "workloadattestor(docker): no socket",
        "mend docker",
        "pid=",
    ] {
        assert!(log.contains(word), "{log}");
    }
    assert_eq!(log.lines().count(), 1, "{log}");
}

#[tokio::test(start_paused = true)]
async fn one_that_never_answers_is_given_up_and_the_others_count() {
    let (log, _guard) = logged();
    let attestors = fakes([
        ("docker", 0, Hangs),
        ("unix", 0, Says(&["uid:0"])),
        ("k8s", 0, Hangs),
    ]);
    let begin = tokio::time::Instant::now();
    let selectors = attest(&attestors, &this_process()).await.unwrap();
    assert_eq!(selectors, ["unix:uid:0".parse().unwrap()]);
    // Both at once, not one after the other.
    let waited = begin.elapsed().as_secs();
    assert_eq!(waited, 30);
    let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
    for word in [
        "workloadattestor(docker): no answer within 30s",
        "workloadattestor(k8s): no answer within 30s",
    ] {
        assert!(log.contains(word), "{log}");
    }
}

#[tokio::test]
async fn when_all_fail_each_is_told() {
    let attestors = fakes([
        ("docker", 3, Fails("no socket")),
        ("k8s", 0, Fails("no kubelet")),
    ]);
    let error = attest(&attestors, &this_process()).await.unwrap_err();
    let report = error.explained().report();
    for text in [
        "workloadattestor(docker): no socket",
        "workloadattestor(k8s): no kubelet",
        "hint: mend docker",
    ] {
        assert!(report.contains(text), "{report}");
    }
}

#[tokio::test]
async fn without_attestors_there_is_nothing_to_say() {
    let none: &[Fake] = &[];
    assert_eq!(attest(none, &this_process()).await, Ok(Vec::new()));
}
