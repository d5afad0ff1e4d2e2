//! `api validate jwt`

use ah_spire_plugin::goflag::{FlagSet, Flags};
use ah_spire_wire::workload::{ValidateJwtsvidRequest, ValidateJwtsvidResponse};
use prost_types::value::Kind;
use serde_json::{Map, Value, json};
use tonic::Code;

use super::call::{self, Agent, secured};
use super::failure::{Failure, rpc_error};
use super::{gotext, output};

pub(super) fn flags() -> FlagSet {
    let flags = FlagSet::new("validate jwt")
        .string("audience", "", "expected audience value")
        .string("svid", "", "JWT SVID");
    output::with_flag(call::with_flags(flags))
}

pub(super) async fn run(flags: &Flags) -> Result<(), Failure> {
    let (audience, svid) = (flags.string("audience"), flags.string("svid"));
    if audience.is_empty() {
        return Err(Failure::new("audience must be specified"));
    }
    if svid.is_empty() {
        return Err(Failure::new("svid must be specified"));
    }
    let agent = Agent::connect(flags).await?;
    let mut api = agent.workload_api();
    let answer = agent.answer(api.validate_jwtsvid(secured(ValidateJwtsvidRequest {
        audience: audience.to_owned(),
        svid: svid.to_owned(),
    })));
    let answer = answer.await.map_err(|status| match status.code() {
        Code::InvalidArgument => Failure::new(format!("SVID is not valid: {}", status.message())),
        _ if Agent::was_lost(&status) => agent.failed(&status),
        _ => Failure::new(format!(
            "unable to validate JWT SVID: {}",
            rpc_error(&status)
        )),
    })?;
    output::print(&text(&answer, output::is_json(flags, "output")))
}

fn text(answer: &ValidateJwtsvidResponse, as_json: bool) -> String {
    let claims = answer.claims.as_ref().map(object).unwrap_or_default();
    if as_json {
        let both = json!({
            "claims": without_nulls(Value::Object(claims)),
            "spiffe_id": answer.spiffe_id,
        });
        return format!("{}\n", gotext::json(&both));
    }
    format!(
        "SVID is valid.\nSPIFFE ID : {}\nClaims    : {}\n",
        answer.spiffe_id,
        Value::Object(claims)
    )
}

fn object(of: &prost_types::Struct) -> Map<String, Value> {
    let fields = of.fields.iter();
    fields
        .map(|(name, member)| (name.clone(), value(member)))
        .collect()
}

fn value(of: &prost_types::Value) -> Value {
    match &of.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(truth)) => Value::Bool(*truth),
        Some(Kind::NumberValue(number)) => gotext::number(*number),
        Some(Kind::StringValue(text)) => Value::String(text.clone()),
        Some(Kind::ListValue(list)) => list.values.iter().map(value).collect(),
        Some(Kind::StructValue(members)) => Value::Object(object(members)),
    }
}

/// Upstream leaves nulls out of JSON output.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let kept = members.into_iter().filter(|(_, member)| !member.is_null());
            Value::Object(
                kept.map(|(name, member)| (name, without_nulls(member)))
                    .collect(),
            )
        }
        Value::Array(items) => {
            let kept = items.into_iter().filter(|item| !item.is_null());
            kept.map(without_nulls).collect()
        }
        other => other,
    }
}
