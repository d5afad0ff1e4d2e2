//! What is made of one message.

use ah_identity_provider::spiffe::Choice;
use ah_identity_provider::{Code, Provider};
use ah_testkit::ca::TestCa;
use ah_testkit::workload_api::{Answer, Svids};
use pkcs8::PrivateKeyInfoRef;
use spiffe::{SpiffeId, TrustDomain};

use super::{Agent, DOMAIN, given, leaf, refused};
use crate::common::Log;

fn domain(name: &str) -> TrustDomain {
    TrustDomain::new(name).unwrap()
}

fn id(path: &str) -> SpiffeId {
    SpiffeId::new(format!("spiffe://{DOMAIN}{path}")).unwrap()
}

// SP-1, SV-52, SV-75: chain, key and bundles of one message; each bundle for its own trust domain and no root for any name.
#[tokio::test]
async fn sp_1_one_message_is_one_identity() {
    let (ca, other) = (TestCa::new(DOMAIN), TestCa::new("other.org"));
    let intermediate = ca.intermediate().issue();
    let leaf = leaf(&intermediate, "/ah/agent/1");
    let svids = Svids::of(&leaf, &ca).federated("other.org", &[&other]);
    let agent = Agent::saying(ca.clone(), Answer::Set(svids));
    let identity = given(&mut agent.provider()).await;
    assert_eq!(identity.chain().to_vec(), leaf.chain());
    assert!(*identity.key() == leaf.key());
    let bundles = identity.bundles();
    assert!(bundles.unscoped.is_empty());
    assert_eq!(bundles.domains.len(), 2);
    assert_eq!(bundles.domains[&domain(DOMAIN)], [ca.der().clone()]);
    assert_eq!(bundles.domains[&domain("other.org")], [other.der().clone()]);
}

// SV-76: what a message leaves out is gone, also while the SVID stays the same.
#[tokio::test]
async fn sv_76_a_bundle_that_is_left_out_is_forgotten() {
    let (ca, other) = (TestCa::new(DOMAIN), TestCa::new("other.org"));
    let leaf = leaf(&ca, "/ah/agent/1");
    let both = Svids::of(&leaf, &ca).federated("other.org", &[&other]);
    let agent = Agent::saying(ca.clone(), Answer::Set(both));
    let mut provider = agent.provider();
    let first = given(&mut provider).await;
    assert!(first.bundles().domains.contains_key(&domain("other.org")));

    agent.api.say(Answer::Set(Svids::of(&leaf, &ca)));
    let second = given(&mut provider).await;
    assert!(!second.bundles().domains.contains_key(&domain("other.org")));
    assert_eq!(first.chain(), second.chain());
}

// SV-47: an empty bundle is not "no news": it says that nobody of that domain is trusted, the own one included.
#[tokio::test]
async fn sv_47_an_empty_bundle_is_kept_as_empty() {
    let ca = TestCa::new(DOMAIN);
    let svids = Svids::of(&leaf(&ca, "/ah/agent/1"), &ca)
        .trusting(&[])
        .federated("other.org", &[]);
    let agent = Agent::saying(ca, Answer::Set(svids));
    let (log, _guard) = Log::start();
    let identity = given(&mut agent.provider()).await;
    for name in [DOMAIN, "other.org"] {
        assert!(identity.bundles().domains[&domain(name)].is_empty());
        let told = format!("the trust bundle of {name} is empty");
        assert_eq!(log.lines_with(&told).len(), 1, "{name}");
    }
}

// SV-47: a federated bundle that cannot be read distrusts its domain, and costs nobody else anything.
#[tokio::test]
async fn sv_47_a_broken_federated_bundle_is_an_empty_one() {
    let ca = TestCa::new(DOMAIN);
    let mut svids = Svids::of(&leaf(&ca, "/ah/agent/1"), &ca);
    let broken = ca.der().get(..100).unwrap().to_vec();
    svids
        .federated_bundles
        .insert("spiffe://other.org".into(), broken);
    let agent = Agent::saying(ca, Answer::Set(svids));
    let identity = given(&mut agent.provider()).await;
    assert!(identity.bundles().domains[&domain("other.org")].is_empty());
    assert_eq!(identity.bundles().domains[&domain(DOMAIN)].len(), 1);
}

// SV-52: a message cannot widen the own domain by naming it among the federated ones.
#[tokio::test]
async fn sv_52_a_federated_bundle_of_the_own_domain_is_left_out() {
    let (ca, evil) = (TestCa::new(DOMAIN), TestCa::new(DOMAIN));
    let svids = Svids::of(&leaf(&ca, "/ah/agent/1"), &ca).federated(DOMAIN, &[&evil]);
    let agent = Agent::saying(ca.clone(), Answer::Set(svids));
    let identity = given(&mut agent.provider()).await;
    assert_eq!(
        identity.bundles().domains[&domain(DOMAIN)],
        [ca.der().clone()]
    );
}

// SV-50
#[tokio::test]
async fn sv_50_two_bundles_for_one_domain_are_refused() {
    let (ca, other) = (TestCa::new(DOMAIN), TestCa::new("other.org"));
    let mut svids = Svids::of(&leaf(&ca, "/ah/agent/1"), &ca).federated("other.org", &[&other]);
    svids
        .federated_bundles
        .insert("other.org".into(), ca.der().to_vec());
    let agent = Agent::saying(ca, Answer::Set(svids));
    let told = refused(&mut agent.provider()).await;
    assert!(
        told.report()
            .contains("other.org has two federated bundles")
    );
}

// SP-1: without a wish the first, else the one that was asked for, by id, by hint or by both.
#[tokio::test]
async fn sp_1_one_of_several_svids_is_picked() {
    let (ca, other) = (TestCa::new(DOMAIN), TestCa::new("other.org"));
    let theirs = other.leaf().spiffe("spiffe://other.org/x").issue();
    let svids = Svids::of(&leaf(&ca, "/a"), &ca)
        .hint("internal")
        .and(&leaf(&ca, "/b"), &ca)
        .hint("external")
        .and(&theirs, &other);
    let agent = Agent::saying(ca, Answer::Set(svids));
    let by_id = |path| Choice {
        id: Some(id(path)),
        hint: None,
    };
    let by_hint = |hint: &str| Choice {
        id: None,
        hint: Some(hint.to_owned()),
    };
    let both = Choice {
        hint: Some("external".to_owned()),
        ..by_id("/b")
    };
    for (choice, path) in [
        (Choice::default(), "/a"),
        (by_id("/b"), "/b"),
        (by_hint("internal"), "/a"),
        (by_hint("external"), "/b"),
        (both, "/b"),
    ] {
        let identity = given(&mut agent.choosing(choice)).await;
        assert_eq!(identity.leaf().uris, [id(path).to_string()]);
        // An identity of another domain vouches for that domain.
        assert_eq!(
            identity.bundles().domains[&domain("other.org")],
            [other.der().clone()]
        );
    }
    let contrary = Choice {
        hint: Some("internal".to_owned()),
        ..by_id("/b")
    };
    let told = refused(&mut agent.choosing(contrary)).await;
    assert_eq!(told.code, Code::NoIdentity);
    let report = told.report();
    assert!(
        report.starts_with("error: no identity issued\n"),
        "{report}"
    );
    assert!(
        report.contains("is spiffe://example.org/b and has the hint 'internal'"),
        "{report}"
    );
    assert!(
        report.contains("spiffe://example.org/a (hint 'internal')"),
        "{report}"
    );
}

// ER-10: an SVID that is asked for and not there yet is taken as soon as it is.
#[tokio::test]
async fn er_10_the_svid_asked_for_may_come_later() {
    let agent = Agent::new();
    let choice = Choice {
        id: Some(id("/ah/agent/2")),
        hint: None,
    };
    let mut provider = agent.choosing(choice);
    let told = refused(&mut provider).await;
    assert_eq!(
        refused(&mut provider).await,
        told,
        "asked again it says the same"
    );
    let wanted = leaf(&agent.ca, "/ah/agent/2");
    let svids = Svids::of(&leaf(&agent.ca, "/ah/agent/1"), &agent.ca).and(&wanted, &agent.ca);
    agent.api.say(Answer::Set(svids));
    provider.changed().await;
    assert_eq!(given(&mut provider).await.chain().to_vec(), wanted.chain());
    assert_eq!(agent.api.calls(), 1, "over the same stream");
}

// SV-77: at least one SVID, and of several with one hint the first.
#[tokio::test]
async fn sv_77_no_svid_is_no_identity_and_a_hint_is_one_svids() {
    let agent = Agent::saying(TestCa::new(DOMAIN), Answer::Set(Svids::default()));
    let told = refused(&mut agent.provider()).await;
    assert_eq!(told.code, Code::NoIdentity);
    assert!(told.report().contains("the answer holds no SVID"));

    let ca = &agent.ca;
    let svids = Svids::of(&leaf(ca, "/a"), ca)
        .hint("same")
        .and(&leaf(ca, "/b"), ca)
        .hint("same");
    agent.api.say(Answer::Set(svids));
    let (log, _guard) = Log::start();
    let choice = Choice {
        id: None,
        hint: Some("same".to_owned()),
    };
    let identity = given(&mut agent.choosing(choice)).await;
    assert_eq!(identity.leaf().uris, [id("/a").to_string()]);
    assert_eq!(
        log.lines_with("several SVIDs have the hint 'same'").len(),
        1
    );
}

// SV-78, Workload API §4.5: what is not as the standard says is told by field and never by content, and the last
// good identity is not replaced by it.
#[tokio::test]
async fn sv_78_an_svid_in_another_form_is_refused() {
    let ca = TestCa::new(DOMAIN);
    let intermediate = ca.intermediate().issue();
    let good = Svids::of(&leaf(&intermediate, "/ah/agent/1"), &ca);
    let turned = |change: &dyn Fn(&mut ah_testkit::workload_api::Svid)| {
        let mut svids = good.clone();
        change(&mut svids.svids[0]);
        svids
    };
    let key = PrivateKeyInfoRef::try_from(good.svids[0].x509_svid_key.as_slice()).unwrap();
    let sec1 = key.private_key.as_bytes();
    let mut rng = rand::rng();
    let encrypted = key.encrypt_with_rng(&mut rng, "a passphrase").unwrap();
    let cases = [
        (
            turned(&|svid| {
                let leaf = svid.x509_svid.len() - intermediate.der().len();
                svid.x509_svid.rotate_left(leaf);
            }),
            "x509_svid of the SVID spiffe://example.org/ah/agent/1: the leaf is not the first certificate",
        ),
        (
            turned(&|svid| svid.x509_svid_key = sec1.to_vec()),
            "not a private key in PKCS#8",
        ),
        (
            turned(&|svid| svid.x509_svid_key = encrypted.as_bytes().to_vec()),
            "the private key is encrypted",
        ),
        (
            turned(&|svid| svid.x509_svid_key.clear()),
            "has no x509_svid_key",
        ),
        (turned(&|svid| svid.x509_svid.clear()), "has no x509_svid"),
        (turned(&|svid| svid.spiffe_id.clear()), "has no spiffe_id"),
        (
            turned(&|svid| svid.spiffe_id = "example.org/x".into()),
            "the spiffe_id of the SVID example.org/x: ",
        ),
        (
            turned(&|svid| svid.spiffe_id = "spiffe://example.org/ah/serve".into()),
            "its certificate names 'spiffe://example.org/ah/agent/1'",
        ),
        (
            turned(&|svid| svid.x509_svid.truncate(200)),
            "not certificates in DER",
        ),
        (
            turned(&|svid| svid.bundle = b"-----BEGIN".to_vec()),
            "the bundle of the SVID",
        ),
    ];
    let agent = Agent::saying(ca, Answer::Set(good.clone()));
    let mut provider = agent.provider();
    let first = given(&mut provider).await;
    for (svids, words) in cases {
        agent.api.say(Answer::Set(svids));
        provider.changed().await;
        let report = refused(&mut provider).await.report();
        assert!(report.contains(words), "{words}: {report}");
        assert!(!report.contains("-----"), "{report}");
    }
    agent.api.say(Answer::Set(good));
    provider.changed().await;
    assert!(given(&mut provider).await.same_material(&first));
}

// SV-73: fields of a later standard are skipped.
#[tokio::test]
async fn sv_73_unknown_fields_are_skipped() {
    let ca = TestCa::new(DOMAIN);
    let mut svids = Svids::of(&leaf(&ca, "/ah/agent/1"), &ca);
    svids.unknown = "of a later standard".into();
    let agent = Agent::saying(ca, Answer::Set(svids));
    given(&mut agent.provider()).await;
}
