//! What delegates are told. Messages with keys and tokens are made in buffers that are wiped.

use std::time::SystemTime;

use ah_spire_wire::agent::delegatedidentity::FetchJwtsviDsResponse;
use ah_spire_wire::{spiffe_id_to_wire, types};
use bytes::Bytes;
use prost::Message;
use zeroize::Zeroizing;

use crate::bundles::id_of;
use crate::identities::{JwtIdentity, WorkloadUpdate, X509Identity};
use crate::wire::{Fields, framed};

/// `SubscribeToX509SVIDsResponse`
pub(super) fn x509_svids(update: &WorkloadUpdate) -> Bytes {
    let theirs = update.identities.iter();
    let theirs = theirs.filter(|identity| !identity.entry.admin && !identity.entry.downstream);
    let svids: Vec<_> = theirs.map(|identity| with_key(identity)).collect();
    let federated: Vec<_> = update.federated.keys().map(id_of).collect();
    let svids = svids.iter().map(|svid| (1, svid.bytes()));
    let federated = federated.iter().map(|id| (2, id.as_bytes()));
    framed(Fields::of(&svids.chain(federated).collect::<Vec<_>>()).bytes())
}

/// `X509SVIDWithKey`
fn with_key(identity: &X509Identity) -> Fields {
    let chain = identity.chain.iter();
    let svid = types::X509svid {
        cert_chain: chain.map(|der| Bytes::copy_from_slice(der)).collect(),
        id: Some(spiffe_id_to_wire(&identity.entry.spiffe_id)),
        expires_at: unix(identity.not_after),
        hint: identity.entry.hint.clone(),
    };
    Fields::of(&[(1, &svid.encode_to_vec()), (2, &identity.key)])
}

/// `FetchJWTSVIDsResponse`
pub(super) fn jwt_svids(svids: Vec<JwtIdentity>) -> Bytes {
    let svids = svids.into_iter().map(|svid| types::Jwtsvid {
        token: svid.token,
        id: Some(spiffe_id_to_wire(&svid.spiffe_id)),
        expires_at: unix(svid.expires_at),
        issued_at: unix(svid.issued_at),
        hint: svid.hint,
    });
    let response = FetchJwtsviDsResponse {
        svids: svids.collect(),
    };
    framed(&Zeroizing::new(response.encode_to_vec()))
}

/// Seconds since 1970.
fn unix(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}
