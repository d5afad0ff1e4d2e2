//! CredentialComposers.

use std::collections::BTreeMap;

use ah_spire_wire::Channel;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct};
use serde_json::{Map, Number, Value};
use tonic::{Code, Status};

use crate::Plugin;
use crate::packages::spire::plugin::server::credentialcomposer::v1 as messages;
use messages::credential_composer_client::CredentialComposerClient;

/// What is asked and answered.
pub mod wire {
    pub use super::messages::{
        AttributeTypeAndValue, DistinguishedName, X509Extension, X509caAttributes,
        X509svidAttributes,
    };
}

/// What makes a plugin a CredentialComposer.
pub const SERVICE: &str = "spire.plugin.server.credentialcomposer.v1.CredentialComposer";

/// Beyond this a number of a message is no whole number any more (2^53).
const LARGEST_WHOLE: f64 = 9_007_199_254_740_992.0;

/// A CredentialComposer in a process of its own. An answer of `None` is that the plugin changes nothing.
#[derive(Clone)]
pub struct Composer(Plugin);

fn client(channel: Channel) -> CredentialComposerClient<Channel> {
    CredentialComposerClient::with_origin(channel, Channel::origin())
}

impl Composer {
    /// `plugin` has to be one of [`SERVICE`].
    pub fn new(plugin: Plugin) -> Self {
        Self(plugin)
    }

    /// The plugin's name.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// `ComposeServerX509CA`
    ///
    /// # Errors
    /// What the plugin says.
    pub async fn x509_ca(
        &self,
        attributes: wire::X509caAttributes,
    ) -> Result<Option<wire::X509caAttributes>, Status> {
        let request = messages::ComposeServerX509caRequest {
            attributes: Some(attributes),
        };
        let call = self
            .0
            .call(async |channel| client(channel).compose_server_x509ca(request).await);
        changed(call.await.map(|answer| answer.attributes))
    }

    /// `ComposeServerX509SVID`
    ///
    /// # Errors
    /// What the plugin says.
    pub async fn server_svid(
        &self,
        attributes: wire::X509svidAttributes,
    ) -> Result<Option<wire::X509svidAttributes>, Status> {
        let request = messages::ComposeServerX509svidRequest {
            attributes: Some(attributes),
        };
        let call = self
            .0
            .call(async |channel| client(channel).compose_server_x509svid(request).await);
        changed(call.await.map(|answer| answer.attributes))
    }

    /// `ComposeAgentX509SVID`
    ///
    /// # Errors
    /// What the plugin says.
    pub async fn agent_svid(
        &self,
        spiffe_id: String,
        spki: Vec<u8>,
        attributes: wire::X509svidAttributes,
    ) -> Result<Option<wire::X509svidAttributes>, Status> {
        let request = messages::ComposeAgentX509svidRequest {
            attributes: Some(attributes),
            spiffe_id,
            public_key: spki,
        };
        let call = self
            .0
            .call(async |channel| client(channel).compose_agent_x509svid(request).await);
        changed(call.await.map(|answer| answer.attributes))
    }

    /// `ComposeWorkloadX509SVID`
    ///
    /// # Errors
    /// What the plugin says.
    pub async fn workload_svid(
        &self,
        spiffe_id: String,
        spki: Vec<u8>,
        attributes: wire::X509svidAttributes,
    ) -> Result<Option<wire::X509svidAttributes>, Status> {
        let request = messages::ComposeWorkloadX509svidRequest {
            attributes: Some(attributes),
            spiffe_id,
            public_key: spki,
        };
        let call = self
            .0
            .call(async |channel| client(channel).compose_workload_x509svid(request).await);
        changed(call.await.map(|answer| answer.attributes))
    }

    /// `ComposeWorkloadJWTSVID`
    ///
    /// # Errors
    /// What the plugin says.
    pub async fn workload_jwt(
        &self,
        spiffe_id: String,
        claims: &Map<String, Value>,
    ) -> Result<Option<Map<String, Value>>, Status> {
        let request = messages::ComposeWorkloadJwtsvidRequest {
            attributes: Some(messages::JwtsvidAttributes {
                claims: Some(to_struct(claims)),
            }),
            spiffe_id,
        };
        let call = self
            .0
            .call(async |channel| client(channel).compose_workload_jwtsvid(request).await);
        let told = changed(call.await.map(|answer| answer.attributes))?;
        Ok(told.map(|told| from_struct(told.claims.unwrap_or_default())))
    }
}

/// A plugin need not have all calls, nor change anything in those that it has.
fn changed<T>(answer: Result<Option<T>, Status>) -> Result<Option<T>, Status> {
    match answer {
        Err(status) if status.code() == Code::Unimplemented => Ok(None),
        answer => answer,
    }
}

fn to_struct(map: &Map<String, Value>) -> Struct {
    let fields = map
        .iter()
        .map(|(name, value)| (name.clone(), to_kind(value)));
    Struct {
        fields: fields.collect::<BTreeMap<_, _>>(),
    }
}

fn to_kind(value: &Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(truth) => Kind::BoolValue(*truth),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(all) => Kind::ListValue(ListValue {
            values: all.iter().map(to_kind).collect(),
        }),
        Value::Object(map) => Kind::StructValue(to_struct(map)),
    };
    prost_types::Value { kind: Some(kind) }
}

fn from_struct(told: Struct) -> Map<String, Value> {
    let fields = told.fields.into_iter();
    fields
        .map(|(name, value)| (name, from_kind(value)))
        .collect()
}

fn from_kind(told: prost_types::Value) -> Value {
    match told.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(truth)) => Value::Bool(truth),
        Some(Kind::NumberValue(number)) => number_of(number),
        Some(Kind::StringValue(text)) => Value::String(text),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(from_kind).collect(),
        Some(Kind::StructValue(told)) => Value::Object(from_struct(told)),
    }
}

/// These messages know no whole numbers, and those who verify tokens know no times with a fraction.
fn number_of(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() < LARGEST_WHOLE {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "it is a whole number of at most 53 bits"
        )]
        let whole = number as i64;
        return Value::from(whole);
    }
    Number::from_f64(number).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_come_back_as_they_went() {
        let Value::Object(claims) = json!({
            "exp": 1_900_000_000, "aud": ["a", "b"], "share": 0.5, "deep": {"yes": true, "none": null}
        }) else {
            unreachable!()
        };
        assert_eq!(from_struct(to_struct(&claims)), claims);
        assert_eq!(number_of(f64::NAN), Value::Null);
        assert!(number_of(1e300).is_f64());
    }
}
