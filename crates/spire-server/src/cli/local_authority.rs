//! `localauthority x509|jwt show`, `prepare`, `activate`, `taint` and `revoke`, and `upstreamauthority taint` and
//! `revoke`

use ah_spire_plugin::goflag::FlagSet;
use ah_spire_wire::server::localauthority::{
    ActivateJwtAuthorityRequest, ActivateX509AuthorityRequest, AuthorityState,
    GetJwtAuthorityStateRequest, GetX509AuthorityStateRequest, PrepareJwtAuthorityRequest,
    PrepareX509AuthorityRequest, RevokeJwtAuthorityRequest, RevokeX509AuthorityRequest,
    RevokeX509UpstreamAuthorityRequest, TaintJwtAuthorityRequest, TaintX509AuthorityRequest,
    TaintX509UpstreamAuthorityRequest,
};
use serde_json::json;
use tonic::{Response, Status};

use super::{Call, Failure, Run, Running, json as told, rotation};
use crate::moment;

/// The commands; `shows` makes the flags of one by its name.
pub(super) fn commands(
    shows: impl Fn(&str) -> FlagSet,
) -> [(Run, &'static str, &'static str, FlagSet); 12] {
    [
        (
            run!(x509_show),
            "localauthority x509 show",
            "Shows the local X.509 authorities",
            shows("localauthority x509 show"),
        ),
        (
            run!(x509_prepare),
            "localauthority x509 prepare",
            "Prepares a new X.509 authority for use by generating a new key and injecting the resulting CA certificate into the bundle",
            shows("localauthority x509 prepare"),
        ),
        (
            run!(x509_activate),
            "localauthority x509 activate",
            "Activates a prepared X.509 authority for use, which will cause it to be used for all X.509 signing operations serviced by this server going forward",
            rotation::rehearse_flag(rotation::force_flag(id_flag(
                shows("localauthority x509 activate"),
                "X.509 authority to activate",
            ))),
        ),
        (
            run!(x509_taint),
            "localauthority x509 taint",
            "Marks the previously active X.509 authority as being tainted",
            rotation::force_flag(id_flag(
                shows("localauthority x509 taint"),
                "X.509 authority to taint",
            )),
        ),
        (
            run!(x509_revoke),
            "localauthority x509 revoke",
            "Revokes the previously active X.509 authority by removing it from the bundle and propagating this update throughout the cluster",
            rotation::force_flag(id_flag(
                shows("localauthority x509 revoke"),
                "X.509 authority to revoke",
            )),
        ),
        (
            run!(jwt_show),
            "localauthority jwt show",
            "Shows the local JWT authorities",
            shows("localauthority jwt show"),
        ),
        (
            run!(jwt_prepare),
            "localauthority jwt prepare",
            "Prepares a new JWT authority for use by generating a new key and injecting it into the bundle",
            shows("localauthority jwt prepare"),
        ),
        (
            run!(jwt_activate),
            "localauthority jwt activate",
            "Activates a prepared JWT authority for use, which will cause it to be used for all JWT signing operations serviced by this server going forward",
            id_flag(
                shows("localauthority jwt activate"),
                "JWT authority to activate",
            ),
        ),
        (
            run!(jwt_taint),
            "localauthority jwt taint",
            "Marks the previously active JWT authority as being tainted",
            id_flag(shows("localauthority jwt taint"), "JWT authority to taint"),
        ),
        (
            run!(jwt_revoke),
            "localauthority jwt revoke",
            "Revokes the previously active JWT authority by removing it from the bundle and propagating this update throughout the cluster",
            id_flag(
                shows("localauthority jwt revoke"),
                "JWT authority to revoke",
            ),
        ),
        (
            run!(upstream_taint),
            "upstreamauthority taint",
            "Marks the provided X.509 upstream authority as being tainted",
            key_id_flag(
                shows("upstreamauthority taint"),
                "upstream X.509 authority to taint",
            ),
        ),
        (
            run!(upstream_revoke),
            "upstreamauthority revoke",
            "Revokes the previously active X.509 upstream authority by removing it from the bundle and propagating this update throughout the cluster",
            key_id_flag(
                shows("upstreamauthority revoke"),
                "X.509 upstream authority to revoke",
            ),
        ),
    ]
}

/// `-authorityID`; `what` ends its help.
fn id_flag(flags: FlagSet, what: &str) -> FlagSet {
    flags.string(
        "authorityID",
        "",
        &format!("The authority ID of the {what}"),
    )
}

/// `-subjectKeyID`; `what` ends its help.
fn key_id_flag(flags: FlagSet, what: &str) -> FlagSet {
    flags.string(
        "subjectKeyID",
        "",
        &format!(
            "The X.509 Subject Key Identifier (or SKID) of the authority's CA certificate of the {what}"
        ),
    )
}

/// Of which kind.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    X509,
    Jwt,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::X509 => "X.509",
            Self::Jwt => "JWT",
        }
    }
}

async fn x509_show(call: &mut Call<'_>) -> Result<(), Failure> {
    let mut client = call.server.local_authorities().await?;
    let answer = client.get_x509_authority_state(GetX509AuthorityStateRequest {});
    let states = succeeded(answer.await, "could not get X.509 authorities")?;
    shown(
        call,
        Kind::X509,
        [states.active, states.prepared, states.old],
    );
    Ok(())
}

async fn jwt_show(call: &mut Call<'_>) -> Result<(), Failure> {
    let mut client = call.server.local_authorities().await?;
    let answer = client.get_jwt_authority_state(GetJwtAuthorityStateRequest {});
    let states = succeeded(answer.await, "could not get JWT authorities")?;
    shown(
        call,
        Kind::Jwt,
        [states.active, states.prepared, states.old],
    );
    Ok(())
}

async fn x509_prepare(call: &mut Call<'_>) -> Result<(), Failure> {
    let mut client = call.server.local_authorities().await?;
    let answer = client.prepare_x509_authority(PrepareX509AuthorityRequest {});
    let prepared = succeeded(answer.await, "could not prepare X.509 authority")?;
    changed(call, Kind::X509, "prepared", prepared.prepared_authority)
}

async fn jwt_prepare(call: &mut Call<'_>) -> Result<(), Failure> {
    let mut client = call.server.local_authorities().await?;
    let answer = client.prepare_jwt_authority(PrepareJwtAuthorityRequest {});
    let prepared = succeeded(answer.await, "could not prepare JWT authority")?;
    changed(call, Kind::Jwt, "prepared", prepared.prepared_authority)
}

async fn x509_activate(call: &mut Call<'_>) -> Result<(), Failure> {
    let authority_id = id(call)?;
    rotation::all_acknowledged(call).await?;
    if call.flags.bool("rehearse") {
        rotation::rehearse(call, &authority_id).await?;
    }
    let mut client = call.server.local_authorities().await?;
    let answer = client.activate_x509_authority(ActivateX509AuthorityRequest { authority_id });
    let activated = succeeded(answer.await, "could not activate X.509 authority")?;
    changed(call, Kind::X509, "activated", activated.activated_authority)
}

async fn jwt_activate(call: &mut Call<'_>) -> Result<(), Failure> {
    let authority_id = id(call)?;
    let mut client = call.server.local_authorities().await?;
    let answer = client.activate_jwt_authority(ActivateJwtAuthorityRequest { authority_id });
    let activated = succeeded(answer.await, "could not activate JWT authority")?;
    changed(call, Kind::Jwt, "activated", activated.activated_authority)
}

async fn x509_taint(call: &mut Call<'_>) -> Result<(), Failure> {
    let authority_id = id(call)?;
    rotation::all_acknowledged(call).await?;
    let mut client = call.server.local_authorities().await?;
    let answer = client.taint_x509_authority(TaintX509AuthorityRequest { authority_id });
    let tainted = succeeded(answer.await, "could not taint X.509 authority")?;
    changed(call, Kind::X509, "tainted", tainted.tainted_authority)
}

async fn jwt_taint(call: &mut Call<'_>) -> Result<(), Failure> {
    let authority_id = id(call)?;
    let mut client = call.server.local_authorities().await?;
    let answer = client.taint_jwt_authority(TaintJwtAuthorityRequest { authority_id });
    let tainted = succeeded(answer.await, "could not taint JWT authority")?;
    changed(call, Kind::Jwt, "tainted", tainted.tainted_authority)
}

async fn x509_revoke(call: &mut Call<'_>) -> Result<(), Failure> {
    let authority_id = id(call)?;
    rotation::all_acknowledged(call).await?;
    let mut client = call.server.local_authorities().await?;
    let answer = client.revoke_x509_authority(RevokeX509AuthorityRequest { authority_id });
    let revoked = succeeded(answer.await, "could not revoke X.509 authority")?;
    changed(call, Kind::X509, "revoked", revoked.revoked_authority)
}

async fn jwt_revoke(call: &mut Call<'_>) -> Result<(), Failure> {
    let authority_id = id(call)?;
    let mut client = call.server.local_authorities().await?;
    let answer = client.revoke_jwt_authority(RevokeJwtAuthorityRequest { authority_id });
    let revoked = succeeded(answer.await, "could not revoke JWT authority")?;
    changed(call, Kind::Jwt, "revoked", revoked.revoked_authority)
}

async fn upstream_taint(call: &mut Call<'_>) -> Result<(), Failure> {
    let subject_key_id = key_id(call)?;
    let mut client = call.server.local_authorities().await?;
    let request = TaintX509UpstreamAuthorityRequest { subject_key_id };
    let answer = client.taint_x509_upstream_authority(request).await;
    let tainted = succeeded(answer, "could not taint X.509 upstream authority")?;
    upstream(call, "Tainted", &tainted.upstream_authority_subject_key_id);
    Ok(())
}

async fn upstream_revoke(call: &mut Call<'_>) -> Result<(), Failure> {
    let subject_key_id = key_id(call)?;
    let mut client = call.server.local_authorities().await?;
    let request = RevokeX509UpstreamAuthorityRequest { subject_key_id };
    let answer = client.revoke_x509_upstream_authority(request).await;
    let revoked = succeeded(answer, "could not revoke X.509 upstream authority")?;
    upstream(call, "Revoked", &revoked.upstream_authority_subject_key_id);
    Ok(())
}

fn id(call: &Call<'_>) -> Result<String, Failure> {
    let id = call.flags.nonempty("authorityID");
    Ok(id.ok_or("an authority ID is required")?.to_owned())
}

fn key_id(call: &Call<'_>) -> Result<String, Failure> {
    let id = call.flags.nonempty("subjectKeyID");
    let missing = "the Subject Key ID of the X.509 upstream authority is required";
    Ok(id.ok_or(missing)?.to_owned())
}

fn succeeded<T>(answer: Result<Response<T>, Status>, what: &str) -> Result<T, Failure> {
    let answer = answer.map_err(|status| Failure::from(status).during(what))?;
    Ok(answer.into_inner())
}

fn shown(call: &mut Call<'_>, kind: Kind, states: [Option<AuthorityState>; 3]) {
    let names = ["active", "prepared", "old"];
    if call.out.is_json() {
        let set = names.into_iter().zip(&states);
        let set = set.filter_map(|(name, state)| Some((name, told::authority(state.as_ref()?))));
        call.out
            .json(&set.map(|(name, state)| (name.to_owned(), state)).collect());
        return;
    }
    let mut between = "";
    for (name, state) in names.into_iter().zip(states) {
        let kind_name = kind.name();
        let title = capitalized(name);
        call.out
            .text(&format!("{between}{title} {kind_name} authority:\n"));
        match state {
            Some(state) => one(call, kind, &state),
            None => call
                .out
                .line(&format!("  No {name} {kind_name} authority found")),
        }
        between = "\n";
    }
}

fn changed(
    call: &mut Call<'_>,
    kind: Kind,
    how: &str,
    state: Option<AuthorityState>,
) -> Result<(), Failure> {
    let kind_name = kind.name();
    let state = state.ok_or_else(|| {
        Failure(format!(
            "the server did not tell the {how} {kind_name} authority"
        ))
    })?;
    if call.out.is_json() {
        call.out
            .json(&json!({ format!("{how}_authority"): told::authority(&state) }));
        return Ok(());
    }
    let title = capitalized(how);
    call.out.line(&format!("{title} {kind_name} authority:"));
    one(call, kind, &state);
    Ok(())
}

fn one(call: &mut Call<'_>, kind: Kind, state: &AuthorityState) {
    let AuthorityState {
        authority_id,
        expires_at,
        upstream_authority_subject_key_id: above,
    } = state;
    call.out.line(&format!("  Authority ID: {authority_id}"));
    let end = moment::utc(*expires_at);
    call.out.line(&format!("  Expires at: {end}"));
    if kind == Kind::X509 {
        call.out.line(&match above.as_str() {
            "" => "  Upstream authority ID: No upstream authority".to_owned(),
            id => format!("  Upstream authority Subject Key ID: {id}"),
        });
    }
}

fn upstream(call: &mut Call<'_>, how: &str, key_id: &str) {
    if call.out.is_json() {
        call.out
            .json(&json!({ "upstream_authority_subject_key_id": key_id }));
        return;
    }
    call.out.line(&format!("{how} X.509 upstream authority:"));
    call.out.line(&format!("  Subject Key ID: {key_id}"));
}

fn capitalized(word: &str) -> String {
    let mut letters = word.chars();
    letters
        .next()
        .map(|first| first.to_ascii_uppercase())
        .into_iter()
        .chain(letters)
        .collect()
}
