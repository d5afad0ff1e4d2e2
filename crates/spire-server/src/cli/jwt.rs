//! `jwt mint`

use std::time::Duration;

use ah_spire_plugin::goflag::FlagSet;
use ah_spire_wire::server::svid::MintJwtsvidRequest;
use ah_spire_wire::spiffe_id_to_wire;
use serde_json::json;

use super::{Call, Failure, json as told, x509};
use crate::ids;

pub(super) fn flags(flags: FlagSet) -> FlagSet {
    flags
        .string("spiffeID", "", "SPIFFE ID of the JWT-SVID")
        .duration("ttl", Duration::ZERO, "TTL of the JWT-SVID")
        .list(
            "audience",
            "Audience claim that will be included in the SVID. Can be used more than once.",
        )
        .string("write", "", "File to write token to instead of stdout")
}

pub(super) async fn mint(call: &mut Call<'_>) -> Result<(), Failure> {
    let flags = call.flags;
    let id = flags
        .nonempty("spiffeID")
        .ok_or("spiffeID must be specified")?;
    if flags.list("audience").is_empty() {
        return Err("at least one audience must be specified".into());
    }
    let ttl = flags.duration("ttl");
    let request = MintJwtsvidRequest {
        id: Some(spiffe_id_to_wire(&ids::parse(id)?)),
        audience: flags.list("audience").to_vec(),
        ttl: x509::seconds(ttl)?,
    };
    let what = "unable to mint SVID";
    let mut client = call
        .server
        .svids()
        .await
        .map_err(|failure| failure.during(what))?;
    let answer = client.mint_jwtsvid(request).await;
    let answer = answer
        .map_err(|error| Failure::from(error).during(what))?
        .into_inner();
    let svid = answer.svid.filter(|svid| !svid.token.is_empty());
    let svid = svid.ok_or("server response missing token")?;
    x509::tell_capped(call, "JWT-SVID", svid.expires_at, ttl);
    match flags.nonempty("write") {
        Some(path) => {
            x509::write(path, svid.token.as_bytes(), 0o600)
                .map_err(|error| Failure::because("unable to write token", error))?;
            call.out.line(&format!("JWT-SVID written to {path}"));
        }
        None if call.out.is_json() => {
            call.out.json(&json!({ "svid": told::jwt_svid(&svid) }));
        }
        None => call.out.line(&svid.token),
    }
    Ok(())
}
