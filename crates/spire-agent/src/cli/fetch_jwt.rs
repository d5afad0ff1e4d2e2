//! `api fetch jwt`

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ah_spire_plugin::goflag::{FlagSet, Flags};
use ah_spire_wire::workload::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse,
};
use serde_json::json;

use super::call::{self, Agent, secured};
use super::failure::Failure;
use super::{gotext, output};

pub(super) fn flags() -> FlagSet {
    let flags = FlagSet::new("fetch jwt")
        .comma_list("audience", "comma separated list of audience values")
        .string("spiffeID", "", "SPIFFE ID subject (optional)")
        .choice(
            "format",
            &["pretty", "json", "prettyprint"],
            "pretty",
            "deprecated; use -output",
        );
    output::with_flag(call::with_flags(flags))
}

pub(super) async fn run(flags: &Flags) -> Result<(), Failure> {
    let audience = flags.list("audience");
    if audience.is_empty() {
        return Err(Failure::new("audience must be specified"));
    }
    let agent = Agent::connect(flags).await?;
    let mut api = agent.workload_api();
    let bundles = agent.first(api.fetch_jwt_bundles(secured(JwtBundlesRequest {})));
    let bundles = bundles.await.map_err(|status| agent.failed(&status))?;
    let svids = agent.answer(api.fetch_jwtsvid(secured(JwtsvidRequest {
        audience: audience.to_vec(),
        spiffe_id: flags.string("spiffeID").to_owned(),
    })));
    let svids = svids.await.map_err(|status| agent.failed(&status))?;
    if output::is_json(flags, "output") || output::is_json(flags, "format") {
        output::print(&as_json(&svids, &bundles))
    } else {
        output::print(&pretty(&svids, &bundles))
    }
}

fn as_json(svids: &JwtsvidResponse, bundles: &JwtBundlesResponse) -> String {
    let svids = svids
        .svids
        .iter()
        .map(|svid| json!({"hint": svid.hint, "spiffe_id": svid.spiffe_id, "svid": svid.svid}));
    let both = json!([
        {"svids": svids.collect::<Vec<_>>()},
        {"bundles": output::map_of_bytes(&bundles.bundles)},
    ]);
    format!("{}\n", gotext::json(&both))
}

fn pretty(svids: &JwtsvidResponse, bundles: &JwtBundlesResponse) -> String {
    let mut text = String::new();
    for svid in &svids.svids {
        let _ = writeln!(text, "token({}):\n\t{}", svid.spiffe_id, svid.svid);
        if !svid.hint.is_empty() {
            let _ = writeln!(text, "hint({}):\n\t{}", svid.spiffe_id, svid.hint);
        }
    }
    let sorted: BTreeMap<_, _> = bundles.bundles.iter().collect();
    for (domain, document) in sorted {
        let document = String::from_utf8_lossy(document);
        let _ = writeln!(text, "bundle({domain}):\n\t{document}");
    }
    text
}
