//! The wire of SPIFFE and SPIRE.
//!
//! The generated messages and services stand under the names of their protobuf packages: [`types`], [`server`],
//! [`workload`], [`health`]. [`Channel`] carries calls over any byte stream, [`serve`] answers them; [`download`] fetches
//! bundle documents. What the messages stand for are the plain, valid values of [`model`], with conversions both ways.

mod authority;
pub mod aws;
pub mod azure;
pub mod bundle;
mod certificate;
mod channel;
mod convert;
pub mod der;
pub mod download;
pub mod encoded;
pub mod http_client;
pub mod jwt;
pub mod model;
pub mod proxy;
mod public_key;
mod serving;
pub mod sigv4;

pub use certificate::{Certificate, described_chain};
pub use channel::{Channel, MAX_MESSAGE_BYTES};
pub use convert::{
    Invalid, entry_from_wire, entry_to_wire, selector_from_wire, spiffe_id_from_wire,
    spiffe_id_to_wire,
};
pub use public_key::{
    BadKey, Jwk, KeyKind, curve_oid, ec_spki, key_kind, openid_jwks, rsa_spki, spki_of_jwks,
};
pub use serving::{Limits, serve};

mod packages {
    #![expect(
        missing_docs,
        unreachable_pub,
        clippy::allow_attributes,
        reason = "generated; the .proto files say what there is to say"
    )]
    include!(concat!(env!("OUT_DIR"), "/packages.rs"));
}

/// Descriptions of all messages and services below: an encoded `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

#[doc(inline)]
pub use packages::grpc::health::v1 as health;
/// The SPIFFE Broker API.
#[doc(inline)]
pub use packages::spiffe::broker;
#[doc(inline)]
pub use packages::spire::api::types;

/// The server APIs, one module a service.
pub mod server {
    pub use crate::packages::spire::api::server::agent::v1 as agent;
    pub use crate::packages::spire::api::server::bundle::v1 as bundle;
    pub use crate::packages::spire::api::server::debug::v1 as debug;
    pub use crate::packages::spire::api::server::entry::v1 as entry;
    pub use crate::packages::spire::api::server::localauthority::v1 as localauthority;
    pub use crate::packages::spire::api::server::logger::v1 as logger;
    pub use crate::packages::spire::api::server::svid::v1 as svid;
    pub use crate::packages::spire::api::server::trustdomain::v1 as trustdomain;
}

/// The APIs on an agent's admin socket.
pub mod agent {
    pub use crate::packages::spire::agent::debug::v1 as debug;
    pub use crate::packages::spire::api::agent::delegatedidentity::v1 as delegatedidentity;
    pub use crate::packages::spire::api::agent::logger::v1 as logger;
}

/// Envoy's secret discovery, version 3.
pub mod envoy {
    pub use crate::packages::envoy::config::core::v3 as core;
    pub use crate::packages::envoy::extensions::transport_sockets::tls::v3 as tls;
    pub use crate::packages::envoy::service::discovery::v3 as discovery;
    pub use crate::packages::envoy::service::secret::v3 as secret;
    pub use crate::packages::envoy::r#type::v3 as version;
    pub use crate::packages::google::rpc;
}

/// How a server of this project tells its agents of changes, beside upstream's services.
pub mod changes {
    pub use crate::packages::ah::spire::v1::{
        Changed, ReportRequest, ReportResponse, WatchRequest, changes_client, changes_server,
    };
}

/// What operators ask a server of this project before they change an authority, beside upstream's services.
pub mod rotation {
    pub use crate::packages::ah::spire::v1::{
        AgentHoldings, GetAcknowledgementsRequest, GetAcknowledgementsResponse,
        RehearseX509AuthorityRequest, RehearseX509AuthorityResponse, rotation_client,
        rotation_server,
    };
}

/// What the datastore keeps as protobuf, in the formats that upstream reads and writes.
pub mod stored {
    pub use crate::packages::spire::{common, journal};
}

/// The SPIFFE Workload API.
pub mod workload {
    pub use crate::packages::{
        JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse,
        ValidateJwtsvidRequest, ValidateJwtsvidResponse, WitBundlesRequest, WitBundlesResponse,
        Witsvid, WitsvidRequest, WitsvidResponse, X509BundlesRequest, X509BundlesResponse,
        X509svid, X509svidRequest, X509svidResponse, spiffe_workload_api_client,
        spiffe_workload_api_server,
    };
}
