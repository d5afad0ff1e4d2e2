//! `workload_api { }`: the JWT bundle that an agent gives this process.

use std::path::Path;

use ah_spire_wire::workload::JwtBundlesRequest;
use ah_spire_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use ah_spire_wire::{Channel, MAX_MESSAGE_BYTES, spki_of_jwks};
use serde_json::Value;
use spiffe::TrustDomain;
use tonic::Request;
use tonic::metadata::MetadataValue;

use super::Key;

pub(super) async fn read(socket: &Path, domain: &TrustDomain) -> Result<Vec<Key>, String> {
    let channel = Channel::unix(socket)
        .await
        .map_err(|error| format!("workload_api: {}: {error}", socket.display()))?;
    let mut request = Request::new(JwtBundlesRequest {});
    // SPIFFE Workload Endpoint §6
    let secured = MetadataValue::from_static("true");
    request.metadata_mut().insert("workload.spiffe.io", secured);
    let told = |status: tonic::Status| format!("workload_api: {}", status.message());
    let mut answers = SpiffeWorkloadApiClient::with_origin(channel, Channel::origin())
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .fetch_jwt_bundles(request)
        .await
        .map_err(told)?
        .into_inner();
    let first = answers.message().await.map_err(told)?;
    let mut bundles = first.ok_or("workload_api: the stream ended")?.bundles;
    let document = bundles
        .remove(&format!("spiffe://{domain}"))
        .ok_or_else(|| {
            format!("workload_api: no bundle of trust domain {domain} in the response")
        })?;
    let set: Value = serde_json::from_slice(&document)
        .map_err(|error| format!("workload_api: the bundle of {domain} is no JWK set: {error}"))?;
    if !set.get("keys").is_some_and(Value::is_array) {
        return Err(format!(
            "workload_api: the bundle of {domain} is no JWK set: it has no keys"
        ));
    }
    let keys = spki_of_jwks(&set).into_iter();
    Ok(keys.filter_map(|(kid, spki)| Key::new(kid, spki)).collect())
}
