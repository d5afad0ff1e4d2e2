//! From an identity to TLS: configurations built once per generation, verification, peer policy, accept, connect.

mod accept;
mod alert;
mod clients;
mod configs;
mod connect;
mod fault;
mod first_record;
mod handshake;
mod key_exchange;
mod peer;
mod policy;
mod server_stream;
mod signatures;
mod slots;
mod spiffe_client;
mod spiffe_server;
mod svid;
mod trust;
mod uri_constraints;
mod verify;
mod vet;
mod web_client;

pub use accept::{AcceptObserver, Accepted, HandshakeLimits, Handshakes, Rejection, bind, serve};
pub use alert::{code_of_alert, explain_io};
pub use clients::{optional_clients, required_clients};
pub use configs::{ClientConfigs, ClientTls, Expect, ServerConfigs, ServerTls, https_config};
pub use connect::{Connected, ExecutorStream, Fate, Trace, connect, connect_traced, reach};
pub use fault::Concern;
pub use key_exchange::key_exchanges;
pub use peer::{PeerIdentity, PeerName, Refusal};
pub use policy::{NearestRule, Policy, PolicyCell, Revocations, SanRules};
pub use server_stream::ServerStream;
pub use spiffe_client::{HandshakeFault, OwnKey, ServerTrust, SpiffeClient, certified};
pub use spiffe_server::spiffe_server;
pub use svid::{Severity, SvidFault, parse_spiffe_id, svid_faults};
pub use verify::{
    ExpectedServer, Trust, VerifyError, verify_access_point, verify_executor, verify_spiffe_server,
};
pub use vet::{Examined, IdentityVet, Role};
pub use web_client::{WebClient, WebFault};
