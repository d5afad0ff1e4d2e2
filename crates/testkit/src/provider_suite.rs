//! What every identity provider must do: the conformance suite of the provider seam.
//!
//! A provider's own tests say what its source is and how it fails; a [`ProviderFixture`] lets this suite do the
//! same few things to each and hold all of them to the same promises.

use std::future::Future;
use std::time::Duration;

use ah_identity_provider::{
    CertificateFacts, Identity, Provider, ProviderError, ProviderKind, keys_match,
};
use tokio::time::timeout;

/// How long anything may take before it counts as never. Far more than any provider needs; with paused time it
/// must outlast a provider's slowest look at the clock.
const DEADLINE: Duration = Duration::from_secs(120);

/// After an error a provider is asked again when it says that something changed, or after this, as the supervisor
/// does: not every source can say so.
const BACKOFF: Duration = Duration::from_millis(100);

/// One source, and what can be done to it.
pub trait ProviderFixture {
    /// The provider under test.
    type Provider: Provider;

    /// The kind it must say it is.
    const KIND: ProviderKind;

    /// A new provider of the source as it is now.
    fn provider(&self) -> Self::Provider;

    /// Makes the source hold, or soon give, another identity.
    fn renew(&mut self) -> impl Future<Output = ()>;

    /// Breaks the source so that it gives nothing. Returns words which the error must contain, such as a path.
    fn break_source(&mut self) -> impl Future<Output = Vec<String>>;

    /// Undoes [`ProviderFixture::break_source`].
    fn mend(&mut self) -> impl Future<Output = ()>;

    /// Texts that no error may contain in any form.
    fn secrets(&self) -> Vec<String>;
}

/// Panics unless the fixture's provider keeps every promise of the seam.
pub async fn conforms<F: ProviderFixture>(mut fixture: F) {
    let mut provider = fixture.provider();
    assert_eq!(provider.kind(), F::KIND);
    let first = given(&mut provider, "the first identity").await;
    coherent(&first);

    yields_no_news(&mut provider, &first).await;
    let second = survives_being_dropped(&mut fixture, &mut provider, &first).await;
    let third = reads_again_when_asked(&mut provider).await;
    coherent(&third);
    recovers(&mut fixture, &mut provider).await;

    // A provider that starts on a source which changed meanwhile gives what is there now.
    fixture.renew().await;
    let mut late = fixture.provider();
    let newest = given(&mut late, "the first identity of a second provider").await;
    coherent(&newest);
    assert!(!newest.same_material(&second));

    starts_on_a_broken_source(&mut fixture).await;
}

/// An unchanged source yields nothing, or what it gave before.
async fn yields_no_news(provider: &mut impl Provider, first: &Identity) {
    if let Some(outcome) = poll_a_while(provider).await {
        let identity = outcome.expect("an unchanged source does not fail");
        assert!(
            identity.same_material(first),
            "an unchanged source gave another identity"
        );
    }
}

/// The future of `next` may be dropped at any point and the new identity still arrives.
async fn survives_being_dropped<F: ProviderFixture>(
    fixture: &mut F,
    provider: &mut F::Provider,
    first: &Identity,
) -> Identity {
    fixture.renew().await;
    let mut found = None;
    for _ in 0..50 {
        match poll_a_while(provider).await {
            Some(Ok(identity)) if !identity.same_material(first) => {
                found = Some(identity);
                break;
            }
            Some(Err(error)) => panic!("renewal failed: {}", error.explained().report()),
            _ => {}
        }
    }
    let second = match found {
        Some(second) => second,
        None => loop {
            let identity = given(provider, "the renewed identity").await;
            if !identity.same_material(first) {
                break identity;
            }
        },
    };
    coherent(&second);
    second
}

async fn reads_again_when_asked(provider: &mut impl Provider) -> Identity {
    provider.refresh();
    given(provider, "an identity after refresh()").await
}

/// A broken source is named, without secrets, and its recovery is noticed.
async fn recovers<F: ProviderFixture>(fixture: &mut F, provider: &mut F::Provider) {
    let words = fixture.break_source().await;
    provider.refresh();
    let error = refused(provider).await;
    tells(&error, &words, &fixture.secrets());
    // Asked once more it says the same: an error is no state that a provider falls out of.
    let again = refused(provider).await;
    tells(&again, &words, &fixture.secrets());

    fixture.mend().await;
    let mended = async {
        loop {
            match provider.next().await {
                Ok(identity) => break identity,
                Err(ProviderError::Fatal(explained)) => panic!("{}", explained.report()),
                Err(_) => tokio::select! {
                    () = provider.changed() => {}
                    () = tokio::time::sleep(BACKOFF) => {}
                },
            }
        }
    };
    let identity = timeout(DEADLINE, mended)
        .await
        .expect("a mended source gives an identity again");
    coherent(&identity);
}

async fn starts_on_a_broken_source<F: ProviderFixture>(fixture: &mut F) {
    let words = fixture.break_source().await;
    let mut provider = fixture.provider();
    let error = refused(&mut provider).await;
    tells(&error, &words, &fixture.secrets());
    fixture.mend().await;
}

/// Fails unless the parts of `identity` belong together.
pub fn coherent(identity: &Identity) {
    let chain = identity.chain();
    let leaf = chain.first().expect("a chain has a leaf");
    assert_eq!(
        keys_match(identity.key(), leaf),
        Ok(true),
        "the key is the leaf's"
    );
    let facts: Vec<_> = chain
        .iter()
        .map(|der| CertificateFacts::from_der(der).expect("the chain holds certificates"))
        .collect();
    assert_eq!(facts.first(), Some(identity.leaf()));
    for pair in facts.windows(2) {
        if let [lower, upper] = pair {
            assert_eq!(
                lower.issuer, upper.subject,
                "each certificate's issuer is next"
            );
            assert!(upper.is_ca, "an issuer is a CA");
            assert_ne!(upper.issuer, upper.subject, "no root is presented");
        }
    }
    let bundles = identity.bundles();
    let roots = bundles
        .unscoped
        .iter()
        .chain(bundles.domains.values().flatten());
    assert!(roots.count() > 0, "somebody is trusted");
}

fn tells(error: &ProviderError, words: &[String], secrets: &[String]) {
    assert!(
        !matches!(error, ProviderError::Fatal(_)),
        "a source that can be mended is no reason to give up"
    );
    let report = error.explained().report();
    for word in words {
        assert!(report.contains(word), "{report:?} does not name {word:?}");
    }
    assert!(
        error.explained().hint.is_some(),
        "{report:?} says nothing to do"
    );
    for text in [report, format!("{error}"), format!("{error:?}")] {
        for secret in secrets {
            assert!(!text.contains(secret), "a secret is in {text:?}");
        }
    }
}

async fn given(provider: &mut impl Provider, what: &str) -> Identity {
    match timeout(DEADLINE, provider.next()).await {
        Ok(Ok(identity)) => identity,
        Ok(Err(error)) => panic!("{what}: {}", error.explained().report()),
        Err(_) => panic!("{what} did not come"),
    }
}

async fn refused(provider: &mut impl Provider) -> ProviderError {
    match timeout(DEADLINE, provider.next()).await {
        Ok(Ok(_)) => panic!("a broken source gave an identity"),
        Ok(Err(error)) => error,
        Err(_) => panic!("a broken source was not noticed"),
    }
}

/// Polls `next` a few times and drops it.
async fn poll_a_while(provider: &mut impl Provider) -> Option<Result<Identity, ProviderError>> {
    let patience = async {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        outcome = provider.next() => Some(outcome),
        () = patience => None,
    }
}
