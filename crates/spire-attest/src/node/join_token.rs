//! `join_token`: whoever has the token first is the agent that it was made for.
//!
//! The payload is the token itself and there are no challenges. A token works once, and the agent cannot attest
//! again: when its SVID has ended it needs a new token.

mod agent;
mod server;

pub use agent::{JoinTokenAgent, Token};
pub use server::{JoinTokenServer, JoinTokens, TokenUse, agent_id};
