//! `LocalAuthority` (inventory section 8), the commands `localauthority` and `upstreamauthority` (section 6), and what is
//! asked before an authority is changed.

use std::sync::Arc;

use ah_identity_provider::SystemClock;
use ah_spire_wire::Channel;
use ah_spire_wire::changes::ReportRequest;
use ah_spire_wire::changes::changes_client::ChangesClient;
use ah_spire_wire::rotation::rotation_client::RotationClient;
use ah_spire_wire::rotation::{GetAcknowledgementsRequest, GetAcknowledgementsResponse};
use ah_spire_wire::server::localauthority::local_authority_client::LocalAuthorityClient;
use ah_spire_wire::server::localauthority::*;
use spiffe::TrustDomain;
use spire_server::ca::{DiskAuthority, Files};
use spire_server::store::{Agents, Bundles};
use tonic::{Code, Status};

use crate::commands::{fails, json, ok};
use crate::rig::{DOMAIN, Identity, Rig, id, refused};

async fn local(rig: &Rig) -> LocalAuthorityClient<Channel> {
    LocalAuthorityClient::with_origin(rig.local().await, Channel::origin())
}

fn told(status: &Status) -> (Code, &str) {
    (status.code(), status.message())
}

fn activate(authority_id: &str) -> ActivateX509AuthorityRequest {
    ActivateX509AuthorityRequest {
        authority_id: authority_id.into(),
    }
}

fn taint(authority_id: &str) -> TaintX509AuthorityRequest {
    TaintX509AuthorityRequest {
        authority_id: authority_id.into(),
    }
}

fn revoke(authority_id: &str) -> RevokeX509AuthorityRequest {
    RevokeX509AuthorityRequest {
        authority_id: authority_id.into(),
    }
}

async fn x509(client: &mut LocalAuthorityClient<Channel>) -> GetX509AuthorityStateResponse {
    let states = client.get_x509_authority_state(GetX509AuthorityStateRequest {});
    states.await.unwrap().into_inner()
}

// LocalAuthority `GetX509AuthorityState`, `PrepareX509Authority`, `ActivateX509Authority`, `TaintX509Authority`,
// `RevokeX509Authority`: upstream's codes and texts.
#[tokio::test]
async fn an_x509_authority_goes_its_way_over_the_api() {
    let rig = Rig::with_authorities(None).await;
    let mut client = local(&rig).await;
    let first = x509(&mut client).await;
    let old = first.active.clone().unwrap();
    assert_eq!((first.prepared, first.old), (None, None));
    assert_eq!(old.upstream_authority_subject_key_id, "");

    let error = refused(client.activate_x509_authority(activate("")).await);
    assert_eq!(
        told(&error),
        (Code::InvalidArgument, "no authority ID provided")
    );
    let error = refused(client.activate_x509_authority(activate("x")).await);
    assert_eq!(
        told(&error),
        (Code::InvalidArgument, "unexpected authority ID")
    );
    let prepared = client.prepare_x509_authority(PrepareX509AuthorityRequest {});
    let prepared = prepared.await.unwrap().into_inner().prepared_authority;
    let new = prepared.clone().unwrap();
    assert_eq!(x509(&mut client).await.prepared, prepared);
    let error = refused(client.taint_x509_authority(taint(&new.authority_id)).await);
    assert_eq!(
        told(&error),
        (
            Code::InvalidArgument,
            "only Old local authorities can be tainted: unsupported local authority status: PREPARED"
        )
    );
    let activated = client.activate_x509_authority(activate(&new.authority_id));
    let activated = activated.await.unwrap().into_inner().activated_authority;
    assert_eq!(activated, prepared);
    let error = client.activate_x509_authority(activate(&old.authority_id));
    assert_eq!(
        told(&refused(error.await)),
        (
            Code::Internal,
            "only Prepared authorities can be activated: unsupported local authority status: OLD"
        )
    );
    let error = client.revoke_x509_authority(revoke(&new.authority_id));
    assert_eq!(
        told(&refused(error.await)),
        (
            Code::InvalidArgument,
            "invalid authority ID: unable to use current authority"
        )
    );
    let error = client.revoke_x509_authority(revoke(&old.authority_id));
    assert_eq!(
        told(&refused(error.await)),
        (
            Code::Internal,
            "failed to revoke X.509 authority: it is not possible to revoke an untainted root CA"
        )
    );
    let tainted = client.taint_x509_authority(taint(&old.authority_id));
    let tainted = tainted.await.unwrap().into_inner().tainted_authority;
    assert_eq!(tainted.as_ref(), Some(&old));
    let error = client.taint_x509_authority(taint(&old.authority_id));
    assert_eq!(
        told(&refused(error.await)),
        (
            Code::Internal,
            "failed to taint X.509 authority: root CA is already tainted"
        )
    );
    let revoked = client.revoke_x509_authority(revoke(&old.authority_id));
    let revoked = revoked.await.unwrap().into_inner().revoked_authority;
    let only = AuthorityState {
        authority_id: old.authority_id.clone(),
        ..AuthorityState::default()
    };
    assert_eq!(revoked, Some(only));
    let error = client.revoke_x509_authority(revoke(&old.authority_id));
    assert_eq!(
        told(&refused(error.await)),
        (
            Code::Internal,
            "failed to revoke X.509 authority: no root CA found with provided subject key ID"
        )
    );
    let error = client.taint_x509_upstream_authority(TaintX509UpstreamAuthorityRequest {
        subject_key_id: "x".into(),
    });
    assert_eq!(
        told(&refused(error.await)),
        (
            Code::FailedPrecondition,
            "upstream authority is not configured"
        )
    );
}

// LocalAuthority `GetWITAuthorityState`, `PrepareWITAuthority`, `ActivateWITAuthority`, `TaintWITAuthority`,
// `RevokeWITAuthority`: there is nothing of it upstream.
#[tokio::test]
async fn wit_authorities_are_not_for_operators() {
    let rig = Rig::with_authorities(None).await;
    let mut client = local(&rig).await;
    let calls = [
        refused(
            client
                .get_wit_authority_state(GetWitAuthorityStateRequest::default())
                .await,
        ),
        refused(
            client
                .prepare_wit_authority(PrepareWitAuthorityRequest::default())
                .await,
        ),
        refused(
            client
                .activate_wit_authority(ActivateWitAuthorityRequest::default())
                .await,
        ),
        refused(
            client
                .taint_wit_authority(TaintWitAuthorityRequest::default())
                .await,
        ),
        refused(
            client
                .revoke_wit_authority(RevokeWitAuthorityRequest::default())
                .await,
        ),
    ];
    assert!(
        calls
            .iter()
            .all(|error| error.code() == Code::Unimplemented),
        "{calls:?}"
    );
}

// LocalAuthority `GetJWTAuthorityState`, `PrepareJWTAuthority`, `ActivateJWTAuthority`, `TaintJWTAuthority`,
// `RevokeJWTAuthority`.
#[tokio::test]
async fn a_jwt_authority_goes_its_way_over_the_api() {
    let rig = Rig::with_authorities(None).await;
    let mut client = local(&rig).await;
    let states = client.get_jwt_authority_state(GetJwtAuthorityStateRequest {});
    let old = states.await.unwrap().into_inner().active.unwrap();
    let prepared = client.prepare_jwt_authority(PrepareJwtAuthorityRequest {});
    let new = prepared.await.unwrap().into_inner();
    let new = new.prepared_authority.unwrap().authority_id;
    let revoke = |id: &str| RevokeJwtAuthorityRequest {
        authority_id: id.into(),
    };
    for (id, text) in [
        ("", "no authority ID provided"),
        (new.as_str(), "unable to use a prepared key"),
        (old.authority_id.as_str(), "unable to use current authority"),
        (
            "unknown",
            "no JWT authority found with provided authority ID",
        ),
    ] {
        let error = refused(client.revoke_jwt_authority(revoke(id)).await);
        let text = format!("invalid authority ID: {text}");
        assert_eq!(told(&error), (Code::InvalidArgument, text.as_str()));
    }
    let request = ActivateJwtAuthorityRequest {
        authority_id: new.clone(),
    };
    let activated = client.activate_jwt_authority(request).await.unwrap();
    let activated = activated.into_inner().activated_authority.unwrap();
    assert_eq!(activated.authority_id, new);
    let error = refused(client.revoke_jwt_authority(revoke(&old.authority_id)).await);
    assert_eq!(
        told(&error),
        (
            Code::Internal,
            "failed to revoke JWT authority: it is not possible to revoke an untainted key"
        )
    );
    let taint = TaintJwtAuthorityRequest {
        authority_id: old.authority_id.clone(),
    };
    client.taint_jwt_authority(taint.clone()).await.unwrap();
    let ours = TrustDomain::new(DOMAIN).unwrap();
    let bundle = rig.store.bundle(&ours).await.unwrap().unwrap();
    let key = |id: &str| bundle.jwt.iter().find(|key| key.id == id).unwrap().tainted;
    assert!(key(&old.authority_id) && !key(&new));
    let error = refused(client.taint_jwt_authority(taint).await);
    assert_eq!(
        told(&error),
        (
            Code::Internal,
            "failed to taint JWT authority: key is already tainted"
        )
    );
    let revoked = client.revoke_jwt_authority(revoke(&old.authority_id)).await;
    revoked.unwrap();
    let bundle = rig.store.bundle(&ours).await.unwrap().unwrap();
    assert!(bundle.jwt.iter().all(|key| key.id != old.authority_id));
}

// Administrators may, agents may not.
#[tokio::test]
async fn authorities_are_for_operators() {
    let admin = id("/admin");
    let rig = Rig::with(std::slice::from_ref(&admin)).await;
    let (_, agent) = rig.attested().await;
    let admin = rig.authority.issue(&admin);
    let call = async |identity: &Identity| {
        let channel = rig.network(Some(identity)).await.unwrap();
        let mut client = LocalAuthorityClient::with_origin(channel, Channel::origin());
        let states = client.get_x509_authority_state(GetX509AuthorityStateRequest {});
        states.await.map(|_| ())
    };
    call(&admin).await.unwrap();
    assert_eq!(refused(call(&agent).await).code(), Code::PermissionDenied);
}

/// A self-signed CA in files.
fn upstream(rig: &std::path::Path) -> Files {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let key = rcgen::KeyPair::generate().unwrap();
    let root = params.self_signed(&key).unwrap();
    let files = Files {
        certificate: rig.join("upstream.pem"),
        key: rig.join("upstream-key.pem"),
        bundle: None,
    };
    std::fs::write(&files.certificate, root.pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    files
}

// LocalAuthority `TaintX509UpstreamAuthority`, `RevokeX509UpstreamAuthority`; `upstreamauthority taint`, `revoke`.
#[tokio::test]
async fn an_upstream_authority_is_tainted_and_revoked_once_nothing_active_is_of_it() {
    let folder = tempfile::TempDir::new().unwrap();
    let ours = TrustDomain::new(DOMAIN).unwrap();
    let files = upstream(folder.path());
    let disk = DiskAuthority::open(files, ours.clone(), Arc::new(SystemClock)).unwrap();
    let rig = Rig::with_authorities(Some(Arc::new(disk))).await;
    let mut client = local(&rig).await;
    let first = x509(&mut client).await.active.unwrap();
    let old = first.upstream_authority_subject_key_id.clone();
    let error = fails(&rig, &["upstreamauthority", "taint", "-subjectKeyID", &old]).await;
    assert_eq!(
        error,
        "Error: could not taint X.509 upstream authority: rpc error: code = InvalidArgument desc = provided subject key id is not valid: unable to use upstream authority singing current authority\n"
    );
    let error = refused(
        client
            .taint_x509_authority(taint(&first.authority_id))
            .await,
    );
    assert_eq!(
        told(&error),
        (
            Code::FailedPrecondition,
            "local authority can't be tainted if there is an upstream authority"
        )
    );
    // Another root above the next CA.
    upstream(folder.path());
    let prepared = client.prepare_x509_authority(PrepareX509AuthorityRequest {});
    let prepared = prepared.await.unwrap().into_inner();
    let prepared = prepared.prepared_authority.unwrap();
    assert_ne!(prepared.upstream_authority_subject_key_id, old);
    let request = activate(&prepared.authority_id);
    client.activate_x509_authority(request).await.unwrap();
    let error = fails(
        &rig,
        &["upstreamauthority", "revoke", "-subjectKeyID", &old],
    )
    .await;
    assert!(
        error.ends_with("failed to revoke X.509 upstream authority: it is not possible to revoke an untainted root CA\n"),
        "{error}"
    );
    let upper = old.to_uppercase();
    let text = ok(
        &rig,
        &["upstreamauthority", "taint", "-subjectKeyID", &upper],
    )
    .await;
    assert_eq!(
        text,
        format!("Tainted X.509 upstream authority:\n  Subject Key ID: {old}\n")
    );
    let bundle = rig.store.bundle(&ours).await.unwrap().unwrap();
    assert_eq!(bundle.x509.iter().filter(|ca| ca.tainted).count(), 1);
    let revoked = json(
        &rig,
        &["upstreamauthority", "revoke", "-subjectKeyID", &old],
    )
    .await;
    assert_eq!(revoked["upstream_authority_subject_key_id"], old);
    let after = rig.store.bundle(&ours).await.unwrap().unwrap();
    assert_eq!(after.x509.len() + 1, bundle.x509.len());
}

// `localauthority x509 show`, `prepare`, `activate`, `taint`, `revoke` and those of `jwt` (`localauthority jwt taint`,
// `localauthority jwt revoke`), as upstream prints them.
#[tokio::test]
async fn the_commands_print_as_upstream_does() {
    let rig = Rig::with_authorities(None).await;
    let shown = json(&rig, &["localauthority", "x509", "show"]).await;
    let old = shown["active"]["authority_id"].as_str().unwrap().to_owned();
    let end: i64 = shown["active"]["expires_at"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(shown.get("prepared").is_none() && shown.get("old").is_none());
    let text = ok(&rig, &["localauthority", "x509", "show"]).await;
    let end = spire_server::moment::utc(end);
    assert_eq!(
        text,
        format!(
            "Active X.509 authority:
  Authority ID: {old}
  Expires at: {end}
  Upstream authority ID: No upstream authority

Prepared X.509 authority:
  No prepared X.509 authority found

Old X.509 authority:
  No old X.509 authority found
"
        )
    );
    let prepared = json(&rig, &["localauthority", "x509", "prepare"]).await;
    let new = &prepared["prepared_authority"]["authority_id"];
    let new = new.as_str().unwrap();
    let id = |verb, id| ["localauthority", "x509", verb, "-authorityID", id];
    let activated = ok(&rig, &[&id("activate", new)[..], &["-rehearse"]].concat()).await;
    let head = format!(
        "Rehearsed X.509 authority:
  Authority ID: {new}
  Handshake: succeeded, with SVIDs of this authority on both sides
Activated X.509 authority:
  Authority ID: {new}
"
    );
    assert!(activated.starts_with(&head), "{activated}");
    let tainted = ok(&rig, &id("taint", &old)).await;
    let head = format!("Tainted X.509 authority:\n  Authority ID: {old}\n");
    assert!(tainted.starts_with(&head), "{tainted}");
    let revoked = ok(&rig, &id("revoke", &old)).await;
    assert_eq!(
        revoked,
        format!(
            "Revoked X.509 authority:
  Authority ID: {old}
  Expires at: 1970-01-01 00:00:00 +0000 UTC
  Upstream authority ID: No upstream authority
"
        )
    );
    assert_eq!(
        fails(&rig, &["localauthority", "x509", "taint"]).await,
        "Error: an authority ID is required\n"
    );
    assert_eq!(
        fails(&rig, &id("activate", "x")).await,
        "Error: could not activate X.509 authority: rpc error: code = InvalidArgument desc = unexpected authority ID\n"
    );
    assert_eq!(
        fails(&rig, &["upstreamauthority", "revoke"]).await,
        "Error: the Subject Key ID of the X.509 upstream authority is required\n"
    );

    let shown = json(&rig, &["localauthority", "jwt", "show"]).await;
    let old = shown["active"]["authority_id"].as_str().unwrap().to_owned();
    let text = ok(&rig, &["localauthority", "jwt", "show"]).await;
    assert!(
        text.ends_with("UTC\n\nPrepared JWT authority:\n  No prepared JWT authority found\n\nOld JWT authority:\n  No old JWT authority found\n"),
        "{text}"
    );
    let prepared = json(&rig, &["localauthority", "jwt", "prepare"]).await;
    let new = &prepared["prepared_authority"]["authority_id"];
    let new = new.as_str().unwrap();
    let id = |verb, id| ["localauthority", "jwt", verb, "-authorityID", id];
    let activated = ok(&rig, &id("activate", new)).await;
    let head = format!("Activated JWT authority:\n  Authority ID: {new}\n  Expires at: ");
    assert!(activated.starts_with(&head), "{activated}");
    let tainted = json(&rig, &id("taint", &old)).await;
    assert_eq!(tainted["tainted_authority"]["authority_id"], old);
    let revoked = json(&rig, &id("revoke", &old)).await;
    assert_eq!(revoked["revoked_authority"]["expires_at"], "0");
}

async fn acknowledgements(rig: &Rig) -> GetAcknowledgementsResponse {
    let mut client = RotationClient::with_origin(rig.local().await, Channel::origin());
    let answer = client.get_acknowledgements(GetAcknowledgementsRequest {});
    answer.await.unwrap().into_inner()
}

async fn report(rig: &Rig, agent: &Identity, bundle_sequence: u64, tainted_svids: u32) {
    let channel = rig.network(Some(agent)).await.unwrap();
    let mut client = ChangesClient::with_origin(channel, Channel::origin());
    let report = ReportRequest {
        bundle_sequence,
        tainted_svids,
    };
    client.report(report).await.unwrap();
}

// Safe rotation: no change of an authority that agents are not ready for, unless it is forced.
#[tokio::test]
async fn an_authority_is_not_changed_before_all_agents_have_acknowledged() {
    let rig = Rig::with_authorities(None).await;
    let (one, ones_identity) = rig.attested().await;
    let (two, twos_identity) = rig.attested().await;
    // Whoever is banned is waited for by nobody.
    let (banned, _) = rig.attested().await;
    let ban = |agent: &mut spire_server::store::Agent| agent.serial_number.clear();
    rig.store.update_agent(&banned, ban).await.unwrap();

    let prepared = json(&rig, &["localauthority", "x509", "prepare"]).await;
    let new = &prepared["prepared_authority"]["authority_id"];
    let new = new.as_str().unwrap();
    let asked = acknowledgements(&rig).await;
    assert_eq!((asked.agents, asked.behind.len()), (2, 2));
    let newest = asked.bundle_sequence;
    report(&rig, &ones_identity, newest, 0).await;
    report(&rig, &twos_identity, newest - 1, 0).await;

    let activate = ["localauthority", "x509", "activate", "-authorityID", new];
    let error = fails(&rig, &activate).await;
    assert_eq!(
        error,
        format!(
            "Error: 1 of 2 agents have not acknowledged the trust bundle (sequence number {newest}):
  {two}: holds sequence number {}
nothing was changed; wait until they have, or repeat the command with -force
",
            newest - 1
        )
    );
    let shown = json(&rig, &["localauthority", "x509", "show"]).await;
    assert_eq!(shown["prepared"]["authority_id"], new);
    let old = shown["active"]["authority_id"].as_str().unwrap().to_owned();
    report(&rig, &twos_identity, newest, 0).await;
    assert!(acknowledgements(&rig).await.behind.is_empty());
    ok(&rig, &activate).await;

    // A taint is a newer bundle; its SVIDs have to be gone before it is revoked.
    ok(
        &rig,
        &["localauthority", "x509", "taint", "-authorityID", &old],
    )
    .await;
    let asked = acknowledgements(&rig).await;
    assert!(asked.bundle_sequence > newest);
    assert_eq!(asked.behind.len(), 2);
    report(&rig, &ones_identity, asked.bundle_sequence, 3).await;
    report(&rig, &twos_identity, asked.bundle_sequence, 0).await;
    let revoke = ["localauthority", "x509", "revoke", "-authorityID", &old];
    let error = fails(&rig, &revoke).await;
    let line = format!("  {one}: still has X509-SVIDs of a tainted authority: 3\n");
    assert!(error.contains(&line), "{error}");
    ok(&rig, &[&revoke[..], &["-force"]].concat()).await;
}

// `-rehearse`: an authority that the stored bundle lacks is not activated.
#[tokio::test]
async fn a_rehearsal_that_fails_changes_nothing() {
    let rig = Rig::with_authorities(None).await;
    let prepared = json(&rig, &["localauthority", "x509", "prepare"]).await;
    let new = &prepared["prepared_authority"]["authority_id"];
    let new = new.as_str().unwrap();
    // As after a restored datastore.
    let ours = TrustDomain::new(DOMAIN).unwrap();
    let without = rig.store.update_bundle(&ours, |bundle| {
        let mut bundle = bundle?;
        bundle.x509.pop();
        Some(bundle)
    });
    without.await.unwrap();
    let command = ["localauthority", "x509", "activate", "-authorityID", new];
    let error = fails(&rig, &[&command[..], &["-rehearse"]].concat()).await;
    let head = "Error: nothing was changed: no handshake with the prepared authority: rpc error: code = Internal desc = the rehearsal failed: the agent refuses the server: ";
    assert!(error.starts_with(head), "{error}");
    let shown = json(&rig, &["localauthority", "x509", "show"]).await;
    assert_eq!(shown["prepared"]["authority_id"], new);
}
