//! The fleet: the protocol, the access point, the executor, the registry with its store, and the audit log.

pub mod access_point;
pub mod audit;
mod codec;
pub mod executor;
mod hello;
pub mod moment;
mod refusal;
mod socket;
pub mod store;

/// The fleet protocol as generated from `proto/ah/fleet/v1/fleet.proto`.
pub mod proto {
    #![expect(missing_docs, reason = "the .proto documents its own fields")]
    #![expect(
        clippy::allow_attributes,
        reason = "generated code carries allow attributes of its own"
    )]
    tonic::include_proto!("ah.fleet.v1");
}

pub use codec::MAX_MESSAGE_BYTES;
pub use hello::{MAX_LABEL_KEY_BYTES, MAX_LABEL_VALUE_BYTES, MAX_LABELS, MAX_NAME_BYTES, PROTOCOL};
