mod aws;
mod clouds;
mod kubernetes;

use std::sync::Mutex;
use std::time::Duration;

use ah_spire_wire::model::{JwtKey, X509Authority};
use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;
use spiffe::TrustDomain;

use super::*;

/// One root and one JWT key; `sequence` tells bundles apart.
pub(super) fn bundle(sequence: u64) -> Bundle {
    let key = KeyPair::generate().unwrap();
    let root = CertificateParams::default().self_signed(&key).unwrap();
    Bundle {
        trust_domain: TrustDomain::new("example.org").unwrap(),
        x509: vec![X509Authority {
            der: root.der().to_vec(),
            tainted: false,
        }],
        jwt: vec![JwtKey {
            spki: rcgen::PublicKeyData::subject_public_key_info(&key),
            id: "authority-1".into(),
            expires_at: 0,
            tainted: false,
        }],
        wit: Vec::new(),
        refresh_hint: 300,
        sequence,
    }
}

/// Is what the store has.
pub(super) struct Stored(pub(super) Mutex<Bundle>);

#[tonic::async_trait]
impl Newest for Stored {
    async fn bundle(&self) -> Result<Bundle, String> {
        Ok(self.0.lock().unwrap().clone())
    }
}

/// Fails as often as it was told to, and says what it was called with.
struct Called {
    failures: Mutex<usize>,
    again: bool,
    sequences: tokio::sync::mpsc::UnboundedSender<(u64, bool)>,
}

impl Called {
    fn new(
        failures: usize,
        again: bool,
    ) -> (Arc<Self>, tokio::sync::mpsc::UnboundedReceiver<(u64, bool)>) {
        let (sequences, calls) = tokio::sync::mpsc::unbounded_channel();
        let called = Self {
            failures: Mutex::new(failures),
            again,
            sequences,
        };
        (Arc::new(called), calls)
    }

    fn call(&self, bundle: &Bundle) -> Result<(), String> {
        let mut failures = self.failures.lock().unwrap();
        let well = *failures == 0;
        *failures = failures.saturating_sub(1);
        self.sequences.send((bundle.sequence, well)).unwrap();
        well.then_some(()).ok_or_else(|| "not today".into())
    }
}

#[tonic::async_trait]
impl Publisher for Called {
    fn name(&self) -> &str {
        "called"
    }

    fn wants_again(&self) -> bool {
        self.again
    }

    async fn publish(&self, bundle: &Bundle) -> Result<(), String> {
        self.call(bundle)
    }
}

#[tonic::async_trait]
impl Notifier for Called {
    fn name(&self) -> &str {
        "called"
    }

    async fn loaded(&self, bundle: &Bundle) -> Result<(), String> {
        self.call(bundle)
    }

    async fn updated(&self, bundle: &Bundle) -> Result<(), String> {
        self.call(bundle)
    }
}

// Inventory section 7: BundlePublisher and Notifier. Waits cost no time here: the clock runs on when nobody works.
#[tokio::test(start_paused = true)]
async fn a_bundle_is_published_until_it_is_taken_and_then_when_it_changes() {
    let (publisher, mut published) = Called::new(2, false);
    let (eager, mut eagerly) = Called::new(0, true);
    let (notifier, mut notified) = Called::new(0, false);
    let outside = Outside {
        publishers: vec![publisher, eager],
        notifiers: vec![notifier.clone()],
    };
    let first = Arc::new(bundle(1));
    outside.loaded(&first).await.unwrap();
    assert_eq!(notified.recv().await, Some((1, true)));
    *notifier.failures.lock().unwrap() = 1;

    let (bundles, watched) = watch::channel(Some(first.clone()));
    let running = tokio::spawn(outside.run(watched, Some(first)));
    for well in [false, false, true] {
        assert_eq!(published.recv().await, Some((1, well)));
    }
    for _ in 0..3 {
        assert_eq!(eagerly.recv().await, Some((1, true)));
    }
    bundles.send_replace(Some(Arc::new(bundle(2))));
    assert_eq!(published.recv().await, Some((2, true)));
    // It knew the first one already.
    for well in [false, true] {
        assert_eq!(notified.recv().await, Some((2, well)));
    }
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(published.try_recv().is_err() && notified.try_recv().is_err());
    running.abort();
}

#[tokio::test]
async fn a_notifier_that_says_no_at_the_start_is_told_of() {
    let (notifier, _calls) = Called::new(1, false);
    let outside = Outside {
        publishers: Vec::new(),
        notifiers: vec![notifier],
    };
    let error = outside.loaded(&bundle(1)).await.unwrap_err();
    assert_eq!(error, "one or more notifiers returned an error: not today");
}

#[test]
fn formats() {
    let bundle = bundle(7);
    let text = |format: &str, hint: &str| Formatted::read(format, hint).unwrap().of(&bundle);
    let json = |text: String| serde_json::from_str::<Value>(&text).unwrap();

    let spiffe = json(text("SPIFFE", "10m").unwrap());
    assert_eq!(spiffe["spiffe_sequence"], 7);
    assert_eq!(spiffe["spiffe_refresh_hint"], 600);
    assert_eq!(spiffe["keys"][0]["use"], "x509-svid");
    assert_eq!(
        json(text("spiffe", "").unwrap())["spiffe_refresh_hint"],
        300
    );
    let jwks = json(text("jwks", "").unwrap());
    assert_eq!(jwks.as_object().unwrap().len(), 1);
    assert!(jwks["keys"][0]["x5c"].is_array() && jwks["keys"][0].get("use").is_none());
    assert_eq!(jwks["keys"][1]["kid"], "authority-1");
    assert!(
        text("pem", "")
            .unwrap()
            .starts_with("-----BEGIN CERTIFICATE-----")
    );

    for (format, hint, why) in [
        ("", "", "format is required"),
        ("yaml", "", "unknown bundle format"),
        ("pem", "soon", "could not parse refresh_hint"),
    ] {
        let error = Formatted::read(format, hint).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}
