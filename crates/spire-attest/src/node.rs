//! Node attestation: the seam between an agent that wants in and a server that asks who it is.

use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::time::SystemTime;

use serde::{Deserialize, Deserializer};
use spiffe::SpiffeId;
use zeroize::Zeroizing;

use crate::{AttestError, Builtin, Selector};

pub mod aws_iid;
mod azure;
pub mod azure_imds;
pub mod azure_msi;
mod binary;
mod builtin;
mod cms;
mod files;
pub mod gcp_iit;
pub mod http_challenge;
pub mod join_token;
pub mod k8s;
mod messages;
pub mod sshpop;
mod template;
mod token;
pub mod tpm_devid;
pub mod x509pop;

pub use builtin::{BuiltinAgent, BuiltinConversation, BuiltinServer};

/// What an agent opens an attestation with. Some are secrets, so it is wiped when dropped and cannot be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload(Zeroizing<Vec<u8>>);

impl Payload {
    /// `bytes` as a payload, which takes over their memory.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, to be sent and nothing else.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Payload(…)")
    }
}

/// Text that is wiped when dropped and cannot be printed.
#[derive(Default)]
struct Secret(Zeroizing<String>);

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(|text| Self(Zeroizing::new(text)))
    }
}

/// The agent's half of a node attestor.
///
/// The caller sends the payload under [`AgentHalf::name`] to the server, gives each challenge to the
/// conversation, sends the answer, and stops when the server sends an SVID.
pub trait AgentHalf: Send + Sync {
    /// What answers the challenges that follow one payload.
    type Conversation: Conversation;

    /// The attestation type on the wire.
    fn name(&self) -> &str;

    /// Starts one attestation. It reads its sources again each time, so that a renewed certificate is taken.
    fn begin(
        &self,
    ) -> impl Future<Output = Result<(Payload, Self::Conversation), AttestError>> + Send;
}

/// One attestation after its payload was sent.
pub trait Conversation: Send {
    /// The answer to a challenge of the server.
    fn answer(
        &mut self,
        challenge: &[u8],
    ) -> impl Future<Output = Result<Vec<u8>, AttestError>> + Send;
}

/// The conversation of attestors whose payload says it all. It answers nothing: a server that challenges one of them
/// is no server of this protocol.
#[derive(Debug)]
pub struct NoChallenge(Builtin);

impl NoChallenge {
    pub(crate) fn of(builtin: Builtin) -> Self {
        Self(builtin)
    }
}

impl Conversation for NoChallenge {
    async fn answer(&mut self, _challenge: &[u8]) -> Result<Vec<u8>, AttestError> {
        let hint = format!(
            "{} has no challenge; check that the address is that of a SPIRE server",
            self.0
        );
        Err(AttestError::internal("server issued unexpected challenge", hint).of_builtin(self.0))
    }
}

/// What a server half judges.
#[derive(Clone, Copy)]
pub struct Claim<'a> {
    /// The agent's payload, as it came.
    pub payload: &'a [u8],
    /// The address that the agent's connection comes from, where it is known.
    pub client_ip: Option<IpAddr>,
    /// The time that certificates and tokens are judged at.
    pub now: SystemTime,
}

/// The server's half of a node attestor.
pub trait ServerHalf: Send + Sync {
    /// The attestation type on the wire, and the type of the selectors.
    fn name(&self) -> &str;

    /// Judges `claim`, asking `agent` to prove it where the attestor has challenges.
    ///
    /// # Errors
    /// An error of `agent` is given back as it is.
    fn attest(
        &self,
        claim: Claim<'_>,
        agent: &mut impl Challenge,
    ) -> impl Future<Output = Result<AttestedAgent, AttestError>> + Send;
}

/// The way back to the agent.
pub trait Challenge: Send {
    /// Sends `challenge` and waits for the answer.
    fn challenge(
        &mut self,
        challenge: Vec<u8>,
    ) -> impl Future<Output = Result<Vec<u8>, AttestError>> + Send;
}

/// An agent that proved who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttestedAgent {
    /// Its SPIFFE ID, in the server's trust domain and below `/spire/agent/`.
    pub id: SpiffeId,
    /// What else is known of it.
    pub selectors: Vec<Selector>,
    /// Whether it may attest again under the same ID. If not, the first use settles it (TOFU).
    pub can_reattest: bool,
}
