//! `token generate`

use ah_spire_plugin::goflag::FlagSet;
use ah_spire_wire::server::agent::CreateJoinTokenRequest;
use ah_spire_wire::spiffe_id_to_wire;

use super::{Call, Failure, json};
use crate::ids;

pub(super) fn generate_flags(flags: FlagSet) -> FlagSet {
    flags.int("ttl", 600, "Token TTL in seconds").string(
        "spiffeID",
        "",
        "Additional SPIFFE ID to assign the token owner (optional)",
    )
}

pub(super) async fn generate(call: &mut Call<'_>) -> Result<(), Failure> {
    let agent_id = call
        .flags
        .nonempty("spiffeID")
        .map(ids::parse)
        .transpose()?;
    let ttl = i32::try_from(call.flags.int("ttl"))
        .map_err(|error| Failure::because("invalid value for TTL", error))?;
    let request = CreateJoinTokenRequest {
        ttl,
        token: String::new(),
        agent_id: agent_id.as_ref().map(spiffe_id_to_wire),
    };
    let token = call
        .server
        .agents()
        .await?
        .create_join_token(request)
        .await?;
    let token = token.into_inner();
    if call.out.is_json() {
        call.out.json(&json::join_token(&token));
        return Ok(());
    }
    call.out.line(&format!("Token: {}", token.value));
    if agent_id.is_none() {
        call.out.line("Warning: Missing SPIFFE ID.");
    }
    Ok(())
}
