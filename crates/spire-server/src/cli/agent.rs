//! `agent list`, `count`, `show`, `evict`, `ban` and `purge`

use std::time::Duration;

use ah_spire_plugin::goflag::{FlagSet, Flags, Tristate};
use ah_spire_wire::server::agent::{
    BanAgentRequest, CountAgentsRequest, DeleteAgentRequest, GetAgentRequest, ListAgentsRequest,
    ListAgentsResponse, count_agents_request, list_agents_request,
};
use ah_spire_wire::spiffe_id_to_wire;
use ah_spire_wire::types::{Agent, AgentMask, SelectorMatch, Spiffeid};
use serde_json::{Value, json};

use super::matching::{self, counted};
use super::output::Output;
use super::{Call, Failure, json as told};
use crate::{ids, moment};

/// Agents asked for at a time: upstream's servers send at most 4 MiB.
const PAGE: i32 = 1000;

pub(super) fn filter_flags(flags: FlagSet) -> FlagSet {
    flags
        .list("selector", "A colon-delimited type:value selector. Can be used more than once")
        .string(
            "attestationType",
            "",
            "Filter by attestation type, like join_token or x509pop.",
        )
        .tristate("canReattest", "Filter based on string received, 'true': agents that can reattest, 'false': agents that can't reattest, other value will return all.")
        .tristate("banned", "Filter based on string received, 'true': banned agents, 'false': not banned agents, other value will return all.")
        .string(
            "expiresBefore",
            "",
            "Filter by expiration time (format: \"2006-01-02 15:04:05 -0700 -07\")",
        )
        .string("matchSelectorsOn", "superset", "The match mode used when filtering by selectors. Options: exact, any, superset and subset")
}

pub(super) fn id_flag(flags: FlagSet, what: &str) -> FlagSet {
    let usage = format!("The SPIFFE ID of the agent to {what} (agent identity)");
    flags.string("spiffeID", "", &usage)
}

pub(super) fn purge_flags(flags: FlagSet) -> FlagSet {
    flags
        .duration("expiredFor", Duration::from_secs(30 * 24 * 3600), "Amount of time that has passed since the agent's SVID has expired. It is used to determine which agents to purge.")
        .bool("dryRun", false, "Indicates that the command will not perform any action, but will print the agents that would be purged.")
}

/// What `list` and `count` ask for.
struct Filter {
    by_attestation_type: String,
    by_selector_match: Option<SelectorMatch>,
    by_banned: Option<bool>,
    by_can_reattest: Option<bool>,
    by_expires_before: String,
}

fn filter(flags: &Flags) -> Result<Filter, Failure> {
    let unknown = |_: &str| Failure::new("unsupported match behavior");
    let selectors = matching::selectors(
        flags.list("selector"),
        flags.string("matchSelectorsOn"),
        unknown,
        |text| format!("error parsing selector {text:?}"),
    )?;
    let before = flags.string("expiresBefore");
    if !before.is_empty() {
        moment::parse(before).map_err(|why| Failure::because("date is not valid", why))?;
    }
    Ok(Filter {
        by_attestation_type: flags.string("attestationType").to_owned(),
        by_selector_match: selectors,
        by_banned: known(flags.tristate("banned")),
        by_can_reattest: known(flags.tristate("canReattest")),
        by_expires_before: before.to_owned(),
    })
}

fn known(wanted: Tristate) -> Option<bool> {
    match wanted {
        Tristate::Yes => Some(true),
        Tristate::No => Some(false),
        Tristate::Any => None,
    }
}

pub(super) async fn list(call: &mut Call<'_>) -> Result<(), Failure> {
    let filter = filter(call.flags)?;
    let filter = list_agents_request::Filter {
        by_attestation_type: filter.by_attestation_type,
        by_selector_match: filter.by_selector_match,
        by_banned: filter.by_banned,
        by_can_reattest: filter.by_can_reattest,
        by_expires_before: filter.by_expires_before,
    };
    let agents = all(call, filter, None).await?;
    if call.out.is_json() {
        let agents: Vec<Value> = agents.iter().map(told::agent).collect();
        call.out
            .json(&json!({ "agents": agents, "next_page_token": "" }));
        return Ok(());
    }
    if agents.is_empty() {
        call.out.line("No attested agents found");
        return Ok(());
    }
    let found = agents.len();
    let noun = counted(found, "agent", "agents");
    call.out.line(&format!("Found {found} attested {noun}:\n"));
    for agent in &agents {
        print(&mut call.out, agent);
    }
    Ok(())
}

async fn all(
    call: &mut Call<'_>,
    filter: list_agents_request::Filter,
    output_mask: Option<AgentMask>,
) -> Result<Vec<Agent>, Failure> {
    let mut client = call.server.agents().await?;
    let mut found = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListAgentsRequest {
            filter: Some(filter.clone()),
            output_mask,
            page_size: PAGE,
            page_token,
        };
        let ListAgentsResponse {
            agents,
            next_page_token,
        } = client.list_agents(request).await?.into_inner();
        found.extend(agents);
        if next_page_token.is_empty() {
            return Ok(found);
        }
        page_token = next_page_token;
    }
}

pub(super) async fn count(call: &mut Call<'_>) -> Result<(), Failure> {
    let filter = filter(call.flags)?;
    let request = CountAgentsRequest {
        filter: Some(count_agents_request::Filter {
            by_attestation_type: filter.by_attestation_type,
            by_selector_match: filter.by_selector_match,
            by_banned: filter.by_banned,
            by_can_reattest: filter.by_can_reattest,
            by_expires_before: filter.by_expires_before,
        }),
    };
    let count = call.server.agents().await?.count_agents(request).await?;
    let count = count.into_inner().count;
    if call.out.is_json() {
        call.out.json(&told::count(count));
    } else {
        let noun = if count == 1 { "agent" } else { "agents" };
        call.out.line(&format!("{count} attested {noun}"));
    }
    Ok(())
}

fn wanted(flags: &Flags) -> Result<Option<Spiffeid>, Failure> {
    let id = flags
        .nonempty("spiffeID")
        .ok_or("a SPIFFE ID is required")?;
    Ok(Some(spiffe_id_to_wire(&ids::parse(id)?)))
}

pub(super) async fn show(call: &mut Call<'_>) -> Result<(), Failure> {
    let request = GetAgentRequest {
        id: wanted(call.flags)?,
        output_mask: None,
    };
    let agent = call.server.agents().await?.get_agent(request).await?;
    let agent = agent.into_inner();
    if call.out.is_json() {
        call.out.json(&told::agent(&agent));
        return Ok(());
    }
    call.out
        .line("Found an attested agent given its SPIFFE ID\n");
    print(&mut call.out, &agent);
    for selector in &agent.selectors {
        let line = format!("Selectors         : {}:{}", selector.r#type, selector.value);
        call.out.line(&line);
    }
    Ok(())
}

pub(super) async fn evict(call: &mut Call<'_>) -> Result<(), Failure> {
    let id = wanted(call.flags)?;
    let request = DeleteAgentRequest { id };
    call.server.agents().await?.delete_agent(request).await?;
    done(&mut call.out, "Agent evicted successfully");
    Ok(())
}

pub(super) async fn ban(call: &mut Call<'_>) -> Result<(), Failure> {
    let id = wanted(call.flags)?;
    let request = BanAgentRequest { id };
    call.server.agents().await?.ban_agent(request).await?;
    done(&mut call.out, "Agent banned successfully");
    Ok(())
}

fn done(out: &mut Output, text: &str) {
    if out.is_json() {
        out.json(&json!({}));
    } else {
        out.line(text);
    }
}

fn print(out: &mut Output, agent: &Agent) {
    out.line(&format!("SPIFFE ID         : {}", id(agent)));
    out.line(&format!("Attestation type  : {}", agent.attestation_type));
    let expires = moment::local(agent.x509svid_expires_at);
    out.line(&format!("Expiration time   : {expires}"));
    if agent.banned {
        out.line("Banned            : true");
    } else {
        let serial = &agent.x509svid_serial_number;
        out.line(&format!("Serial number     : {serial}"));
    }
    out.line(&format!("Can re-attest     : {}", agent.can_reattest));
    if !agent.agent_version.is_empty() {
        out.line(&format!("Agent version     : {}", agent.agent_version));
    }
    out.line("");
}

fn id(agent: &Agent) -> String {
    let id = agent.id.clone().unwrap_or_default();
    format!("spiffe://{}{}", id.trust_domain, id.path)
}

/// An agent that `purge` looked at.
struct Purged {
    id: String,
    /// `None`: a dry run.
    deleted: Option<Result<(), Failure>>,
}

pub(super) async fn purge(call: &mut Call<'_>) -> Result<(), Failure> {
    let filter = list_agents_request::Filter {
        by_can_reattest: Some(true),
        ..Default::default()
    };
    let mask = AgentMask {
        x509svid_expires_at: true,
        ..Default::default()
    };
    let agents = all(call, filter, Some(mask)).await;
    let agents = agents.map_err(|failure| failure.during("failed to list agents"))?;
    let dry = call.flags.bool("dryRun");
    let expired_for = call.flags.duration("expiredFor").as_secs();
    let before = moment::now().saturating_sub(i64::try_from(expired_for).unwrap_or(i64::MAX));
    let mut client = call.server.agents().await?;
    let mut purged = Vec::new();
    for agent in agents
        .into_iter()
        .filter(|it| it.x509svid_expires_at < before)
    {
        let id = id(&agent);
        let deleted = if dry {
            None
        } else {
            let request = DeleteAgentRequest { id: agent.id };
            let deleted = client.delete_agent(request).await;
            Some(deleted.map(|_| ()).map_err(Failure::from))
        };
        purged.push(Purged { id, deleted });
    }
    report(&mut call.out, &purged, dry);
    Ok(())
}

fn report(out: &mut Output, purged: &[Purged], dry: bool) {
    if out.is_json() {
        let one = |it: &Purged| {
            let mut told =
                json!({ "agent_id": it.id, "deleted": matches!(it.deleted, Some(Ok(()))) });
            if let (Some(Err(failure)), Some(told)) = (&it.deleted, told.as_object_mut()) {
                told.insert("error".to_owned(), failure.0.clone().into());
            }
            told
        };
        let all: Vec<Value> = purged.iter().map(one).collect();
        out.json(&json!([{ "expired_agents": all }]));
        return;
    }
    if purged.is_empty() {
        out.line("No agents to purge.");
        return;
    }
    let noun = counted(purged.len(), "agent", "agents");
    out.line(&format!("Found {} expired {noun}\n", purged.len()));
    let line = |it: &Purged| format!("SPIFFE ID         : {}", it.id);
    if dry {
        out.line("\nAgents that can be purged:");
        purged.iter().for_each(|it| out.line(&line(it)));
        return;
    }
    let (gone, left): (Vec<&Purged>, Vec<&Purged>) = purged
        .iter()
        .partition(|it| matches!(it.deleted, Some(Ok(()))));
    if !gone.is_empty() {
        out.line("Agents purged:");
        gone.iter().for_each(|it| out.line(&line(it)));
    }
    if !left.is_empty() {
        out.line("Agents not purged:");
        for it in left {
            out.line(&line(it));
            if let Some(Err(failure)) = &it.deleted {
                out.line(&format!("Error             : {}", failure.0));
            }
        }
    }
}
