use std::fmt;

use zeroize::Zeroizing;

use crate::node::{AgentHalf, NoChallenge, Payload};
use crate::{AttestError, Builtin};

/// A join token. It is wiped when dropped and cannot be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Zeroizing<String>);

impl Token {
    /// `text` as a token, without white space around it, such as the end of a file's line.
    ///
    /// # Errors
    /// [`AttestError::Invalid`] when nothing is left.
    pub fn new(text: &Zeroizing<String>) -> Result<Self, AttestError> {
        let token = text.trim();
        if token.is_empty() {
            return Err(not_provided());
        }
        Ok(Self(Zeroizing::new(token.to_owned())))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// The agent's half.
#[derive(Debug)]
pub struct JoinTokenAgent {
    token: Option<Token>,
}

impl JoinTokenAgent {
    /// The half that sends `token`. Without one it can be configured, as upstream's can, and says at the first
    /// attestation what is missing.
    pub fn new(token: Option<Token>) -> Self {
        Self { token }
    }
}

impl AgentHalf for JoinTokenAgent {
    type Conversation = NoChallenge;

    fn name(&self) -> &str {
        Builtin::JoinToken.name()
    }

    async fn begin(&self) -> Result<(Payload, NoChallenge), AttestError> {
        let token = self.token.as_ref().ok_or_else(not_provided)?;
        let payload = Payload::new(token.0.as_bytes().to_vec());
        Ok((payload, NoChallenge::of(Builtin::JoinToken)))
    }
}

fn not_provided() -> AttestError {
    AttestError::invalid(
        "join token was not provided",
        "make one with `spire-server token generate` and give it with -joinToken, `join_token` or `join_token_file`",
    )
    .of_builtin(Builtin::JoinToken)
}
