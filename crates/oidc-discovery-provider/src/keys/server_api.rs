//! `server_api { }`: the bundle of a server on this machine.

use std::path::Path;

use ah_spire_wire::server::bundle::GetBundleRequest;
use ah_spire_wire::server::bundle::bundle_client::BundleClient;
use ah_spire_wire::types::BundleMask;
use ah_spire_wire::{Channel, MAX_MESSAGE_BYTES};

use super::Key;

pub(super) async fn read(socket: &Path) -> Result<Vec<Key>, String> {
    let channel = Channel::unix(socket)
        .await
        .map_err(|error| format!("server_api: {}: {error}", socket.display()))?;
    let request = GetBundleRequest {
        output_mask: Some(BundleMask {
            jwt_authorities: true,
            ..BundleMask::default()
        }),
    };
    let bundle = BundleClient::with_origin(channel, Channel::origin())
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .get_bundle(request)
        .await
        .map_err(|status| format!("server_api: {}", status.message()))?;
    let authorities = bundle.into_inner().jwt_authorities.into_iter();
    Ok(authorities
        .filter_map(|authority| Key::new(authority.key_id, authority.public_key.into()))
        .collect())
}
