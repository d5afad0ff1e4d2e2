//! What is asked before an X.509 authority is changed: whether all agents are ready, and whether it works.

use ah_spire_plugin::goflag::FlagSet;
use ah_spire_wire::rotation::{
    AgentHoldings, GetAcknowledgementsRequest, GetAcknowledgementsResponse,
    RehearseX509AuthorityRequest,
};
use tonic::Code;

use super::{Call, Failure};

/// Agents that are named; of more it is told how many.
const NAMED: usize = 20;

pub(super) fn force_flag(flags: FlagSet) -> FlagSet {
    flags.bool(
        "force",
        false,
        "Go on even if agents have not acknowledged the newest trust bundle",
    )
}

pub(super) fn rehearse_flag(flags: FlagSet) -> FlagSet {
    flags.bool(
        "rehearse",
        false,
        "Prove a TLS handshake with the prepared authority before it is activated",
    )
}

/// Refuses unless every agent serves what is in the newest bundle and nothing of a tainted authority, or `-force` is
/// given. A server that does not know such questions, as upstream's, is asked nothing more.
pub(super) async fn all_acknowledged(call: &mut Call<'_>) -> Result<(), Failure> {
    if call.flags.bool("force") {
        return Ok(());
    }
    let mut client = call.server.rotation().await?;
    let answer = client
        .get_acknowledgements(GetAcknowledgementsRequest {})
        .await;
    let answer = match answer {
        Ok(answer) => answer.into_inner(),
        Err(status) if status.code() == Code::Unimplemented => return Ok(()),
        Err(status) => {
            return Err(Failure::from(status).during("could not ask which agents are ready"));
        }
    };
    if answer.behind.is_empty() {
        return Ok(());
    }
    Err(Failure(told(&answer)))
}

fn told(answer: &GetAcknowledgementsResponse) -> String {
    let newest = answer.bundle_sequence;
    let mut text = format!(
        "{} of {} agents have not acknowledged the trust bundle (sequence number {newest}):\n",
        answer.behind.len(),
        answer.agents
    );
    for agent in answer.behind.iter().take(NAMED) {
        text.push_str(&format!("  {}: {}\n", agent.spiffe_id, why(agent, newest)));
    }
    match answer.behind.len().saturating_sub(NAMED) {
        0 => {}
        more => text.push_str(&format!("  and {more} more\n")),
    }
    text.push_str("nothing was changed; wait until they have, or repeat the command with -force");
    text
}

fn why(agent: &AgentHoldings, newest: u64) -> String {
    if !agent.reported {
        return "unknown (not connected, or an agent that does not report)".into();
    }
    if agent.bundle_sequence < newest {
        return format!("holds sequence number {}", agent.bundle_sequence);
    }
    format!(
        "still has X509-SVIDs of a tainted authority: {}",
        agent.tainted_svids
    )
}

/// Proves a handshake with the prepared authority.
pub(super) async fn rehearse(call: &mut Call<'_>, authority_id: &str) -> Result<(), Failure> {
    let what = "nothing was changed: no handshake with the prepared authority";
    let mut client = call.server.rotation().await?;
    let request = RehearseX509AuthorityRequest {
        authority_id: authority_id.to_owned(),
    };
    let answer = client.rehearse_x509_authority(request).await;
    answer.map_err(|status| Failure::from(status).during(what))?;
    if !call.out.is_json() {
        call.out.line("Rehearsed X.509 authority:");
        call.out.line(&format!("  Authority ID: {authority_id}"));
        call.out
            .line("  Handshake: succeeded, with SVIDs of this authority on both sides");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_who_is_behind_and_how_many_more() {
        let agent = |n: u64, reported, bundle_sequence, tainted_svids| AgentHoldings {
            spiffe_id: format!("spiffe://example.org/spire/agent/{n}"),
            reported,
            bundle_sequence,
            tainted_svids,
        };
        let mut behind = vec![
            agent(1, false, 0, 0),
            agent(2, true, 6, 0),
            agent(3, true, 7, 4),
        ];
        behind.extend((4..25).map(|n| agent(n, true, 6, 0)));
        let text = told(&GetAcknowledgementsResponse {
            bundle_sequence: 7,
            agents: 30,
            behind,
        });
        let head = "24 of 30 agents have not acknowledged the trust bundle (sequence number 7):
  spiffe://example.org/spire/agent/1: unknown (not connected, or an agent that does not report)
  spiffe://example.org/spire/agent/2: holds sequence number 6
  spiffe://example.org/spire/agent/3: still has X509-SVIDs of a tainted authority: 4
";
        assert!(text.starts_with(head), "{text}");
        let tail = "  and 4 more
nothing was changed; wait until they have, or repeat the command with -force";
        assert!(text.ends_with(tail), "{text}");
    }
}
