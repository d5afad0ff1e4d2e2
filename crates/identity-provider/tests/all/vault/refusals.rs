//! What Vault refuses or garbles, and what is made of it (VA-13, ER-13 to ER-19).

use std::time::Duration;

use ah_identity_provider::vault::Retry;
use ah_identity_provider::{Code, Explained, Provider, ProviderError};
use serde_json::json;
use tokio::time::Instant;

use super::Site;
use super::fake::Mood;

async fn refused(site: &Site) -> ProviderError {
    site.provider().next().await.err().expect("a refusal")
}

fn says(error: &ProviderError, code: Code, text: &str) -> Explained {
    let explained = error.explained();
    assert_eq!((explained.code, explained.text.as_str()), (code, text));
    assert!(explained.hint.is_some());
    explained.clone()
}

// ER-13
#[tokio::test(start_paused = true)]
async fn er_13_a_wrong_secret_id() {
    let site = Site::new();
    site.put("wrong-secret-id");
    let error = refused(&site).await;
    assert!(matches!(error, ProviderError::Operator(_)));
    let text = "vault authentication failed: invalid role or secret ID";
    says(&error, Code::VaultAuthFailed, text);
    assert!(!error.explained().report().contains("wrong-secret-id"));
    assert_eq!(site.vault.state().asked.len(), 1, "4xx is not tried again");
}

// ER-14, ER-17
#[tokio::test(start_paused = true)]
async fn er_14_a_common_name_outside_the_role() {
    let site = Site::new();
    let said = "common name one.example.com not allowed by this role";
    site.vault.state().refuses = Some((400, json!({ "errors": [said] })));
    let error = refused(&site).await;
    let told = says(
        &error,
        Code::NotIssued,
        &format!("failed to issue certificate: 1 error occurred: * {said}"),
    );
    assert_eq!(told.causes[0], "common name not in allowed domains");
}

// ER-16: the token is good and the policy is not; nobody logs in again for that.
#[tokio::test(start_paused = true)]
async fn er_16_a_policy_without_the_path() {
    let site = Site::new();
    site.vault.state().forbidden = true;
    let error = refused(&site).await;
    says(
        &error,
        Code::VaultPathDenied,
        "permission denied for path pki/issue/executor",
    );
    assert_eq!(site.vault.count("POST auth/approle/login", 200), 1);
}

// ER-15, ER-18, VA-13: what may pass is tried as often as was said, with waits that double.
#[tokio::test(start_paused = true)]
async fn va_13_what_may_pass_is_tried_again() {
    let moods = [
        (Mood::Sealed, "vault is sealed"),
        (Mood::Down, "failed to connect to vault: connection refused"),
        (Mood::BreaksOff, "vault gave no answer: the reply broke off"),
        (
            Mood::Hangs,
            "vault gave no answer: the reply was not complete within 30s",
        ),
        (
            Mood::Answers(429, r#"{"errors":["slow down"]}"#),
            "vault cannot answer now: too many requests, or a standby (HTTP 429): slow down",
        ),
        (
            Mood::Answers(472, ""),
            "vault cannot answer now: a disaster recovery standby (HTTP 472)",
        ),
        (
            Mood::Answers(473, ""),
            "vault cannot answer now: a performance standby (HTTP 473)",
        ),
        (
            Mood::Answers(500, r#"{"errors":["internal error"]}"#),
            "vault cannot answer now: internal error (HTTP 500): internal error",
        ),
        (
            Mood::Answers(502, "<html>Bad Gateway</html>"),
            "vault cannot answer now: its gateway got no answer (HTTP 502): <html>Bad Gateway</html>",
        ),
    ];
    for (mood, text) in moods {
        let site = Site::new();
        site.vault.state().mood = mood;
        let mut config = site.config();
        config.retry = Retry {
            max: 3,
            delay: Duration::from_secs(2),
        };
        let begin = Instant::now();
        let error = site.provider_of(config).next().await.err().unwrap();
        assert!(matches!(error, ProviderError::Retry(_)), "{text}");
        assert_eq!(error.explained().text, text);
        assert_eq!(site.vault.state().asked.len(), 4, "{text}");
        // 2, 4 and 8 seconds, each jittered over its upper half.
        let took = begin.elapsed();
        assert!(took >= Duration::from_secs(7), "{text}: {took:?}");
    }
}

// VA-1: the next address is tried at once, and the one that answered is asked first from then on.
#[tokio::test(start_paused = true)]
async fn va_1_the_next_address_takes_over() {
    let site = Site::new();
    site.vault
        .state()
        .moods
        .insert("a.example.com".to_owned(), Mood::Down);
    let mut config = site.config();
    config.addresses = ["https://a.example.com:8200", "https://b.example.com:8200"]
        .map(|text| text.parse().unwrap())
        .to_vec();
    let begin = Instant::now();
    site.provider_of(config).next().await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(1));
    let asked = site.vault.state().asked.clone();
    let hosts: Vec<_> = asked.iter().map(|asked| asked.host.as_str()).collect();
    assert_eq!(hosts[0], "a.example.com");
    assert!(
        hosts[1..].iter().all(|host| *host == "b.example.com"),
        "{hosts:?}"
    );
}

// VA-16: a standby names its leader.
#[tokio::test(start_paused = true)]
async fn va_16_a_redirect_to_the_leader_is_followed() {
    let site = Site::new();
    let to = Mood::Redirects("https://leader.example.com:8200".to_owned());
    let standby = "vault.example.com".to_owned();
    site.vault.state().moods.insert(standby, to);
    site.provider().next().await.unwrap();
    let issued = site.vault.state().asked.clone().into_iter();
    let hosts: Vec<_> = issued
        .filter(|asked| asked.status == 200)
        .map(|asked| asked.host)
        .collect();
    assert!(!hosts.is_empty() && hosts.iter().all(|host| host == "leader.example.com"));
}

// VA-16: the token goes nowhere that TLS does not guard, nor round in circles.
#[tokio::test(start_paused = true)]
async fn va_16_a_redirect_that_gives_the_token_away_is_refused() {
    for (to, word) in [
        ("http://leader.example.com:8200", "from HTTPS to HTTP"),
        ("ftp://leader.example.com", "no Vault"),
        ("https://vault.example.com:8200", "server to server"),
        ("https://leader.example.com:8200/v1/other", "another path"),
    ] {
        let site = Site::new();
        let mut config = site.config();
        config.retry.max = 0;
        site.vault.state().moods.insert(
            "vault.example.com".to_owned(),
            Mood::Redirects(to.to_owned()),
        );
        let error = site.provider_of(config).next().await.err().unwrap();
        let report = error.explained().report();
        assert!(report.contains(word), "{report}");
        let asked = site.vault.state().asked.clone();
        assert!(asked.iter().all(|asked| asked.host == "vault.example.com"));
    }
}

// A page that is not Vault's is no certificate.
#[tokio::test(start_paused = true)]
async fn er_24_an_answer_of_another_form() {
    let site = Site::new();
    site.vault.state().mood = Mood::Answers(200, "<html>hello</html>");
    let error = refused(&site).await;
    let text = "vault's answer has another form than expected";
    says(&error, Code::Other, text);
}

// ER-4: Vault's clock is ahead. Its certificate is kept until it is valid, and no other is asked for meanwhile.
#[tokio::test(start_paused = true)]
async fn er_4_a_certificate_from_the_future_is_waited_for() {
    let site = Site::new();
    site.vault.state().ahead = 90;
    let mut provider = site.provider();
    let begin = Instant::now();
    for _ in 0..3 {
        let error = provider.next().await.err().unwrap();
        assert!(matches!(error, ProviderError::Retry(_)));
        let text = "certificate has expired or is not yet valid";
        says(&error, Code::ExpiredOrNotYetValid, text);
    }
    provider.changed().await;
    let waited = begin.elapsed();
    assert!((59..=64).contains(&waited.as_secs()), "{waited:?}");
    provider.next().await.unwrap();
    assert_eq!(site.vault.count("POST pki/issue/executor", 200), 1);
}

// ER-4: Vault's clock is behind by more than a certificate's life.
#[tokio::test(start_paused = true)]
async fn er_4_a_certificate_from_the_past_is_not_given() {
    let site = Site::new();
    site.vault.state().ahead = -7200;
    let error = refused(&site).await;
    assert_eq!(error.explained().code, Code::ExpiredOrNotYetValid);
}
