use std::path::PathBuf;

use spiffe::TrustDomain;

use crate::node::files::{file, wrong};
use crate::node::messages::{Bytes, nonce, read, write};
use crate::node::sshpop::certificate::Certificate;
use crate::node::sshpop::host_key::combine;
use crate::node::sshpop::key::{PublicKey, Sha1, in_line};
use crate::node::sshpop::messages::{self, AttestationData, Response};
use crate::node::sshpop::values::Value;
use crate::node::template::Template;
use crate::node::{AttestedAgent, Challenge, Claim, ServerHalf};
use crate::{AttestError, Builtin};

const POP: Builtin = Builtin::SshPop;

/// The server's settings, under the names of SPIRE's configuration files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SshPopServerConfig {
    /// The public keys of the CAs of hosts, each as a line of `authorized_keys`.
    pub cert_authorities: Vec<String>,
    /// A file with more of them, a line each.
    pub cert_authorities_path: PathBuf,
    /// Without a leading dot: the domain that host names have to be in, and that `.Hostname` is without.
    pub canonical_domain: String,
    /// The agent's path below `/spire/agent`; `/{{ .PluginName }}/{{ .Fingerprint }}` if empty.
    pub agent_path_template: String,
}

/// The server's half.
pub struct SshPopServer {
    trust_domain: TrustDomain,
    authorities: Vec<PublicKey>,
    canonical_domain: String,
    template: Template<Value>,
}

impl SshPopServer {
    /// The half that lets hosts into `trust_domain`. The CAs are read now.
    pub async fn configure(
        config: SshPopServerConfig,
        trust_domain: TrustDomain,
    ) -> Result<Self, AttestError> {
        let template = Template::configured(
            &config.agent_path_template,
            "/{{ .PluginName }}/{{ .Fingerprint }}",
            "agent svid template",
        );
        Ok(Self {
            trust_domain,
            authorities: authorities(&config).await?,
            canonical_domain: config.canonical_domain,
            template: template.map_err(|error| error.of_builtin(Builtin::SshPop))?,
        })
    }

    /// Everything about a claim that can be judged before the proof: the certificate, and the host's name.
    fn examine(&self, claim: Claim<'_>) -> Result<(Certificate, String), AttestError> {
        let invalid = |text: String| {
            AttestError::invalid(
                text,
                "the payload of sshpop is {\"Certificate\":…}, with a host certificate of OpenSSH; use an agent with the sshpop attestor",
            )
        };
        let data: AttestationData = read(claim.payload)
            .map_err(|error| invalid(format!("failed to unmarshal data: {error}")))?;
        if data.certificate.0.is_empty() {
            return Err(invalid("no certificate in response".into()));
        }
        let certificate = Certificate::read(&data.certificate.0)
            .map_err(|error| invalid(format!("failed to parse public key: {error}")))?;
        let host = certificate
            .host(&self.authorities, claim.now)
            .map_err(|untrusted| AttestError::refused(untrusted.why, untrusted.hint))?;
        let host = self.hostname(host)?.to_owned();
        Ok((certificate, host))
    }

    /// The name `principal` without `canonical_domain`.
    fn hostname<'a>(&self, principal: &'a str) -> Result<&'a str, AttestError> {
        if self.canonical_domain.is_empty() {
            return Ok(principal);
        }
        let name = principal.strip_suffix(&self.canonical_domain);
        let name = name.and_then(|name| name.strip_suffix('.'));
        name.ok_or_else(|| {
            AttestError::refused(
                format!(
                    "failed to decanonicalize hostname: cert principal is not in domain \".{}\"",
                    self.canonical_domain
                ),
                format!("the certificate is of {principal:?}; see canonical_domain on the server"),
            )
        })
    }

    fn conclude(
        &self,
        certificate: &Certificate,
        hostname: &str,
    ) -> Result<AttestedAgent, AttestError> {
        let id = self
            .template
            .agent_id(&self.trust_domain, |value| value.of(certificate, hostname));
        let id = id.map_err(|error| {
            AttestError::internal(
                format!("failed to create AgentID: {error}"),
                "choose values for agent_path_template on the server that every host's certificate has, of letters, digits, dots, dashes and underscores",
            )
        })?;
        Ok(AttestedAgent {
            id,
            selectors: Vec::new(),
            can_reattest: true,
        })
    }
}

impl ServerHalf for SshPopServer {
    fn name(&self) -> &str {
        Builtin::SshPop.name()
    }

    async fn attest(
        &self,
        claim: Claim<'_>,
        agent: &mut impl Challenge,
    ) -> Result<AttestedAgent, AttestError> {
        let told = |error: AttestError| error.of_builtin(Builtin::SshPop);
        let (certificate, hostname) = self.examine(claim).map_err(told)?;
        let own = nonce().map_err(|error| {
            told(AttestError::internal(
                format!("failed to generate nonce: {error}"),
                "see the system's log: getrandom(2) fails",
            ))
        })?;
        let challenge = write(&messages::Challenge {
            nonce: Bytes(own.clone()),
        });
        let answer = agent.challenge(challenge).await?;
        verify(&certificate, &own, &answer).map_err(told)?;
        self.conclude(&certificate, &hostname).map_err(told)
    }
}

/// Whether `answer` proves the key of `certificate` to who sent the nonce `own`.
fn verify(certificate: &Certificate, own: &[u8], answer: &[u8]) -> Result<(), AttestError> {
    let invalid =
        |text: String| AttestError::invalid(text, "use an agent with the sshpop attestor");
    let response: Response = read(answer)
        .map_err(|error| invalid(format!("failed to unmarshal challenge response: {error}")))?;
    let both = combine(own, &response.nonce.0).map_err(|error| invalid(error.into()))?;
    let signature = response.signature.unwrap_or_default();
    let verified = certificate.key.verify(&both, &signature, Sha1::Taken);
    verified.map_err(|error| {
        AttestError::refused(
            format!("failed to verify signature: {error}"),
            "the host does not hold the key of its certificate: compare host_key_path with host_cert_path on the agent",
        )
    })
}

async fn authorities(config: &SshPopServerConfig) -> Result<Vec<PublicKey>, AttestError> {
    let path = &config.cert_authorities_path;
    let mut lines = config.cert_authorities.clone();
    if !path.as_os_str().is_empty() {
        let bytes = file(POP, "cert authorities", path).await?;
        let text = String::from_utf8_lossy(&bytes);
        let found = text.lines().map(str::trim);
        let found = found.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let before = lines.len();
        lines.extend(found.map(str::to_owned));
        if lines.len() == before {
            return Err(wrong(
                POP,
                format!(
                    "failed to get cert authorities from file: no data found in file: {path:?}"
                ),
                "put the public keys of the hosts' CAs into it, a line each",
            ));
        }
    }
    if lines.is_empty() {
        return Err(wrong(
            POP,
            "missing required config value for \"cert_authorities\" or \"cert_authorities_path\"",
            "name the public keys of the hosts' CAs: cert_authorities = [\"ssh-ed25519 AAAA…\"]",
        ));
    }
    let key = |line: &String| {
        let read = in_line(line).ok_or_else(|| "no key found".to_owned());
        let read = read.and_then(|blob| PublicKey::read(&blob));
        read.map_err(|error| {
            wrong(
                POP,
                format!(
                    "failed to create cert checker: failed to parse public key {line:?}: {error}"
                ),
                "each line is the public half of a CA as ssh-keygen writes it: ssh-ed25519 AAAA…",
            )
        })
    };
    lines.iter().map(key).collect()
}
