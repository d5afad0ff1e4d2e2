//! Requests as a policy sees them: upstream hands its own messages to `encoding/json` of Go. So fields have the names of
//! the `.proto` files, enums are numbers, bytes are base64, and what has its default is left out. A `oneof` stands under
//! a name in capitals, and is `null` where nothing was chosen.

use std::collections::HashMap;

use ah_spire_wire::DESCRIPTORS;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost_reflect::{
    DescriptorPool, DynamicMessage, MapKey, MessageDescriptor, ReflectMessage, Value,
};
use serde_json::{Map, Value as Json};

/// The request's type of each method that has one request and one answer, by path.
pub(super) struct Requests(HashMap<String, MessageDescriptor>);

impl Requests {
    /// Of all services that there are.
    pub(super) fn new() -> Result<Self, String> {
        let pool = DescriptorPool::decode(DESCRIPTORS).map_err(|error| error.to_string())?;
        let methods = pool.services().flat_map(|service| {
            let methods: Vec<_> = service.methods().collect();
            let name = service.full_name().to_owned();
            methods
                .into_iter()
                .filter(|method| !method.is_client_streaming() && !method.is_server_streaming())
                .map(move |method| (format!("/{name}/{}", method.name()), method.input()))
        });
        Ok(Self(methods.collect()))
    }

    /// Whether the request of the method at `path` is shown to policies.
    pub(super) fn is_shown(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    /// The encoded `message` for the method at `path`; `null` where its request is not shown.
    pub(super) fn read(&self, path: &str, message: &[u8]) -> Result<Json, String> {
        let Some(kind) = self.0.get(path) else {
            return Ok(Json::Null);
        };
        let message = DynamicMessage::decode(kind.clone(), message);
        let message = message.map_err(|error| error.to_string())?;
        Ok(Json::Object(fields(&message)))
    }
}

fn fields(message: &DynamicMessage) -> Map<String, Json> {
    let kind = message.descriptor();
    let mut all = Map::new();
    let real = |oneof: &prost_reflect::OneofDescriptor| !oneof.is_synthetic();
    for field in kind.fields() {
        if field.containing_oneof().filter(real).is_none() && message.has_field(&field) {
            all.insert(field.name().to_owned(), value(&message.get_field(&field)));
        }
    }
    for oneof in kind.oneofs().filter(real) {
        let chosen = oneof.fields().find(|field| message.has_field(field));
        let chosen = chosen.map(|field| {
            let value = value(&message.get_field(&field));
            Json::Object([(go_name(field.name()), value)].into_iter().collect())
        });
        all.insert(go_name(oneof.name()), chosen.unwrap_or_default());
    }
    all
}

fn value(value: &Value) -> Json {
    match value {
        Value::Bool(it) => (*it).into(),
        Value::I32(it) => (*it).into(),
        Value::I64(it) => (*it).into(),
        Value::U32(it) => (*it).into(),
        Value::U64(it) => (*it).into(),
        Value::F32(it) => (*it).into(),
        Value::F64(it) => (*it).into(),
        Value::String(it) => it.as_str().into(),
        Value::Bytes(it) => STANDARD.encode(it).into(),
        Value::EnumNumber(it) => (*it).into(),
        Value::Message(it) => Json::Object(fields(it)),
        Value::List(all) => all.iter().map(self::value).collect(),
        Value::Map(all) => {
            let all = all.iter();
            Json::Object(all.map(|(name, it)| (key(name), self::value(it))).collect())
        }
    }
}

fn key(key: &MapKey) -> String {
    match key {
        MapKey::Bool(it) => it.to_string(),
        MapKey::I32(it) => it.to_string(),
        MapKey::I64(it) => it.to_string(),
        MapKey::U32(it) => it.to_string(),
        MapKey::U64(it) => it.to_string(),
        MapKey::String(it) => it.clone(),
    }
}

/// `bundle_endpoint_profile` as the generated code for Go spells it: `BundleEndpointProfile`.
fn go_name(name: &str) -> String {
    let words = name.split('_').map(|word| {
        let mut letters = word.chars();
        let first = letters.next().map(|first| first.to_ascii_uppercase());
        first.into_iter().chain(letters).collect::<String>()
    });
    words.collect()
}
