//! `aws_kms` against a stand-in with real keys that verifies signatures (inventory section 6).

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use ah_identity_provider::Clock;
use ah_spire_wire::aws::Caller;
use ah_testkit::aws::kms::Kms;
use ah_testkit::aws::{REGION, refusal, variables};
use ah_testkit::web::Web;
use http::StatusCode;
use spiffe::TrustDomain;

use super::*;

const ROLE: &str = "arn:aws:sts::123456789012:assumed-role/spire-server/i-1";
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const PREFIX: &str = "alias/SPIRE_SERVER/example_org";

/// An account, whose clock is the servers' as well.
struct Account {
    web: Web,
    kms: Kms,
}

struct AccountClock(Kms);

impl std::fmt::Debug for AccountClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AccountClock")
    }
}

impl Clock for AccountClock {
    fn now(&self) -> SystemTime {
        self.0.now()
    }
}

impl Account {
    async fn new(arn: &str) -> Self {
        let web = Web::start().await;
        let kms = Kms::start(&web, arn);
        Self { web, kms }
    }

    fn settings(&self, server: &str) -> KmsSettings {
        let environment = variables(&self.web).into_iter().collect();
        KmsSettings {
            caller: Arc::new(Caller::new(environment, REGION, None)),
            trust_domain: TrustDomain::new("example.org").unwrap(),
            server: Identifier::Value(server.into()),
            policy: None,
            tags: BTreeMap::new(),
            by_tags: false,
        }
    }

    fn place(&self, settings: KmsSettings) -> AwsKms {
        AwsKms::new(settings, Arc::new(AccountClock(self.kms.clone()))).unwrap()
    }

    async fn open(&self, settings: KmsSettings) -> Result<RemoteKeys, KeyError> {
        RemoteKeys::open(self.place(settings)).await
    }

    async fn opened(&self, server: &str) -> RemoteKeys {
        self.open(self.settings(server)).await.unwrap()
    }

    /// Waits until so many keys are enabled.
    async fn has(&self, count: usize) {
        while self.kms.keys().len() != count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn operations(&self) -> Vec<String> {
        let asked = self.kms.asked().into_iter();
        asked.map(|(operation, _)| operation).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_in_kms_come_back_by_their_aliases_and_none_is_left_behind() {
    let account = Account::new(ROLE).await;
    let keys = account.opened("servers/one").await;
    conforms(&keys).await;
    // Of five keys three were replaced.
    account.has(2).await;
    let before = public(&keys.keys().await.unwrap());
    keys.generate_key("with.dot+plus", KeyType::EcP256)
        .await
        .unwrap();
    // Upstream's names.
    assert_eq!(
        account.kms.aliases(),
        ["a", "k", "with_2edot_2bplus"].map(|id| format!("{PREFIX}/servers/one/{id}"))
    );
    for key in account.kms.keys().values() {
        assert!(key.description.starts_with("SPIRE_SERVER_KEY/example_org/"));
        assert!(key.tags.is_empty());
        let policy: serde_json::Value = serde_json::from_str(&key.policy).unwrap();
        let allowed = &policy["Statement"][0]["Principal"]["AWS"];
        assert_eq!(allowed, "arn:aws:iam::123456789012:role/spire-server");
    }
    // Others', by name and by trust domain.
    for name in [
        format!("{PREFIX}/servers/one/more/k"),
        format!("{PREFIX}/servers/o/k"),
        "alias/SPIRE_SERVER/other_org/servers/one/k".to_owned(),
        "alias/mine".to_owned(),
    ] {
        let key = account.kms.make("ECC_NIST_P256", "", &[]);
        account.kms.set_alias(&name, Some(&key));
    }
    drop(keys);
    let again = account.opened("servers/one").await;
    let found = again.keys().await.unwrap();
    assert_eq!(found.len(), 3);
    assert_eq!(public(&found)[..2], before);
    assert!(again.key("with.dot+plus").await.unwrap().is_some());
    found[0].sign(b"message").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_and_tags_of_new_keys_are_those_of_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.json");
    std::fs::write(&policy, "{\"own\": 1}").unwrap();
    // A user has no role.
    let account = Account::new("arn:aws:iam::123456789012:user/u").await;
    let plain = account.opened("plain").await;
    plain.generate_key("k", KeyType::EcP256).await.unwrap();
    let made = account.kms.keys();
    assert_eq!(made.values().next().unwrap().policy, "");
    account.operations();

    let settings = KmsSettings {
        policy: Some(policy.clone()),
        tags: [("team".to_owned(), "blue".to_owned())].into(),
        by_tags: true,
        ..account.settings("own")
    };
    let own = account.open(settings.clone()).await.unwrap();
    own.generate_key("k", KeyType::EcP256).await.unwrap();
    let arn = account.kms.alias(&format!("{PREFIX}/own/k")).unwrap();
    let key = account.kms.keys()[&arn].clone();
    assert_eq!(key.policy, "{\"own\": 1}");
    let seconds = account.kms.now().duration_since(SystemTime::UNIX_EPOCH);
    let updated: u64 = key.tags["spire-last-update"].parse().unwrap();
    assert!(seconds.unwrap().as_secs() - updated < 600);
    for (name, value) in [
        ("spire-server-td", "example.org"),
        ("spire-server-id", "own"),
        ("spire-key-id", "k"),
        ("spire-active", "true"),
        ("team", "blue"),
    ] {
        assert_eq!(key.tags[name], value);
    }
    std::fs::remove_file(&policy).unwrap();
    let gone = AwsKms::new(settings, Arc::new(AccountClock(account.kms.clone())));
    let told = gone.map(|_| ()).unwrap_err().to_string();
    assert!(told.contains("failed to read key_policy_file"), "{told}");
}

// Keys that were made without tags get them; of a key without alias the tags are enough.
#[tokio::test(flavor = "multi_thread")]
async fn keys_in_kms_are_found_by_tags() {
    let account = Account::new(ROLE).await;
    let keys = account.opened("one").await;
    for id in ["a", "b", "c"] {
        keys.generate_key(id, KeyType::EcP256).await.unwrap();
    }
    let before = public(&keys.keys().await.unwrap());
    drop(keys);
    let by_tags = KmsSettings {
        by_tags: true,
        ..account.settings("one")
    };
    let keys = account.open(by_tags.clone()).await.unwrap();
    assert_eq!(public(&keys.keys().await.unwrap()), before);
    assert!(account.kms.keys().values().all(|key| key.tags.len() == 5));
    drop(keys);
    account.kms.set_alias(&format!("{PREFIX}/one/b"), None);
    let again = account.open(by_tags.clone()).await.unwrap();
    assert_eq!(public(&again.keys().await.unwrap()), before);
    drop(again);
    account.kms.refuse(Some("GetResources"));
    let told = account.open(by_tags).await.map(|_| ()).unwrap_err();
    assert!(
        told.to_string()
            .contains("needs the permission tag:GetResources"),
        "{told}"
    );
}

// Killed between a key and its alias; the alias of a key that somebody disabled.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_gets_no_alias_is_not_left() {
    let account = Account::new(ROLE).await;
    let keys = account.opened("one").await;
    let before = keys.generate_key("k", KeyType::EcP256).await.unwrap();
    account.kms.refuse(Some("UpdateAlias"));
    let told = keys.generate_key("k", KeyType::EcP256).await.unwrap_err();
    assert!(
        told.to_string().starts_with("failed to update alias: "),
        "{told}"
    );
    account.kms.refuse(None);
    assert_eq!(account.kms.keys().len(), 1);
    let held = keys.key("k").await.unwrap().unwrap();
    assert_eq!(held.spki(), before.spki());
    drop(keys);
    let arn = account.kms.alias(&format!("{PREFIX}/one/k")).unwrap();
    account.kms.enable(&arn, false);
    let told = account.open(account.settings("one")).await.map(|_| ());
    let told = told.unwrap_err().to_string();
    assert!(told.starts_with("found disabled SPIRE key: "), "{told}");
    account.kms.enable(&arn, true);
    account.opened("one").await;
}

// Aliases of this server are refreshed, keys of silent servers and keys without alias are deleted.
#[tokio::test(flavor = "multi_thread")]
async fn stale_keys_of_the_trust_domain_are_disposed_of() {
    let account = Account::new(ROLE).await;
    let place = account.place(account.settings("one"));
    assert_eq!(place.tended_every(), Some(6 * HOUR));
    let held = [place.create("k", KeyType::EcP256).await.unwrap()];
    let made = |description: &str| account.kms.make("ECC_NIST_P256", description, &[]);
    let ours = "SPIRE_SERVER_KEY/example_org/k";
    let aliased = |name: &str| {
        let arn = made(ours);
        account.kms.set_alias(name, Some(&arn));
        arn
    };
    let silent = aliased(&format!("{PREFIX}/one-more/k"));
    let other_domain = aliased("alias/SPIRE_SERVER/example_org_uk/one/k");
    let orphan = made(ours);
    let not_ours = made("SPIRE_SERVER_KEY/example_org_uk/k");
    let theirs = made("theirs");
    account.kms.asked();
    place.tend(&held).await.unwrap();
    assert_eq!(account.operations(), ["DescribeKey", "UpdateAlias"]);

    account.kms.advance(15 * DAY);
    let young = made(ours);
    let alive = aliased(&format!("{PREFIX}/two/k"));
    // Somebody took the alias of a key in use away.
    account.kms.set_alias(&format!("{PREFIX}/one/k"), None);
    place.tend(&held).await.unwrap();
    let left = account.kms.keys();
    for key in [
        &held[0].handle,
        &other_domain,
        &not_ours,
        &theirs,
        &young,
        &alive,
    ] {
        assert!(left.contains_key(key), "{key}");
    }
    assert_eq!(left.len(), 6, "{silent} and {orphan} are gone");
    assert_eq!(account.kms.alias(&format!("{PREFIX}/one-more/k")), None);
    let own = account.kms.alias(&format!("{PREFIX}/one/k"));
    assert_eq!(own.as_ref(), Some(&held[0].handle));
    // Not again before the next day.
    account.kms.asked();
    place.tend(&held).await.unwrap();
    assert_eq!(account.operations(), ["DescribeKey", "UpdateAlias"]);

    // Another server of the same name has replaced the key.
    account
        .kms
        .set_alias(&format!("{PREFIX}/one/k"), Some(&alive));
    place.tend(&held).await.unwrap();
    let own = account.kms.alias(&format!("{PREFIX}/one/k"));
    assert_eq!(own.as_ref(), Some(&alive));
    account.kms.refuse(Some("DescribeKey"));
    let told = place.tend(&held).await.unwrap_err().to_string();
    assert!(
        told.starts_with("failed to describe key of alias: "),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_keys_are_disposed_of_by_their_tags() {
    let account = Account::new(ROLE).await;
    let by_tags = KmsSettings {
        by_tags: true,
        ..account.settings("one")
    };
    let place = account.place(by_tags);
    let held = [place.create("k", KeyType::EcP256).await.unwrap()];
    let seconds = |time: SystemTime| {
        let since = time.duration_since(SystemTime::UNIX_EPOCH);
        since.unwrap().as_secs().to_string()
    };
    let made = |server: &str, updated: &str, domain: &str| {
        let tags = [
            ("spire-server-td", domain),
            ("spire-server-id", server),
            ("spire-key-id", "k"),
            ("spire-active", "true"),
            ("spire-last-update", updated),
        ];
        account.kms.make("ECC_NIST_P256", "", &tags)
    };
    let now = seconds(account.kms.now());
    let silent = made("two", &now, "example.org");
    let replaced = made("one", &now, "example.org");
    let malformed = made("two", "?", "example.org");
    let other_domain = made("two", &now, "other.org");
    place.tend(&held).await.unwrap();
    assert_eq!(account.kms.keys().len(), 5);
    account.kms.advance(15 * DAY);
    let alive = made("two", &seconds(account.kms.now()), "example.org");
    place.tend(&held).await.unwrap();
    let left = account.kms.keys();
    for key in [&held[0].handle, &malformed, &other_domain, &alive] {
        assert!(left.contains_key(key), "{key}");
    }
    assert_eq!(left.len(), 4, "{silent} and {replaced} are gone");
    let updated = &left[&held[0].handle].tags["spire-last-update"];
    assert!(updated.parse::<u64>().unwrap() >= now.parse::<u64>().unwrap() + 15 * 24 * 3600);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_signature_is_made_and_what_kms_refuses_is_told() {
    let account = Account::new(ROLE).await;
    let keys = account.opened("one").await;
    let key = keys.generate_key("k", KeyType::EcP384).await.unwrap();
    let slow = || {
        refusal(
            StatusCode::BAD_REQUEST,
            "ThrottlingException",
            "Rate exceeded",
        )
    };
    account.web.answers_once(slow());
    account.web.answers_once(slow());
    key.sign(b"message").unwrap();
    account.kms.refuse(Some("Sign"));
    let told = key.sign(b"message").unwrap_err().to_string();
    let url = account.web.url("/kms");
    assert_eq!(
        told,
        format!("failed to sign: {url}: 400 Bad Request: AccessDeniedException: not you")
    );
    account.kms.refuse(Some("CreateKey"));
    let told = keys.generate_key("k", KeyType::EcP256).await.unwrap_err();
    assert!(told.to_string().starts_with("failed to create key: "));
    account.kms.refuse(Some("ListAliases"));
    let told = account.open(account.settings("one")).await.map(|_| ());
    let told = told.unwrap_err().to_string();
    assert!(told.starts_with("failed to fetch aliases: "), "{told}");
}
