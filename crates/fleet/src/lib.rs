//! The fleet: the protocol, the access point, the executor, the registry with its store, and the audit log.

pub mod audit;
mod codec;
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
