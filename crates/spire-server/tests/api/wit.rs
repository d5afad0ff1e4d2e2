//! WIT-SVIDs over the APIs (inventory section 8), where the feature flag `wit-svid` is set.

use ah_spire_wire::Channel;
use ah_spire_wire::model::Entry;
use ah_spire_wire::server::svid::svid_client::SvidClient;
use ah_spire_wire::server::svid::{BatchNewWitsvidRequest, MintWitsvidRequest, NewWitsvidParams};
use spire_server::keys::{KeyType, LocalKey, SigningKey as _};
use tonic::Code;

use crate::rig::{Rig, entry, refused, wire};

fn public_key(kind: KeyType) -> Vec<u8> {
    LocalKey::generate("k", kind).unwrap().spki().to_vec()
}

#[tokio::test]
async fn an_operator_mints_with_the_flag_alone() {
    let rig = Rig::start().await;
    let mut svids = rig.svids().await;
    let wanted = MintWitsvidRequest {
        id: wire("/w"),
        public_key: public_key(KeyType::EcP256),
        ttl: 60,
        signing_algorithm: "ES256".into(),
    };
    let error = refused(svids.mint_witsvid(wanted.clone()).await);
    assert_eq!(error.code(), Code::Unimplemented);
    assert_eq!(error.message(), "WIT functionality is disabled");
    rig.authority.allow_wit();
    let svid = svids.mint_witsvid(wanted.clone()).await.unwrap();
    let svid = svid.into_inner().svid.unwrap();
    assert_eq!((svid.id, svid.hint.as_str()), (wire("/w"), ""));
    assert_eq!(svid.expires_at - svid.issued_at, 60);
    assert!(svid.token.starts_with("spiffe://example.org/w with "));
    for (wrong, text) in [
        (
            MintWitsvidRequest {
                id: None,
                ..wanted.clone()
            },
            "invalid SPIFFE ID: ",
        ),
        (
            MintWitsvidRequest {
                public_key: vec![1],
                ..wanted.clone()
            },
            "invalid public key: ",
        ),
        (
            MintWitsvidRequest {
                signing_algorithm: "RS256".into(),
                ..wanted
            },
            "invalid signing algorithm or key type: unsupported signing algorithm for ec-p256 key: RS256",
        ),
    ] {
        let error = refused(svids.mint_witsvid(wrong).await);
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().starts_with(text), "{error}");
    }
}

#[tokio::test]
async fn an_agent_gets_wit_svids_for_its_entries_alone() {
    let rig = Rig::start().await;
    let (agent, identity) = rig.attested().await;
    rig.cache.put(Entry {
        id: "mine".into(),
        x509_svid_ttl: 70,
        jwt_svid_ttl: 80,
        ..entry("/w", &agent)
    });
    let channel = rig.network(Some(&identity)).await.unwrap();
    let mut svids = SvidClient::with_origin(channel, Channel::origin());
    let params = |entry_id: &str, public_key: Vec<u8>, algorithm: &str| NewWitsvidParams {
        entry_id: entry_id.into(),
        public_key,
        signing_algorithm: algorithm.into(),
    };
    let key = public_key(KeyType::EcP384);
    let wanted = BatchNewWitsvidRequest {
        params: vec![
            params("mine", key.clone(), "ES384"),
            params("other", key.clone(), "ES384"),
            params("", key.clone(), "ES384"),
            params("mine", vec![], "ES384"),
            params("mine", vec![1, 2, 3], "ES384"),
            params("mine", key, "ES256"),
        ],
    };
    let error = refused(svids.batch_new_witsvid(wanted.clone()).await);
    assert_eq!(error.code(), Code::Unimplemented);
    rig.authority.allow_wit();
    let answer = svids.batch_new_witsvid(wanted).await.unwrap();
    let results = answer.into_inner().results;
    let told = results.iter().map(|result| {
        let status = result.status.clone().unwrap();
        (Code::from(status.code), status.message)
    });
    let told: Vec<_> = told.collect();
    let svid = results[0].svid.clone().unwrap();
    // An entry has no time for WIT-SVIDs: that for X509-SVIDs counts, as upstream.
    assert_eq!(
        (svid.id, svid.expires_at - svid.issued_at),
        (wire("/w"), 70)
    );
    assert!(results[1..].iter().all(|result| result.svid.is_none()));
    for ((code, text), (wanted, start)) in told.iter().zip([
        (Code::Ok, "OK"),
        (Code::NotFound, "entry not found or not authorized"),
        (Code::InvalidArgument, "missing entry ID"),
        (Code::InvalidArgument, "missing public key"),
        (Code::InvalidArgument, "malformed public key: "),
        (
            Code::InvalidArgument,
            "invalid signing algorithm or key type: ",
        ),
    ]) {
        assert_eq!(*code, wanted, "{text}");
        assert!(text.starts_with(start), "{text}");
    }
    let error = refused(
        svids
            .batch_new_witsvid(BatchNewWitsvidRequest::default())
            .await,
    );
    assert_eq!(error.message(), "missing parameters");
    let request = BatchNewWitsvidRequest {
        params: vec![params("mine", vec![], ""); 501],
    };
    let error = refused(svids.batch_new_witsvid(request).await);
    assert_eq!(error.code(), Code::ResourceExhausted);
    let error = refused(svids.mint_witsvid(MintWitsvidRequest::default()).await);
    assert_eq!(error.code(), Code::PermissionDenied);
}
