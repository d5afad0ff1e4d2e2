//! The state machine as the localauthority API sees it.

use super::kit::{jwt_request, place, request, signs_for_the_bundle, started};
use crate::api::Authority;
use crate::ca::{CaError, LocalAuthorities as _, Status};

fn refused<T: std::fmt::Debug>(answer: Result<T, CaError>) -> String {
    match answer {
        Err(CaError::Refused(why) | CaError::Bundle(why) | CaError::Status(why, _)) => {
            why.to_owned()
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_x509_authority_from_prepared_to_revoked() {
    let (_, store, clock) = place();
    let manager = started(&store, &clock).await;
    let mut tainted = manager.tainted();
    let first = manager.x509_states().await.unwrap().active;
    assert_eq!(first.status, Status::Active);
    // Nothing prepared yet.
    assert_eq!(
        refused(manager.activate_x509("").await),
        "no authority ID provided"
    );
    assert_eq!(
        refused(manager.activate_x509("x").await),
        "unexpected authority ID"
    );

    let forgotten = manager.prepare_x509().await.unwrap();
    let prepared = manager.prepare_x509().await.unwrap();
    assert_eq!(prepared.status, Status::Prepared);
    assert_eq!(
        refused(manager.activate_x509(&forgotten.id).await),
        "unexpected authority ID"
    );
    assert_eq!(
        refused(manager.taint_x509(&prepared.id).await),
        "only Old local authorities can be tainted"
    );
    assert_eq!(
        refused(manager.revoke_x509(&prepared.id).await),
        "only Old local authority can be revoked"
    );
    let active = manager.activate_x509(&prepared.id).await.unwrap();
    assert_eq!(
        (active.id.as_str(), active.status),
        (prepared.id.as_str(), Status::Active)
    );
    assert_eq!(store.active().0, std::slice::from_ref(&prepared.id));
    signs_for_the_bundle(manager.authorities(), &store);

    assert_eq!(
        refused(manager.activate_x509(&first.id).await),
        "only Prepared authorities can be activated"
    );
    assert_eq!(
        refused(manager.taint_x509(&active.id).await),
        "unable to taint current local authority"
    );
    assert_eq!(
        refused(manager.taint_x509("").await),
        "no authority ID provided"
    );
    assert_eq!(
        refused(manager.revoke_x509(&first.id).await),
        "it is not possible to revoke an untainted root CA"
    );
    assert!(!tainted.has_changed().unwrap());
    let old = manager.taint_x509(&first.id).await.unwrap();
    assert_eq!(
        (old.id.as_str(), old.status),
        (first.id.as_str(), Status::Old)
    );
    assert!(tainted.has_changed().unwrap());
    tainted.mark_unchanged();
    assert_eq!(store.own().x509.iter().filter(|ca| ca.tainted).count(), 1);
    assert_eq!(
        refused(manager.taint_x509(&first.id).await),
        "root CA is already tainted"
    );
    assert!(!tainted.has_changed().unwrap());

    assert_eq!(
        refused(manager.revoke_x509("").await),
        "no authority ID provided"
    );
    assert_eq!(
        refused(manager.revoke_x509(&active.id).await),
        "unable to use current authority"
    );
    let before = store.own();
    manager.revoke_x509(&first.id).await.unwrap();
    let after = store.own();
    assert_eq!(after.x509.len() + 1, before.x509.len());
    assert!(after.sequence > before.sequence);
    assert!(after.x509.iter().all(|ca| !ca.tainted));
    assert_eq!(
        refused(manager.revoke_x509(&first.id).await),
        "no root CA found with provided subject key ID"
    );
    signs_for_the_bundle(manager.authorities(), &store);
}

#[tokio::test]
async fn a_jwt_authority_from_prepared_to_revoked() {
    let (_, store, clock) = place();
    let manager = started(&store, &clock).await;
    let first = manager.jwt_states().await.unwrap().active.id;
    let prepared = manager.prepare_jwt().await.unwrap().id;
    assert_eq!(
        refused(manager.revoke_jwt(&prepared).await),
        "unable to use a prepared key"
    );
    manager.activate_jwt(&prepared).await.unwrap();
    assert_eq!(store.active().1, std::slice::from_ref(&prepared));
    signs_for_the_bundle(manager.authorities(), &store);
    assert_eq!(
        refused(manager.revoke_jwt(&prepared).await),
        "unable to use current authority"
    );
    assert_eq!(
        refused(manager.revoke_jwt(&first).await),
        "it is not possible to revoke an untainted key"
    );
    manager.taint_jwt(&first).await.unwrap();
    assert!(
        store
            .own()
            .jwt
            .iter()
            .any(|key| key.tainted && key.id == first)
    );
    assert_eq!(
        refused(manager.taint_jwt(&first).await),
        "key is already tainted"
    );
    manager.revoke_jwt(&first).await.unwrap();
    assert_eq!(store.own().jwt.len(), 1);
    assert_eq!(
        refused(manager.revoke_jwt(&first).await),
        "no JWT Key found with provided key ID"
    );
    signs_for_the_bundle(manager.authorities(), &store);
}

// SV-53: a downstream server's key is in the bundle when this answers.
#[tokio::test]
async fn a_downstream_servers_jwt_key_is_published() {
    let (_, store, clock) = place();
    let manager = started(&store, &clock).await;
    let mut key = store.own().jwt[0].clone();
    key.id = "downstream".into();
    let api: &dyn Authority = &manager;
    assert!(!api.jwt_disabled());
    let keys = api.publish_jwt_key(key.clone()).await.unwrap();
    assert_eq!(keys, store.own().jwt);
    assert!(keys.contains(&key));
    // Once.
    assert_eq!(api.publish_jwt_key(key.clone()).await.unwrap().len(), 2);
    let below = api.sign_downstream_ca(&key.spki, None).unwrap();
    let bundle = store.own();
    let issuer = crate::ca::authority::Certificate::read(bundle.x509[0].der.clone()).unwrap();
    let below = crate::ca::authority::Certificate::read(below[0].clone()).unwrap();
    assert_eq!(below.issuer_key_id, issuer.key_id);
    assert!(api.sign_x509_svid(request("/w")).is_ok());
    assert!(api.sign_agent_svid(request("/spire/agent/a")).is_ok());
    assert!(api.sign_jwt_svid(jwt_request()).is_ok());
}
