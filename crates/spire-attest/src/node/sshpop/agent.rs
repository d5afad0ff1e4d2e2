use std::fmt;
use std::path::{Path, PathBuf};

use crate::node::files::{file, wrong};
use crate::node::messages::{Bytes, nonce, read, write};
use crate::node::sshpop::certificate::Certificate;
use crate::node::sshpop::host_key::{HostKey, combine};
use crate::node::sshpop::key::in_line;
use crate::node::sshpop::messages::{AttestationData, Challenge, Response};
use crate::node::{AgentHalf, Conversation, Payload};
use crate::{AttestError, Builtin};

const KEY_PATH: &str = "/etc/ssh/ssh_host_rsa_key";
const CERT_PATH: &str = "/etc/ssh/ssh_host_rsa_key-cert.pub";

const POP: Builtin = Builtin::SshPop;

/// The agent's settings, under the names of SPIRE's configuration files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SshPopAgentConfig {
    /// The host's private key; `/etc/ssh/ssh_host_rsa_key` if empty.
    pub host_key_path: PathBuf,
    /// Its certificate; `/etc/ssh/ssh_host_rsa_key-cert.pub` if empty.
    pub host_cert_path: PathBuf,
}

/// The agent's half.
#[derive(Clone, Debug)]
pub struct SshPopAgent(SshPopAgentConfig);

impl SshPopAgent {
    /// The half that proves what `config` names. Files are read once, so that what is wrong with them is told now.
    pub async fn configure(mut config: SshPopAgentConfig) -> Result<Self, AttestError> {
        for (path, default) in [
            (&mut config.host_key_path, KEY_PATH),
            (&mut config.host_cert_path, CERT_PATH),
        ] {
            if path.as_os_str().is_empty() {
                *path = default.into();
            }
        }
        let agent = Self(config);
        agent.material().await?;
        Ok(agent)
    }

    /// The certificate's bytes, and the key that is in it.
    async fn material(&self) -> Result<(Vec<u8>, HostKey), AttestError> {
        let (key_path, cert_path) = (&self.0.host_key_path, &self.0.host_cert_path);
        let text = file(POP, "host key", key_path).await?;
        let key = HostKey::read(&text).map_err(|error| unusable("host key", key_path, error))?;
        let text = file(POP, "host cert", cert_path).await?;
        let unusable = |error| unusable("host cert", cert_path, error);
        let text = std::str::from_utf8(&text).map_err(|_| unusable("it is no text".into()))?;
        let certificate = in_line(text).ok_or_else(|| unusable("it holds no key".into()))?;
        let read = Certificate::read(&certificate).map_err(unusable)?;
        if read.key != key.public() {
            let (key, certificate) = (key_path.display(), cert_path.display());
            return Err(wrong(
                POP,
                format!("the host key {key} is not the one in the certificate {certificate}"),
                format!("compare `ssh-keygen -l -f {key}` with `ssh-keygen -l -f {certificate}`"),
            ));
        }
        Ok((certificate, key))
    }
}

impl AgentHalf for SshPopAgent {
    type Conversation = SshPopConversation;

    fn name(&self) -> &str {
        Builtin::SshPop.name()
    }

    async fn begin(&self) -> Result<(Payload, SshPopConversation), AttestError> {
        let (certificate, key) = self.material().await?;
        let payload = write(&AttestationData {
            certificate: Bytes(certificate),
        });
        Ok((Payload::new(payload), SshPopConversation(Some(key))))
    }
}

/// Answers the one challenge.
pub struct SshPopConversation(Option<HostKey>);

impl fmt::Debug for SshPopConversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SshPopConversation(…)")
    }
}

impl Conversation for SshPopConversation {
    async fn answer(&mut self, challenge: &[u8]) -> Result<Vec<u8>, AttestError> {
        let fault = |text: String| {
            let hint =
                "check that the address is that of a SPIRE server which has the sshpop attestor";
            AttestError::internal(text, hint).of_builtin(Builtin::SshPop)
        };
        // Nothing but the digest of two nonces is ever signed, and that once.
        let key = self.0.take();
        let key = key.ok_or_else(|| fault("server sent a second challenge".into()))?;
        let challenge: Challenge = read(challenge)
            .map_err(|error| fault(format!("failed to unmarshal challenge request: {error}")))?;
        let own = nonce().map_err(|error| fault(format!("failed to generate nonce: {error}")))?;
        let both = combine(&challenge.nonce.0, &own).map_err(|error| fault(error.into()))?;
        let signature = key
            .sign(&both)
            .map_err(|error| fault(format!("failed to sign data: {error}")))?;
        Ok(write(&Response {
            nonce: Bytes(own),
            signature: Some(signature),
        }))
    }
}

fn unusable(what: &str, path: &Path, error: String) -> AttestError {
    let path = path.display();
    wrong(
        POP,
        format!("failed to get cert and signer from pem: {what} {path}: {error}"),
        "host_key_path is a file of `ssh-keygen`, and host_cert_path what `ssh-keygen -s CA -h …` made of its public half",
    )
}
