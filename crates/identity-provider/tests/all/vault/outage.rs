//! Hours without Vault: how often it is asked, and that an attempt is always made before the certificate ends.

use std::time::Duration;

use ah_identity_provider::Supervisor;
use tokio::time::{Instant, sleep};

use super::fake::{Asked, Mood};
use super::{AcceptAll, Site};

const MINUTE: Duration = Duration::from_secs(60);

/// An hour of `mood`, beginning 5 minutes before a certificate of 90 minutes is due. Returns what was asked in it.
async fn hour_of(mood: Mood) -> Vec<Asked> {
    let site = Site::new();
    site.vault.state().certificate_ttl = 90 * MINUTE;
    let clock = site.clock.clone();
    let (mut supervisor, health, _) = Supervisor::new(
        site.provider(),
        std::sync::Arc::new(AcceptAll),
        clock.clone(),
    );
    let identity = supervisor.first().await.unwrap();
    let not_after = identity.current().identity.leaf().not_after;
    tokio::spawn(supervisor.run());
    sleep(50 * MINUTE).await;
    assert_eq!(identity.current().generation, 1);
    site.vault.state().asked.clear();
    site.vault.state().mood = mood;
    sleep(60 * MINUTE).await;
    let asked = std::mem::take(&mut site.vault.state().asked);
    assert_eq!(identity.current().generation, 1, "the last good one stays");
    assert!(health.borrow().last_error.is_some());
    // VA-12, EN-14: bounded by the expiry.
    let expiry = Instant::now() - clock.now().duration_since(not_after).unwrap();
    let last_minutes = expiry - 3 * MINUTE..expiry;
    assert!(
        asked.iter().any(|asked| last_minutes.contains(&asked.at)),
        "nobody asked in the last minutes of the certificate"
    );
    // It works again within the longest wait, as soon as Vault does.
    site.vault.state().mood = Mood::Well;
    sleep(2 * MINUTE).await;
    assert_eq!(identity.current().generation, 2);
    assert_eq!(site.vault.state().busiest, 1, "one request at a time");
    asked
}

fn gaps(asked: &[Asked]) -> Vec<Duration> {
    let later = asked.iter().skip(1);
    asked
        .iter()
        .zip(later)
        .map(|(one, two)| two.at - one.at)
        .collect()
}

/// VA-13, and the storm that must not be: one request at a time, few, and never at even intervals.
fn no_storm(asked: &[Asked]) {
    let count = asked.len();
    assert!((40..=240).contains(&count), "{count} requests in an hour");
    let gaps = gaps(asked);
    let shortest = gaps.iter().min().unwrap();
    assert!(*shortest >= Duration::from_millis(5), "{shortest:?}");
    // At no time more than a handful within ten seconds.
    for (first, twelfth) in asked.iter().zip(asked.iter().skip(11)) {
        let span = twelfth.at - first.at;
        assert!(
            span > Duration::from_secs(10),
            "12 requests within {span:?}"
        );
    }
    let mut distinct: Vec<u128> = gaps.iter().map(Duration::as_millis).collect();
    distinct.sort_unstable();
    distinct.dedup();
    assert!(
        distinct.len() * 10 > gaps.len() * 8,
        "the waits are not jittered: {gaps:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn va_13_an_hour_without_vault_is_no_storm() {
    no_storm(&hour_of(Mood::Down).await);
}

#[tokio::test(start_paused = true)]
async fn va_13_an_hour_sealed_is_no_storm() {
    no_storm(&hour_of(Mood::Sealed).await);
}

// Two processes that were started together and failed together do not ask together.
#[tokio::test(start_paused = true)]
async fn va_13_two_processes_do_not_ask_in_step() {
    let one = hour_of(Mood::Down).await;
    let two = hour_of(Mood::Down).await;
    assert_ne!(gaps(&one), gaps(&two));
}
