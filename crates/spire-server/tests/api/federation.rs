//! Federation: the endpoint that serves a bundle, what fetches others', and the API of the relationships (inventory
//! sections 8 and 11).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ah_identity_provider::{PrivateKey, SystemClock};
use ah_spire_plugin::server::{BundleEndpoint, BundleEndpointProfile};
use ah_spire_telemetry::{Http, Metrics, answer};
use ah_spire_wire::bundle::{Contents, bundle_to_wire, to_document};
use ah_spire_wire::model::{Bundle, X509Authority};
use ah_spire_wire::server::bundle::{BatchSetFederatedBundleRequest, GetBundleRequest};
use ah_spire_wire::server::trustdomain::trust_domain_client::TrustDomainClient;
use ah_spire_wire::server::trustdomain::{
    BatchCreateFederationRelationshipRequest, BatchDeleteFederationRelationshipRequest,
    BatchUpdateFederationRelationshipRequest, GetFederationRelationshipRequest,
    ListFederationRelationshipsRequest, RefreshBundleRequest,
};
use ah_spire_wire::types::federation_relationship::BundleEndpointProfile as WireProfile;
use ah_spire_wire::{Channel, types};
use http::StatusCode;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use spiffe::{SpiffeId, TrustDomain};
use spire_server::endpoints::{ServerSvid, bind};
use spire_server::federation::{Endpoint, Manager};
use spire_server::store::{Bundles, Federation, Profile, Relationship};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::rig::{Rig, TestAuthority, id, refused};

const OTHER: &str = "other.org";

fn other() -> TrustDomain {
    TrustDomain::new(OTHER).unwrap()
}

fn server_of(domain: &str) -> SpiffeId {
    SpiffeId::new(format!("spiffe://{domain}/spire/server")).unwrap()
}

fn bundle(domain: &str, cas: &[&TestAuthority], sequence: u64) -> Bundle {
    let authority = |ca: &&TestAuthority| X509Authority {
        der: ca.root(),
        tainted: false,
    };
    Bundle {
        trust_domain: TrustDomain::new(domain).unwrap(),
        x509: cas.iter().map(authority).collect(),
        jwt: Vec::new(),
        refresh_hint: 300,
        sequence,
        wit: Vec::new(),
    }
}

/// A bundle endpoint that says whatever a test wants it to.
struct Foreign {
    address: SocketAddr,
    says: Arc<Mutex<(StatusCode, String)>>,
    stop: CancellationToken,
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Foreign {
    fn of(ca: &TestAuthority, named: &SpiffeId) -> Self {
        let own = ca.issue(named);
        let chain = own.chain.into_iter().map(CertificateDer::from).collect();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, PrivatePkcs8KeyDer::from(own.key).into())
            .unwrap();
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let says = Arc::new(Mutex::new((StatusCode::NOT_FOUND, String::new())));
        let (said, stop) = (says.clone(), CancellationToken::new());
        let http = Http {
            listener,
            tls: Some(Arc::new(tls)),
            most_connections: 64,
        };
        tokio::spawn(http.serve(
            move |_: &_| {
                let (status, text) = said.lock().unwrap().clone();
                let mut response = answer(status, "application/json", text.clone());
                if status.is_redirection() {
                    let headers = response.headers_mut();
                    headers.insert(http::header::LOCATION, text.parse().unwrap());
                }
                response
            },
            stop.clone(),
        ));
        Self {
            address,
            says,
            stop,
        }
    }

    fn url(&self) -> String {
        format!("https://{}/bundle", self.address)
    }

    fn says(&self, status: StatusCode, text: impl Into<String>) {
        *self.says.lock().unwrap() = (status, text.into());
    }

    fn serves(&self, bundle: &Bundle) {
        let document = to_document(bundle, Contents::Spiffe).unwrap();
        self.says(StatusCode::OK, document);
    }
}

async fn client(rig: &Rig) -> TrustDomainClient<Channel> {
    TrustDomainClient::with_origin(rig.local().await, Channel::origin())
}

fn wire(domain: &str, url: &str, endpoint: Option<&SpiffeId>) -> types::FederationRelationship {
    let profile = match endpoint {
        None => WireProfile::HttpsWeb(types::HttpsWebProfile {}),
        Some(id) => WireProfile::HttpsSpiffe(types::HttpsspiffeProfile {
            endpoint_spiffe_id: id.to_string(),
        }),
    };
    types::FederationRelationship {
        trust_domain: domain.into(),
        bundle_endpoint_url: url.into(),
        bundle_endpoint_profile: Some(profile),
        trust_domain_bundle: None,
    }
}

/// The status of a creation.
async fn create(rig: &Rig, relationship: types::FederationRelationship) -> types::Status {
    let request = BatchCreateFederationRelationshipRequest {
        federation_relationships: vec![relationship],
        output_mask: None,
    };
    let answer = client(rig)
        .await
        .batch_create_federation_relationship(request)
        .await;
    let result = answer.unwrap().into_inner().results.remove(0);
    assert_eq!(
        result.status.as_ref().unwrap().code == 0,
        result.federation_relationship.is_some()
    );
    result.status.unwrap()
}

async fn refresh(rig: &Rig) -> Result<(), tonic::Status> {
    let request = RefreshBundleRequest {
        trust_domain: OTHER.into(),
    };
    let answer = client(rig).await.refresh_bundle(request).await;
    answer.map(|_| ())
}

async fn stored(rig: &Rig) -> Option<Bundle> {
    rig.store.bundle(&other()).await.unwrap()
}

/// Waits until the stored bundle is one that `wanted` takes.
async fn until(rig: &Rig, wanted: impl Fn(Option<&Bundle>) -> bool) {
    tokio::time::timeout(Duration::from_secs(60), async {
        while !wanted(stored(rig).await.as_ref()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
}

/// A rig that federates with `foreign`, by the bundle of `ca`.
async fn federated(ca: &TestAuthority, foreign: &Foreign) -> Rig {
    let rig = Rig::start().await;
    let first = bundle(OTHER, &[ca], 1);
    let relationship = types::FederationRelationship {
        trust_domain_bundle: Some(bundle_to_wire(&first)),
        ..wire(OTHER, &foreign.url(), Some(&server_of(OTHER)))
    };
    assert_eq!(create(&rig, relationship).await.code, 0);
    rig
}

// SV-54, SV-56; inventory section 11: profile "https_spiffe".
#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_is_served_and_fetched_with_the_servers_svid() {
    let (ca, next) = (TestAuthority::new(OTHER), TestAuthority::new(OTHER));
    let own = ca.issue(&server_of(OTHER));
    let (_svid, svids) = watch::channel(Some(Arc::new(ServerSvid {
        chain: own.chain,
        key: PrivateKey::pkcs8(own.key),
    })));
    let first = bundle(OTHER, &[&ca], 7);
    let (told, bundles) = watch::channel(Some(Arc::new(first.clone())));
    let config = BundleEndpoint {
        address: Some("127.0.0.1".parse().unwrap()),
        port: 0,
        refresh_hint: Duration::from_secs(90),
        profile: BundleEndpointProfile::HttpsSpiffe,
    };
    let endpoint = Endpoint::bind(&config, bundles, svids, false)
        .await
        .unwrap();
    let url = format!("https://{}", endpoint.address().unwrap());
    let stop = CancellationToken::new();
    let served = tokio::spawn(endpoint.run(stop.clone()));

    let rig = Rig::start().await;
    let relationship = wire(OTHER, &url, Some(&server_of(OTHER)));
    assert_eq!(create(&rig, relationship).await.code, 0);
    let why = refresh(&rig).await.unwrap_err();
    assert_eq!(why.code(), Code::Internal);
    assert!(
        why.message().starts_with("failed to refresh bundle: can't perform SPIFFE Authentication: local copy of bundle not found"),
        "{why}"
    );
    // Whoever sets the first bundle does not wait for the next poll.
    let by_hand = Bundle {
        refresh_hint: 0,
        ..bundle(OTHER, &[&ca], 0)
    };
    let request = BatchSetFederatedBundleRequest {
        bundle: vec![bundle_to_wire(&by_hand)],
        output_mask: None,
    };
    let mut bundles = rig.bundles().await;
    bundles.batch_set_federated_bundle(request).await.unwrap();
    until(&rig, |stored| stored.is_some_and(|it| it.sequence == 7)).await;
    let kept = stored(&rig).await.unwrap();
    assert_eq!((kept.refresh_hint, &kept.x509), (90, &first.x509));

    // A new key arrives before it is used (SV-53), and is found at the next look.
    told.send_replace(Some(Arc::new(bundle(OTHER, &[&ca, &next], 8))));
    until_refreshed(&rig, 8).await;
    assert_eq!(stored(&rig).await.unwrap().x509.len(), 2);
    stop.cancel();
    served.await.unwrap();
    assert!(refresh(&rig).await.is_err());
    assert_eq!(stored(&rig).await.unwrap().sequence, 8);
}

/// The endpoint makes its document when it hears of the bundle.
async fn until_refreshed(rig: &Rig, sequence: u64) {
    tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            refresh(rig).await.unwrap();
            if stored(rig).await.unwrap().sequence == sequence {
                return;
            }
        }
    })
    .await
    .unwrap();
}

// SV-45 to SV-47, SV-52: what is no bundle of that trust domain keeps the last good one, and is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_document_keeps_the_last_good_bundle() {
    let ca = TestAuthority::new(OTHER);
    let foreign = Foreign::of(&ca, &server_of(OTHER));
    foreign.serves(&bundle(OTHER, &[&ca], 5));
    let rig = federated(&ca, &foreign).await;
    refresh(&rig).await.unwrap();
    let good = stored(&rig).await.unwrap();
    assert_eq!(good.sequence, 5);

    let elsewhere = TestAuthority::new("third.org");
    let of_third = to_document(&bundle(OTHER, &[&elsewhere], 6), Contents::Spiffe).unwrap();
    let huge = format!("{{\"keys\":[],\"x\":\"{}\"}}", "a".repeat(5 * 1024 * 1024));
    for (text, why) in [
        ("", "failed to decode bundle"),
        ("<html>", "failed to decode bundle"),
        ("{}", "missing field `keys`"),
        (
            r#"{"keys":[{"use":"x509-svid","kty":"EC","crv":"P-256","x":"AA","y":"AA","x5c":["AAAA"]}]}"#,
            "x509-svid entry 0",
        ),
        (
            r#"{"keys":[],"spiffe_refresh_hint":-1}"#,
            "spiffe_refresh_hint is negative",
        ),
        (
            of_third.as_str(),
            "of spiffe://third.org, not of the trust domain other.org",
        ),
        (huge.as_str(), "length limit exceeded"),
    ] {
        foreign.says(StatusCode::OK, text);
        let refused = refresh(&rig).await.unwrap_err();
        assert_eq!(refused.code(), Code::Internal);
        assert!(refused.message().contains(why), "{why}: {refused}");
        assert_eq!(stored(&rig).await.as_ref(), Some(&good));
    }
    foreign.says(StatusCode::BAD_GATEWAY, "not now");
    let refused = refresh(&rig).await.unwrap_err();
    assert!(
        refused
            .message()
            .contains("unexpected status 502 fetching bundle: \"not now\""),
        "{refused}"
    );

    // As upstream: a lower number is no proof of an old copy, since a new database counts from the beginning.
    foreign.serves(&bundle(OTHER, &[&ca], 2));
    refresh(&rig).await.unwrap();
    assert_eq!(stored(&rig).await.unwrap().sequence, 2);
    // SV-47: no keys at all is an answer.
    foreign.serves(&bundle(OTHER, &[], 3));
    refresh(&rig).await.unwrap();
    assert_eq!(stored(&rig).await.unwrap().x509, []);
    // And nobody proves an endpoint of that domain any more.
    let refused = refresh(&rig).await.unwrap_err();
    assert!(
        refused.message().contains("failed to verify the endpoint"),
        "{refused}"
    );
}

// SV-56: the right ID, of the stored bundle, and nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_proves_its_spiffe_id() {
    let ca = TestAuthority::new(OTHER);
    let workload = SpiffeId::new("spiffe://other.org/workload").unwrap();
    let third = TestAuthority::new("third.org");
    for (foreign, why) in [
        (Foreign::of(&ca, &workload), "spiffe://other.org/workload"),
        (
            Foreign::of(&TestAuthority::new(OTHER), &server_of(OTHER)),
            "failed to verify the endpoint",
        ),
        (
            Foreign::of(&third, &server_of("third.org")),
            "spiffe://third.org/spire/server",
        ),
    ] {
        foreign.serves(&bundle(OTHER, &[&ca, &third], 2));
        let rig = federated(&ca, &foreign).await;
        let refused = refresh(&rig).await.unwrap_err();
        assert!(refused.message().contains(why), "{why}: {refused}");
        assert_eq!(stored(&rig).await.unwrap().sequence, 1);
    }
}

// SV-55, SV-56: whoever a redirect leads to has to prove the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_judged_like_the_endpoint() {
    let ca = TestAuthority::new(OTHER);
    let foreign = Foreign::of(&ca, &server_of(OTHER));
    let rig = federated(&ca, &foreign).await;
    let workload = SpiffeId::new("spiffe://other.org/workload").unwrap();
    let (behind, wrong) = (
        Foreign::of(&ca, &server_of(OTHER)),
        Foreign::of(&ca, &workload),
    );
    for it in [&behind, &wrong] {
        it.serves(&bundle(OTHER, &[&ca], 9));
    }
    let plain = format!("http://{}/bundle", behind.address);
    let named = format!("https://user@{}/bundle", behind.address);
    for (to, why) in [
        (wrong.url(), "spiffe://other.org/workload"),
        (plain, "must use the https scheme"),
        (named, "must not contain user info"),
        (foreign.url(), "redirects more than 10 times"),
    ] {
        foreign.says(StatusCode::FOUND, to);
        let refused = refresh(&rig).await.unwrap_err();
        assert!(refused.message().contains(why), "{why}: {refused}");
    }
    foreign.says(StatusCode::TEMPORARY_REDIRECT, behind.url());
    refresh(&rig).await.unwrap();
    assert_eq!(stored(&rig).await.unwrap().sequence, 9);
}

// An update and a deletion are heeded at once, not at the next poll.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_relationship_is_heeded_at_once() {
    let ca = TestAuthority::new(OTHER);
    let (old, new) = (
        Foreign::of(&ca, &server_of(OTHER)),
        Foreign::of(&ca, &server_of(OTHER)),
    );
    old.serves(&bundle(OTHER, &[&ca], 2));
    new.serves(&bundle(OTHER, &[&ca], 3));
    let rig = federated(&ca, &old).await;
    until(&rig, |stored| stored.is_some_and(|it| it.sequence == 2)).await;
    let moved = wire(OTHER, &new.url(), Some(&server_of(OTHER)));
    let request = BatchUpdateFederationRelationshipRequest {
        federation_relationships: vec![moved],
        ..Default::default()
    };
    let mut client = client(&rig).await;
    let updated = client.batch_update_federation_relationship(request).await;
    let results = updated.unwrap().into_inner().results;
    assert_eq!(results[0].status.as_ref().unwrap().code, 0, "{results:?}");
    until(&rig, |stored| stored.is_some_and(|it| it.sequence == 3)).await;

    let request = BatchDeleteFederationRelationshipRequest {
        trust_domains: vec!["spiffe://other.org".into(), OTHER.into(), String::new()],
    };
    let deleted = client.batch_delete_federation_relationship(request).await;
    let results = deleted.unwrap().into_inner().results;
    let told: Vec<_> = results
        .iter()
        .map(|it| {
            let status = it.status.as_ref().unwrap();
            (it.trust_domain.as_str(), status.message.as_str())
        })
        .collect();
    let expected = [
        (OTHER, "OK"),
        (OTHER, "federation relationship not found"),
        ("", "missing trust domain"),
    ];
    assert_eq!(told, expected);
    let gone = refresh(&rig).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    assert_eq!(
        gone.message(),
        "no relationship with trust domain \"other.org\""
    );
    // As upstream: the bundle stays until somebody deletes it.
    assert!(stored(&rig).await.is_some());
}

// Inventory section 11: what is configured goes before what is stored, and neither speaks for the own trust domain.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_configured_goes_first() {
    let ca = TestAuthority::new(OTHER);
    let foreign = Foreign::of(&ca, &server_of(OTHER));
    foreign.serves(&bundle(OTHER, &[&ca], 4));
    let rig = Rig::start().await;
    let of = |domain: &TrustDomain, url: &str| Relationship {
        trust_domain: domain.clone(),
        endpoint_url: url.to_owned(),
        profile: Profile::HttpsSpiffe(server_of(domain.as_str())),
    };
    let dead = of(&other(), "https://127.0.0.1:1/");
    let first = bundle(OTHER, &[&ca], 1);
    let stored_one = rig.store.create_relationship(&dead, Some(&first));
    stored_one.await.unwrap();
    let ours = id("").trust_domain().clone();
    let configured = [of(&other(), &foreign.url()), of(&ours, &foreign.url())];
    let configured = configured.map(|it| (it.trust_domain.clone(), it));
    let manager = Manager::new(
        ours.clone(),
        BTreeMap::from(configured),
        rig.store.clone(),
        Arc::new(SystemClock),
        Metrics::off(),
        false,
    );
    assert_eq!(manager.refresh(&other()).await, Ok(true));
    assert_eq!(stored(&rig).await.unwrap().sequence, 4);
    assert_eq!(manager.refresh(&ours).await, Ok(false));
}

// Inventory section 8: TrustDomain, for the local socket and administrators.
#[tokio::test(flavor = "multi_thread")]
async fn relationships_are_kept_over_the_api() {
    let admin = id("/admin");
    let rig = Rig::with(std::slice::from_ref(&admin)).await;
    let ca = TestAuthority::new(OTHER);
    for (relationship, code, why) in [
        (
            wire("Bad", "https://a", None),
            Code::InvalidArgument,
            "failed to convert federation relationship: failed to parse trust domain: trust domain characters are limited",
        ),
        (
            wire(OTHER, "http://a", None),
            Code::InvalidArgument,
            "failed to convert federation relationship: bundle endpoint URL must use the https scheme",
        ),
        (
            wire(OTHER, "https://u@a", None),
            Code::InvalidArgument,
            "failed to convert federation relationship: bundle endpoint URL must not contain user info",
        ),
        (
            types::FederationRelationship {
                bundle_endpoint_profile: None,
                ..wire(OTHER, "https://a", None)
            },
            Code::InvalidArgument,
            "failed to convert federation relationship: unsupported bundle endpoint profile type",
        ),
        (
            types::FederationRelationship {
                trust_domain_bundle: Some(bundle_to_wire(&bundle("third.org", &[&ca], 1))),
                ..wire(OTHER, "https://a", None)
            },
            Code::InvalidArgument,
            "failed to convert federation relationship: trust domain bundle (\"third.org\") must match the trust domain of the federation relationship (\"other.org\")",
        ),
        (
            wire("example.org", "https://a", None),
            Code::InvalidArgument,
            "unable to create federation relationship for server trust domain",
        ),
    ] {
        let status = create(&rig, relationship).await;
        assert_eq!(status.code, i32::from(code));
        assert!(status.message.starts_with(why), "{}", status.message);
    }
    // Closed ports, so that nothing is fetched.
    let one = types::FederationRelationship {
        trust_domain_bundle: Some(bundle_to_wire(&bundle(OTHER, &[&ca], 1))),
        ..wire(OTHER, "https://127.0.0.1:1", Some(&server_of(OTHER)))
    };
    let two = wire("third.org", "https://127.0.0.1:1/x", None);
    for relationship in [&one, &two] {
        assert_eq!(create(&rig, relationship.clone()).await.code, 0);
    }
    let again = create(&rig, two.clone()).await;
    assert_eq!(again.code, i32::from(Code::Internal));
    assert!(
        again
            .message
            .starts_with("failed to create federation relationship: "),
        "{}",
        again.message
    );

    let identity = rig.authority.issue(&admin);
    let channel = rig.network(Some(&identity)).await.unwrap();
    let mut admin = TrustDomainClient::with_origin(channel, Channel::origin());
    let page = |token: String| ListFederationRelationshipsRequest {
        output_mask: None,
        page_size: 1,
        page_token: token,
    };
    let first = admin.list_federation_relationships(page(String::new()));
    let first = first.await.unwrap().into_inner();
    assert_eq!(first.federation_relationships, std::slice::from_ref(&one));
    let second = admin.list_federation_relationships(page(first.next_page_token));
    let second = second.await.unwrap().into_inner();
    assert_eq!(second.federation_relationships, std::slice::from_ref(&two));
    let masked = ListFederationRelationshipsRequest {
        output_mask: Some(types::FederationRelationshipMask {
            bundle_endpoint_url: true,
            ..Default::default()
        }),
        ..Default::default()
    };
    let masked = admin.list_federation_relationships(masked).await;
    let masked = masked.unwrap().into_inner().federation_relationships;
    let only_url = types::FederationRelationship {
        bundle_endpoint_profile: None,
        trust_domain_bundle: None,
        ..one.clone()
    };
    assert_eq!(masked[0], only_url);

    // The mask decides what is taken over; all of it is judged.
    let request = BatchUpdateFederationRelationshipRequest {
        federation_relationships: vec![wire(OTHER, "https://127.0.0.1:1/moved", None)],
        input_mask: Some(types::FederationRelationshipMask {
            bundle_endpoint_url: true,
            ..Default::default()
        }),
        output_mask: None,
    };
    let updated = admin.batch_update_federation_relationship(request).await;
    updated.unwrap();
    let get = |name: &str| GetFederationRelationshipRequest {
        trust_domain: name.into(),
        output_mask: None,
    };
    let got = admin.get_federation_relationship(get(OTHER)).await;
    let moved = types::FederationRelationship {
        bundle_endpoint_url: "https://127.0.0.1:1/moved".into(),
        ..one
    };
    assert_eq!(got.unwrap().into_inner(), moved);
    let missing = refused(admin.get_federation_relationship(get("none.org")).await);
    assert_eq!(missing.code(), Code::NotFound);
    assert_eq!(missing.message(), "federation relationship does not exist");

    // An agent may not, and anybody may have the bundle.
    let (_, agent) = rig.attested().await;
    let channel = rig.network(Some(&agent)).await.unwrap();
    let mut agent = TrustDomainClient::with_origin(channel, Channel::origin());
    let denied = refused(agent.get_federation_relationship(get(OTHER)).await);
    assert_eq!(denied.code(), Code::PermissionDenied);
    let mut bundles = rig.bundles().await;
    assert!(
        bundles
            .get_bundle(GetBundleRequest::default())
            .await
            .is_ok()
    );
}
