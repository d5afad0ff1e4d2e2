use std::fmt;

use ah_identity_provider::spiffe::{Choice, Endpoint, SpiffeConfig, SpiffeProvider};
use ah_identity_provider::{PrivateKey, Provider, ProviderError, pem};
use rustls_pki_types::CertificateDer;

use crate::node::files::{certificates, file, unreadable, wrong};
use crate::node::messages::{Bytes, read, write};
use crate::node::x509pop::certificate::Certificate;
use crate::node::x509pop::config::X509PopAgentConfig;
use crate::node::x509pop::messages::{AttestationData, Challenge};
use crate::node::x509pop::proof::Prover;
use crate::node::{AgentHalf, Conversation, Payload};
use crate::{AttestError, Builtin};

const POP: Builtin = Builtin::X509Pop;

/// The agent's half.
#[derive(Clone, Debug)]
pub struct X509PopAgent {
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Files(X509PopAgentConfig),
    WorkloadApi(Endpoint),
}

impl X509PopAgent {
    /// The half that proves what `config` names. Files are read once, so that what is wrong with them is told now.
    pub async fn configure(config: X509PopAgentConfig) -> Result<Self, AttestError> {
        if !config.spiffe_endpoint_socket.is_empty() {
            let endpoint = config.spiffe_endpoint_socket.parse();
            let endpoint = endpoint.map_err(|error| {
                wrong(
                    POP,
                    format!("spiffe_endpoint_socket: {error}"),
                    "write unix:///PATH or tcp://ADDRESS:PORT",
                )
            })?;
            return Ok(Self {
                source: Source::WorkloadApi(endpoint),
            });
        }
        for (key, path) in [
            ("private_key_path", &config.private_key_path),
            ("certificate_path", &config.certificate_path),
        ] {
            if path.as_os_str().is_empty() {
                return Err(wrong(
                    POP,
                    format!("{key} is required"),
                    "set private_key_path and certificate_path, or spiffe_endpoint_socket",
                ));
            }
        }
        let agent = Self {
            source: Source::Files(config),
        };
        agent.material().await?;
        Ok(agent)
    }

    async fn material(&self) -> Result<Material, AttestError> {
        match &self.source {
            Source::Files(config) => from_files(config).await,
            Source::WorkloadApi(endpoint) => from_workload_api(endpoint).await,
        }
    }
}

impl AgentHalf for X509PopAgent {
    type Conversation = X509PopConversation;

    fn name(&self) -> &str {
        Builtin::X509Pop.name()
    }

    async fn begin(&self) -> Result<(Payload, X509PopConversation), AttestError> {
        let Material { chain, prover } = self.material().await?;
        let certificates = chain.iter().map(|der| Bytes(der.to_vec())).collect();
        let payload = write(&AttestationData {
            certificates: Some(certificates),
        });
        let conversation = X509PopConversation {
            prover: Some(prover),
        };
        Ok((Payload::new(payload), conversation))
    }
}

/// Answers the one challenge.
pub struct X509PopConversation {
    prover: Option<Prover>,
}

impl fmt::Debug for X509PopConversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("X509PopConversation(…)")
    }
}

impl Conversation for X509PopConversation {
    async fn answer(&mut self, challenge: &[u8]) -> Result<Vec<u8>, AttestError> {
        let fault = |text: String| {
            let hint =
                "check that the address is that of a SPIRE server which has the x509pop attestor";
            AttestError::internal(text, hint).of_builtin(Builtin::X509Pop)
        };
        // Nothing but the two nonces is ever signed, and that once.
        let prover = self.prover.take();
        let prover = prover.ok_or_else(|| fault("server sent a second challenge".into()))?;
        let challenge: Challenge = read(challenge)
            .map_err(|error| fault(format!("unable to unmarshal challenge: {error}")))?;
        let response = prover.respond(&challenge);
        let response = response
            .map_err(|error| fault(format!("failed to calculate challenge response: {error}")))?;
        Ok(write(&response))
    }
}

/// A chain, leaf first, and the key of the leaf.
struct Material {
    chain: Vec<CertificateDer<'static>>,
    prover: Prover,
}

impl Material {
    fn new(
        chain: Vec<CertificateDer<'static>>,
        key: &PrivateKey,
        told: impl Fn(&str) -> AttestError,
    ) -> Result<Self, AttestError> {
        let leaf = chain.first().map(|der| Certificate::read(der));
        let leaf = leaf.and_then(Result::ok).and_then(|leaf| leaf.key);
        let public = leaf.ok_or_else(|| {
            told("the first certificate has a key that cannot be proven; use RSA, or ECDSA on P-256, P-384 or P-521")
        })?;
        let prover = Prover::new(key).ok_or_else(|| {
            told("the private key cannot be read, or is none of RSA and ECDSA on P-256, P-384 or P-521")
        })?;
        if !prover.matches(&public) {
            return Err(told("private key does not match the first certificate"));
        }
        Ok(Self { chain, prover })
    }
}

async fn from_files(config: &X509PopAgentConfig) -> Result<Material, AttestError> {
    let mut chain = certificates(POP, "certificate", &config.certificate_path).await?;
    let key_path = &config.private_key_path;
    let key = file(POP, "private key", key_path).await?;
    let key = pem::private_key(&key, None);
    let key = key.map_err(|error| unreadable(POP, "private key", key_path, error))?;
    if !config.intermediates_path.as_os_str().is_empty() {
        chain.extend(
            certificates(POP, "intermediate certificates", &config.intermediates_path).await?,
        );
    }
    Material::new(chain, &key, |why| {
        let (certificate, key) = (config.certificate_path.display(), key_path.display());
        wrong(
            POP,
            format!("unable to load keypair: {why}"),
            format!(
                "compare `openssl x509 -in {certificate} -noout -pubkey` with `openssl pkey -in {key} -pubout`"
            ),
        )
    })
}

async fn from_workload_api(endpoint: &Endpoint) -> Result<Material, AttestError> {
    let mut provider = SpiffeProvider::new(SpiffeConfig {
        endpoint: endpoint.clone(),
        choice: Choice::default(),
    });
    let identity = provider.next().await.map_err(|error| {
        let mut explained = match error {
            ProviderError::Retry(e) | ProviderError::Operator(e) | ProviderError::Fatal(e) => e,
        };
        explained.text = format!("unable to fetch SVID from workload API: {}", explained.text);
        AttestError::Unavailable(explained).of_builtin(Builtin::X509Pop)
    })?;
    Material::new(identity.chain().to_vec(), identity.key(), |why| {
        wrong(
            POP,
            format!("unable to use the SVID of the workload API {endpoint}: {why}"),
            "give its registration entry's issuer an RSA or ECDSA key type",
        )
    })
}
