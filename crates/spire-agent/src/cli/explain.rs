//! `api explain`: which entries match a process, and what the nearest ones lack.

use std::fmt::Write as _;

use ah_spire_plugin::goflag::{FlagSet, Flags};
use ah_spire_wire::Channel;
use serde_json::json;
use tonic::client::Grpc;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::call::{self, Agent};
use super::failure::Failure;
use super::{gotext, output};
use crate::workload::{EXPLAIN_METHOD, ExplainAnswer, ExplainRequest};

pub(super) fn flags() -> FlagSet {
    let flags = FlagSet::new("explain").int(
        "pid",
        0,
        "Process to explain; this one without it. Others than one's own are for root and the agent's user",
    );
    output::with_flag(call::with_flags(flags))
}

pub(super) async fn run(flags: &Flags) -> Result<(), Failure> {
    let pid = i32::try_from(flags.int("pid"))
        .ok()
        .filter(|pid| *pid >= 0)
        .ok_or_else(|| Failure::new("error: -pid takes the number of a process"))?;
    let agent = Agent::connect(flags).await?;
    let answer = agent.answer(explain(agent.channel.clone(), ExplainRequest { pid }));
    let answer = answer.await.map_err(|status| match status.code() {
        // The hint about entries is the answer to another question.
        tonic::Code::PermissionDenied => Failure::new(format!("error: {}", status.message())),
        _ => agent.failed(&status),
    })?;
    if output::is_json(flags, "output") {
        output::print(&as_json(&answer))
    } else {
        output::print(&pretty(&answer))
    }
}

async fn explain(
    channel: Channel,
    request: ExplainRequest,
) -> Result<Response<ExplainAnswer>, Status> {
    let mut grpc = Grpc::with_origin(channel, Channel::origin());
    grpc.ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let path = http::uri::PathAndQuery::from_static(EXPLAIN_METHOD);
    let codec = ProstCodec::<ExplainRequest, ExplainAnswer>::default();
    grpc.unary(Request::new(request), path, codec).await
}

fn as_json(answer: &ExplainAnswer) -> String {
    let nearest = answer.nearest.iter().map(|entry| {
        json!({
            "entry_id": entry.entry_id,
            "missing": entry.missing,
            "spiffe_id": entry.spiffe_id,
        })
    });
    let answer = json!({
        "entries": answer.entries,
        "nearest": nearest.collect::<Vec<_>>(),
        "pid": answer.pid,
        "selectors": answer.selectors,
    });
    format!("{}\n", gotext::json(&answer))
}

fn pretty(answer: &ExplainAnswer) -> String {
    let mut text = format!("Process {} has these selectors:\n", answer.pid);
    for selector in &answer.selectors {
        let _ = writeln!(text, "  {selector}");
    }
    if answer.selectors.is_empty() {
        text.push_str("  none: see `WorkloadAttestor` in the agent's configuration\n");
    }
    let _ = writeln!(text, "\nThis agent has {} entries.", answer.entries);
    if answer.entries == 0 {
        text.push_str(
            "  hint: create one whose parent is this agent: `spire-server entry create`, `spire-server agent list`\n",
        );
    }
    for entry in &answer.nearest {
        let _ = writeln!(text, "\n{} (entry {})", entry.spiffe_id, entry.entry_id);
        if entry.missing.is_empty() {
            text.push_str("  matches: this process is issued it\n");
        }
        for selector in &entry.missing {
            let _ = writeln!(text, "  lacks {selector}");
        }
    }
    if answer.nearest.is_empty() && answer.entries > 0 {
        text.push_str("None of them shares a selector with this process.\n");
    }
    text
}
