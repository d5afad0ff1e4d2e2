use std::error::Error;
use std::future::Future;
use std::time::SystemTime;

use spiffe::{SpiffeId, SpiffeIdError, TrustDomain};

use crate::node::{AttestedAgent, Challenge, Claim, ServerHalf};
use crate::{AttestError, Builtin};

/// Longer than any token can be whose SPIFFE ID is one (SPIFFE-ID §2.3), in bytes.
const LONGEST: usize = 2048;

/// What became of a token that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenUse {
    /// It was there, and in time. It is gone now.
    Taken,
    /// It was there, and its time had passed before `now`. It is gone now.
    Expired,
    /// There is none: it never was, or was used.
    Unknown,
}

/// The tokens that the server's store holds.
pub trait JoinTokens: Send + Sync {
    /// What the store fails with.
    type Error: Error + Send + Sync;

    /// Takes `token` out of the store, in one step: of any number of callers, on any number of servers, one gets
    /// [`TokenUse::Taken`].
    fn consume(
        &self,
        token: &str,
        now: SystemTime,
    ) -> impl Future<Output = Result<TokenUse, Self::Error>> + Send;
}

/// The SPIFFE ID of the agent that `token` lets in.
pub fn agent_id(trust_domain: &TrustDomain, token: &str) -> Result<SpiffeId, SpiffeIdError> {
    let segments = ["spire", "agent", Builtin::JoinToken.name(), token];
    SpiffeId::from_segments(trust_domain.clone(), &segments)
}

/// The server's half. Its texts are the ones that SPIRE's server sends.
#[derive(Debug)]
pub struct JoinTokenServer<S> {
    trust_domain: TrustDomain,
    tokens: S,
}

impl<S: JoinTokens> JoinTokenServer<S> {
    /// The half that lets agents of `tokens` into `trust_domain`.
    pub fn new(trust_domain: TrustDomain, tokens: S) -> Self {
        Self {
            trust_domain,
            tokens,
        }
    }
}

impl<S: JoinTokens> ServerHalf for JoinTokenServer<S> {
    fn name(&self) -> &str {
        Builtin::JoinToken.name()
    }

    async fn attest(
        &self,
        claim: Claim<'_>,
        _agent: &mut impl Challenge,
    ) -> Result<AttestedAgent, AttestError> {
        let token = std::str::from_utf8(claim.payload)
            .ok()
            .filter(|token| !token.is_empty() && token.len() <= LONGEST)
            .ok_or_else(unknown)?;
        let used = self.tokens.consume(token, claim.now).await;
        let used = used.map_err(|error| {
            AttestError::internal(
                format!("failed to fetch join token: {error}"),
                "see the server's log for the state of its data store",
            )
        })?;
        match used {
            TokenUse::Taken => {}
            TokenUse::Expired => {
                return Err(AttestError::invalid(
                    "join token expired",
                    "make a new one with `spire-server token generate`, with a longer -ttl if it did not last",
                ));
            }
            TokenUse::Unknown => return Err(unknown()),
        }
        let id = agent_id(&self.trust_domain, token).map_err(|error| {
            AttestError::internal(
                format!("failed to create join token ID: {error}"),
                "make tokens of letters, digits, dots, dashes and underscores",
            )
        })?;
        Ok(AttestedAgent {
            id,
            selectors: Vec::new(),
            can_reattest: false,
        })
    }
}

fn unknown() -> AttestError {
    AttestError::invalid(
        "failed to attest: join token does not exist or has already been used",
        "make a new one with `spire-server token generate`; each lets one agent in, once",
    )
}
