use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use spiffe::{SpiffeId, TrustDomain};

use crate::node::files::{self, wrong};
use crate::node::messages::{Bytes, nonce, read, write};
use crate::node::tpm_devid::messages::{AttestationRequest, ChallengeRequest, ChallengeResponse};
use crate::node::tpm_devid::residency::{Residency, activated, key_of};
use crate::node::x509pop::certificate::{Certificate, fingerprint};
use crate::node::x509pop::chain::{Root, signers};
use crate::node::{AttestedAgent, Challenge, Claim, ServerHalf};
use crate::{AttestError, Builtin, Selector};

/// The most certificates in a payload's chain. Operators have one or two CAs between theirs and the root.
const MAX_CHAIN: usize = 8;

const DEVID: Builtin = Builtin::TpmDevId;

/// The server's settings, under the names of SPIRE's configuration files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TpmDevIdServerConfig {
    /// PEM of the CAs of LDevID certificates. Required.
    pub devid_ca_path: PathBuf,
    /// PEM of the CAs of the TPMs' makers. Required.
    pub endorsement_ca_path: PathBuf,
}

/// The server's half.
pub struct TpmDevIdServer {
    trust_domain: TrustDomain,
    devid_roots: Vec<Root>,
    endorsement_roots: Vec<Root>,
}

/// A claim that is trusted, with keys that are still to be proven.
struct Examined {
    leaf: Certificate,
    /// Fingerprints of the certificates above the leaf.
    signers: Vec<String>,
    residency: Residency,
}

impl TpmDevIdServer {
    /// The half that lets nodes into `trust_domain`. The roots are read now.
    pub async fn configure(
        config: TpmDevIdServerConfig,
        trust_domain: TrustDomain,
    ) -> Result<Self, AttestError> {
        let devid = roots("devid_ca_path", "DevID", &config.devid_ca_path);
        let endorsement = &config.endorsement_ca_path;
        Ok(Self {
            trust_domain,
            devid_roots: devid.await?,
            endorsement_roots: roots("endorsement_ca_path", "endorsement", endorsement).await?,
        })
    }

    fn examine(&self, claim: Claim<'_>) -> Result<Examined, AttestError> {
        let invalid = |text: String| {
            AttestError::invalid(
                text,
                "the payload of tpm_devid is {\"DevIDCert\":[…],…}; use an agent with the tpm_devid attestor",
            )
        };
        let data: AttestationRequest = read(claim.payload)
            .map_err(|error| invalid(format!("unable to unmarshall attestation data: {error}")))?;
        let chain = data.devid_cert.as_deref().unwrap_or_default();
        let chain: Vec<_> = chain
            .iter()
            .map(|der| CertificateDer::from(der.0.as_slice()))
            .collect();
        let der = chain
            .first()
            .ok_or_else(|| invalid("no DevID certificate to attest".into()))?;
        if chain.len() > MAX_CHAIN {
            return Err(invalid(format!(
                "{} DevID certificates, more than {MAX_CHAIN}",
                chain.len()
            )));
        }
        let leaf = Certificate::read(der)
            .map_err(|error| invalid(format!("unable to parse DevID certificate: {error}")))?;
        let signers = signers(&chain, &self.devid_roots, claim.now).map_err(|untrusted| {
            AttestError::refused(
                format!(
                    "unable to verify DevID signature: verification failed: {}",
                    untrusted.why
                ),
                "renew the node's LDevID certificate, or add its CA to devid_ca_path on the server and those between to devid_cert_path on the agent",
            )
        })?;
        let key = key_of(der, &leaf);
        let key = key.ok_or_else(|| {
            invalid(format!(
                "unsupported private key type {} of the DevID certificate",
                leaf.facts.key
            ))
        })?;
        let roots = &self.endorsement_roots;
        Ok(Examined {
            residency: Residency::judge(&data, &key, roots, claim.now)?,
            signers: signers.iter().map(|der| fingerprint(der)).collect(),
            leaf,
        })
    }

    fn conclude(&self, examined: &Examined) -> Result<AttestedAgent, AttestError> {
        let name = Builtin::TpmDevId.name();
        let leaf = &examined.leaf;
        let id = format!(
            "spiffe://{}/spire/agent/{name}/{}",
            self.trust_domain, leaf.fingerprint
        );
        let id = SpiffeId::new(id).map_err(|error| {
            AttestError::internal(
                format!("failed to create agent ID: {error}"),
                "check trust_domain",
            )
        })?;
        let mut selectors = Vec::new();
        let mut add = |value| selectors.push(Selector::new(name, value));
        for (cn, of) in [(&leaf.subject, "subject"), (&leaf.issuer, "issuer")] {
            if !cn.common_name.is_empty() {
                add(format!("{of}:cn:{}", cn.common_name));
            }
        }
        for signer in &examined.signers {
            add(format!("ca:fingerprint:{signer}"));
        }
        Ok(AttestedAgent {
            id,
            selectors,
            can_reattest: true,
        })
    }
}

impl ServerHalf for TpmDevIdServer {
    fn name(&self) -> &str {
        Builtin::TpmDevId.name()
    }

    async fn attest(
        &self,
        claim: Claim<'_>,
        agent: &mut impl Challenge,
    ) -> Result<AttestedAgent, AttestError> {
        let told = |error: AttestError| error.of_builtin(Builtin::TpmDevId);
        let examined = self.examine(claim).map_err(told)?;
        let nonce = nonce().map_err(|error| {
            told(AttestError::internal(
                format!("unable to generate challenge: {error}"),
                "see the system's log: getrandom(2) fails",
            ))
        })?;
        let (secret, enclosed) = examined.residency.challenge().map_err(told)?;
        let challenge = write(&ChallengeRequest {
            devid: Bytes(nonce.clone()),
            activation: Some(enclosed),
        });
        let answer = agent.challenge(challenge).await?;
        let answer: ChallengeResponse = read(&answer).map_err(|error| {
            told(AttestError::invalid(
                format!("unable to unmarshall challenges response: {error}"),
                "use an agent with the tpm_devid attestor",
            ))
        })?;
        let key = examined.leaf.key.as_ref();
        if !key.is_some_and(|key| key.signed(&nonce, &answer.devid.0)) {
            return Err(told(AttestError::refused(
                "devID challenge verification failed: the signature is not of the DevID certificate's key",
                "compare devid_cert_path with devid_priv_path and devid_pub_path on the agent",
            )));
        }
        activated(&secret, &answer.activation.0).map_err(told)?;
        self.conclude(&examined).map_err(told)
    }
}

async fn roots(key: &str, what: &str, path: &Path) -> Result<Vec<Root>, AttestError> {
    if path.as_os_str().is_empty() {
        return Err(wrong(
            DEVID,
            format!("{key} is required"),
            format!("name a PEM file with the CAs: {key} = \"/etc/spire/{what}-cas.pem\""),
        ));
    }
    files::roots(DEVID, &format!("{what} trust bundle"), path).await
}
