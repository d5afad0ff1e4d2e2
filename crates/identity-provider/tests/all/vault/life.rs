//! The life of the token (VA-15).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use ah_identity_provider::{Code, Health, IdentityWatch, Provider, Supervisor};
use tokio::sync::watch;
use tokio::time::sleep;

use super::fake::{LATENCY, Mood};
use super::{AcceptAll, Site};

const MINUTE: Duration = Duration::from_secs(60);
const LOGIN: &str = "POST auth/approle/login";
const RENEW: &str = "POST auth/token/renew-self";
const ISSUE: &str = "POST pki/issue/executor";

/// The site's provider at work.
async fn running(site: &Site) -> (IdentityWatch, watch::Receiver<Health>) {
    let (mut supervisor, health, _) = Supervisor::new(
        site.provider(),
        Arc::new(AcceptAll),
        Arc::clone(&site.clock),
    );
    let identity = supervisor.first().await.unwrap();
    tokio::spawn(supervisor.run());
    (identity, health)
}

// VA-15: renewed at 2/3 of its TTL, and at the max TTL logged in again.
#[tokio::test(start_paused = true)]
async fn va_15_a_token_is_renewed_and_at_its_end_replaced() {
    let site = Site::new();
    site.vault.state().certificate_ttl = 24 * 60 * MINUTE;
    let (_identity, health) = running(&site).await;
    sleep(30 * MINUTE).await;
    assert_eq!(site.vault.count(RENEW, 200), 0);
    sleep(15 * MINUTE).await;
    assert_eq!(site.vault.count(RENEW, 200), 1);
    sleep(175 * MINUTE).await;
    // At 3 h 40 min the last renewals were capped; the old token lives on until 4 h.
    assert_eq!(site.vault.count(LOGIN, 200), 1);
    sleep(40 * MINUTE).await;
    assert_eq!(site.vault.count(LOGIN, 200), 2);
    assert_eq!(
        site.vault.count(ISSUE, 200),
        1,
        "no certificate for the token's sake"
    );
    assert_eq!(health.borrow().warning, None);
}

// VA-15: with a one-time secret id the certificate is renewed once more just before the token dies, and the status
// says what expires when and what to put where.
#[tokio::test(start_paused = true)]
async fn va_15_a_one_time_secret_id_gets_one_last_certificate_and_a_warning() {
    let site = Site::new();
    {
        let mut state = site.vault.state();
        state.uses = 1;
        state.certificate_ttl = 24 * 60 * MINUTE;
    }
    let (identity, health) = running(&site).await;
    sleep(210 * MINUTE).await;
    assert_eq!(identity.current().generation, 1);
    sleep(29 * MINUTE + 45 * Duration::from_secs(1)).await;
    // 15 s before the token's end at 4 h.
    assert_eq!(
        identity.current().generation,
        2,
        "the last certificate is here"
    );
    assert_eq!(site.vault.count(ISSUE, 200), 2);
    let warning = health.borrow().warning.clone().expect("a warning");
    assert_eq!(warning.code, Code::VaultTokenExpired);
    assert!(
        warning.text.starts_with("the vault token expires at "),
        "{warning:?}"
    );
    assert!(
        warning
            .causes
            .iter()
            .any(|cause| cause.contains("valid until")),
        "{warning:?}"
    );
    let hint = warning.hint.clone().unwrap();
    let file = site.dir.path().join("secret-id").display().to_string();
    assert!(hint.contains(&file) && hint.contains("secret-id"), "{hint}");

    // Hours later nothing was asked in vain: servers lock out a role after a few refusals.
    let refused = site.vault.count(LOGIN, 400);
    assert!(refused <= 5, "{refused} logins were refused");
    sleep(10 * 60 * MINUTE).await;
    assert_eq!(site.vault.count(ISSUE, 200), 2);
    let more = site.vault.count(LOGIN, 400) - refused;
    assert!(more <= 120, "{more} logins in ten hours");

    // What the warning asked for is done, and all is well again without a restart.
    {
        let mut state = site.vault.state();
        state.secret_id = "second-secret-id".to_owned();
        state.uses = 1;
    }
    site.put("second-secret-id");
    sleep(MINUTE).await;
    assert_eq!(health.borrow().warning, None);
    assert_eq!(site.vault.count(LOGIN, 200), 2);
}

// VA-15, ER-19: after the end of token and certificate life the error says what to do, and a new secret id mends it.
#[tokio::test(start_paused = true)]
async fn er_19_a_dead_token_that_cannot_be_replaced_says_so() {
    let site = Site::new();
    {
        let mut state = site.vault.state();
        state.uses = 1;
        state.token_max = 3600;
        state.certificate_ttl = 180 * MINUTE;
    }
    let (identity, health) = running(&site).await;
    // The last certificate came just before 1 h; it is due before 3 h.
    sleep(180 * MINUTE).await;
    assert_eq!(identity.current().generation, 2);
    let failure = health.borrow().last_error.clone().expect("a failure");
    assert_eq!(failure.explained.text, "vault token expired");
    assert_eq!(failure.explained.code, Code::VaultTokenExpired);
    let causes = failure.explained.causes.join("\n");
    assert!(causes.contains("invalid role or secret ID"), "{causes}");
    {
        let mut state = site.vault.state();
        state.secret_id = "second-secret-id".to_owned();
        state.uses = 1;
    }
    site.put("second-secret-id");
    sleep(Duration::from_secs(10)).await;
    assert_eq!(identity.current().generation, 3, "taken up within seconds");
    assert_eq!(health.borrow().last_error, None);
}

// VA-15: a restart while the token on disk is good does not spend the secret id again.
#[tokio::test(start_paused = true)]
async fn va_15_a_restart_takes_the_token_from_disk() {
    let site = Site::new();
    site.vault.state().uses = 1;
    let mut first = site.provider();
    first.next().await.unwrap();
    drop(first);
    site.provider().next().await.unwrap();
    assert_eq!(site.vault.count(LOGIN, 200), 1);
    assert_eq!(site.vault.count(LOGIN, 400), 0);

    let state = fs::read_dir(site.dir.path().join("state")).unwrap();
    let mut kept = 0;
    for entry in state {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.path());
        let text = fs::read_to_string(entry.path()).unwrap();
        assert!(!text.contains("first-secret-id"), "a secret id is on disk");
        kept += usize::from(text.contains("s.token-"));
    }
    assert_eq!(kept, 1);

    // A damaged cache is no worse than none.
    let damaged = fs::read_dir(site.dir.path().join("state")).unwrap();
    for entry in damaged {
        fs::write(entry.unwrap().path(), "{").unwrap();
    }
    let error = site.provider().next().await.err().unwrap();
    assert_eq!(error.explained().code, Code::VaultAuthFailed);
}

// VA-15: `--no-vault-token-cache`
#[tokio::test(start_paused = true)]
async fn va_15_without_the_cache_nothing_is_on_disk() {
    let site = Site::new();
    let mut config = site.config();
    config.token_cache = None;
    site.provider_of(config).next().await.unwrap();
    assert!(!site.dir.path().join("state").exists());
}

// VA-15: of processes that share a one-time secret id one alone spends it. Each provider has its own lock on the file,
// as each process has.
#[tokio::test(start_paused = true)]
async fn va_15_two_at_once_spend_one_secret_id() {
    let site = Site::new();
    site.vault.state().uses = 1;
    let (mut one, mut two) = (site.provider(), site.provider());
    let (first, second) = tokio::join!(one.next(), two.next());
    first.unwrap();
    second.unwrap();
    assert_eq!(site.vault.count(LOGIN, 200), 1);
    assert_eq!(site.vault.count(LOGIN, 400), 0);
}

// A future that is dropped in the middle of a login loses nothing, above all no one-time secret id.
#[tokio::test(start_paused = true)]
async fn va_15_a_dropped_login_is_not_lost() {
    let site = Site::new();
    site.vault.state().uses = 1;
    let mut config = site.config();
    config.token_cache = None;
    let mut provider = site.provider_of(config);
    loop {
        tokio::select! {
            biased;
            outcome = provider.next() => {
                outcome.unwrap();
                break;
            }
            () = sleep(LATENCY / 5) => {}
        }
    }
    assert_eq!(site.vault.count(LOGIN, 200), 1);
    assert_eq!(site.vault.count(ISSUE, 200), 1);
}

// VA-15: a token that was revoked is replaced at once, in the same breath as the certificate is needed.
#[tokio::test(start_paused = true)]
async fn va_15_a_revoked_token_is_replaced() {
    let site = Site::new();
    let mut provider = site.provider();
    provider.next().await.unwrap();
    site.vault.revoke_all();
    provider.refresh();
    provider.next().await.unwrap();
    assert_eq!(site.vault.count(LOGIN, 200), 2);
}

// VA-15: an outage while the token has to be renewed does not lose it, nor storm.
#[tokio::test(start_paused = true)]
async fn va_15_a_token_survives_an_outage_at_its_renewal() {
    let site = Site::new();
    {
        let mut state = site.vault.state();
        state.uses = 1;
        state.certificate_ttl = 24 * 60 * MINUTE;
    }
    let (_identity, health) = running(&site).await;
    sleep(30 * MINUTE).await;
    site.vault.state().mood = Mood::Down;
    site.vault.state().asked.clear();
    sleep(25 * MINUTE).await;
    let asked = site.vault.state().asked.len();
    assert!((10..=60).contains(&asked), "{asked} attempts in 15 minutes");
    site.vault.state().mood = Mood::Well;
    sleep(2 * MINUTE).await;
    assert_eq!(site.vault.count(RENEW, 200), 1);
    assert_eq!(site.vault.count(LOGIN, 400), 0);
    assert_eq!(health.borrow().warning, None);
}
