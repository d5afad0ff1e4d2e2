use std::collections::BTreeMap;
use std::error::Error;
use std::future::Future;
use std::net::IpAddr;

use rustls_pki_types::CertificateDer;
use spiffe::{SpiffeId, TrustDomain};

use crate::node::files::{self, wrong};
use crate::node::messages::{read, write};
use crate::node::template::Template;
use crate::node::x509pop::certificate::{Certificate, fingerprint};
use crate::node::x509pop::chain::{Root, signers};
use crate::node::x509pop::config::X509PopServerConfig;
use crate::node::x509pop::messages::{self, AttestationData, Response};
use crate::node::x509pop::values::{Value, Values};
use crate::node::{AttestedAgent, Challenge, Claim, ServerHalf};
use crate::{AttestError, Builtin, Selector};

const POP: Builtin = Builtin::X509Pop;
const EXTERNAL_PKI: &str = "external_pki";
const SPIFFE: &str = "spiffe";

/// Where the CA certificates of the server's own trust domain come from, for mode `spiffe`.
pub trait Authorities: Send + Sync {
    /// What it fails with.
    type Error: Error + Send + Sync;

    /// The X.509 authorities of the server's bundle as it is now.
    fn x509_authorities(
        &self,
    ) -> impl Future<Output = Result<Vec<CertificateDer<'static>>, Self::Error>> + Send;
}

/// The server's half.
pub struct X509PopServer<A> {
    trust_domain: TrustDomain,
    trust: Trust<A>,
    template: Template<Value>,
    max_intermediates: usize,
    max_rsa_bits: usize,
    verify_client_ip: bool,
}

enum Trust<A> {
    Roots(Vec<Root>),
    Own { authorities: A, prefix: String },
}

impl<A: Authorities> X509PopServer<A> {
    /// The half that lets nodes into `trust_domain`. The roots of mode `external_pki` are read now.
    pub async fn configure(
        config: X509PopServerConfig,
        trust_domain: TrustDomain,
        authorities: A,
    ) -> Result<Self, AttestError> {
        let mut paths: Vec<_> = config.ca_bundle_paths;
        if !config.ca_bundle_path.as_os_str().is_empty() {
            if !paths.is_empty() {
                return Err(wrong(
                    POP,
                    "only one of ca_bundle_path or ca_bundle_paths can be configured, not both",
                    "put all files into ca_bundle_paths",
                ));
            }
            paths.push(config.ca_bundle_path);
        }
        let (trust, default_template) = match config.mode.as_str() {
            "" | EXTERNAL_PKI => {
                let template = "/{{ .PluginName }}/{{ .Fingerprint }}";
                (Trust::Roots(roots(&paths).await?), template)
            }
            SPIFFE if paths.is_empty() => {
                let mut prefix = config.spiffe_prefix.unwrap_or("/spire-exchange/".into());
                if !prefix.ends_with('/') {
                    prefix.push('/');
                }
                let template = "/{{ .PluginName }}/{{ .SVIDPathTrimmed }}";
                (
                    Trust::Own {
                        authorities,
                        prefix,
                    },
                    template,
                )
            }
            SPIFFE => {
                return Err(wrong(
                    POP,
                    "you can not use ca_bundle_path or ca_bundle_paths in spiffe mode",
                    "leave them out: the server's own trust bundle counts; or set mode = \"external_pki\"",
                ));
            }
            _ => {
                return Err(wrong(
                    POP,
                    "mode can only be either spiffe or external_pki",
                    "set mode = \"external_pki\", or leave it out",
                ));
            }
        };
        let called = "agent svid template";
        let template = Template::configured(&config.agent_path_template, default_template, called)
            .map_err(|error| error.of_builtin(Builtin::X509Pop))?;
        Ok(Self {
            trust_domain,
            trust,
            template,
            max_intermediates: limit("max_intermediates", config.max_intermediates, 4)?,
            max_rsa_bits: limit("max_rsa_key_size", config.max_rsa_key_size, 8192)?,
            verify_client_ip: config.verify_client_ip,
        })
    }

    /// Everything about a claim that can be judged before the proof.
    async fn examine(&self, claim: Claim<'_>) -> Result<Examined, AttestError> {
        let data: AttestationData = read(claim.payload).map_err(|error| {
            AttestError::invalid(
                format!("failed to unmarshal data: {error}"),
                "the payload of x509pop is {\"certificates\":[…]}; use an agent with the x509pop attestor",
            )
        })?;
        let chain = data.certificates.unwrap_or_default();
        let chain: Vec<_> = chain
            .into_iter()
            .map(|der| CertificateDer::from(der.0))
            .collect();
        let leaf = self.read_chain(&chain)?;
        let roots;
        let roots = match &self.trust {
            Trust::Roots(roots) => roots,
            Trust::Own { authorities, .. } => {
                roots = own_roots(authorities).await?;
                &roots
            }
        };
        let signers = signers(&chain, roots, claim.now).map_err(|untrusted| {
            let text = format!("certificate verification failed: {}", untrusted.why);
            AttestError::refused(text, untrusted.hint)
        })?;
        if self.verify_client_ip {
            verify_client_ip(&leaf, claim.client_ip)?;
        }
        Ok(Examined {
            leaf,
            signers: signers.iter().map(|der| fingerprint(der)).collect(),
        })
    }

    /// Reads every certificate, within the limits, and gives the first.
    fn read_chain(&self, chain: &[CertificateDer<'_>]) -> Result<Certificate, AttestError> {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Err(AttestError::invalid(
                "no certificate to attest",
                "set certificate_path on the agent",
            ));
        };
        if intermediates.len() > self.max_intermediates {
            return Err(AttestError::invalid(
                "too many intermediate certificates",
                format!(
                    "{} came and {} are allowed: send only those between leaf and root, or raise max_intermediates",
                    intermediates.len(),
                    self.max_intermediates
                ),
            ));
        }
        let too_large = |what: String| {
            AttestError::invalid(
                format!("{what} key size too large"),
                format!(
                    "RSA keys may have {} bits: use a smaller key, or raise max_rsa_key_size",
                    self.max_rsa_bits
                ),
            )
        };
        let unreadable = |what: String, error| {
            let hint = "look at the agent's files with `openssl x509 -noout -text`";
            AttestError::invalid(format!("unable to parse {what}: {error}"), hint)
        };
        let leaf = Certificate::read(leaf)
            .map_err(|error| unreadable("leaf certificate".into(), error))?;
        if leaf.rsa_bits() > self.max_rsa_bits {
            return Err(too_large("leaf certificate".into()));
        }
        for (index, der) in intermediates.iter().enumerate() {
            let what = format!("intermediate certificate {index}");
            let read = Certificate::read(der);
            let read = read.map_err(|error| unreadable(what.clone(), error))?;
            if read.rsa_bits() > self.max_rsa_bits {
                return Err(too_large(what));
            }
        }
        Ok(leaf)
    }

    /// Who the holder of the leaf's key is.
    fn conclude(&self, examined: &Examined) -> Result<AttestedAgent, AttestError> {
        let leaf = &examined.leaf;
        let svid_path = match &self.trust {
            Trust::Roots(_) => String::new(),
            Trust::Own { prefix, .. } => self.svid_path(leaf, prefix)?,
        };
        let uri_selectors = leaf.uri_selectors(self.trust_domain.as_str());
        let id = self.agent_id(leaf, &svid_path, &uri_selectors)?;
        let mut selectors = Vec::new();
        let mut add = |value| selectors.push(Selector::new(Builtin::X509Pop.name(), value));
        if !leaf.subject.common_name.is_empty() {
            add(format!("subject:cn:{}", leaf.subject.common_name));
        }
        for signer in &examined.signers {
            add(format!("ca:fingerprint:{signer}"));
        }
        add(format!("serialnumber:{}", leaf.serial_hex));
        for (key, value) in &uri_selectors {
            add(format!("san:{key}:{value}"));
        }
        Ok(AttestedAgent {
            id,
            selectors,
            can_reattest: true,
        })
    }

    /// The path of the leaf's SPIFFE ID, without `prefix`.
    fn svid_path(&self, leaf: &Certificate, prefix: &str) -> Result<String, AttestError> {
        let mut uris = leaf.facts.uris.iter();
        let id = uris.find_map(|uri| SpiffeId::new(uri).ok());
        let id = id.filter(|id| id.is_member_of(&self.trust_domain));
        let id = id.ok_or_else(|| {
            AttestError::refused(
                "valid SVID x509 cert not found",
                format!("present an X509-SVID of trust domain {}", self.trust_domain),
            )
        })?;
        let trimmed = id.path().strip_prefix(prefix).map(str::to_owned);
        trimmed.ok_or_else(|| {
            AttestError::refused(
                "x509 cert doesnt match SVID prefix",
                format!(
                    "the path of {id} does not begin with {prefix}; see spiffe_prefix on the server"
                ),
            )
        })
    }

    fn agent_id(
        &self,
        leaf: &Certificate,
        svid_path: &str,
        uri_selectors: &BTreeMap<String, String>,
    ) -> Result<SpiffeId, AttestError> {
        let fault = |why: String| {
            AttestError::internal(
                format!("failed to make spiffe id: {why}"),
                "choose values for agent_path_template on the server that every node's certificate has, of letters, digits, dots, dashes and underscores",
            )
        };
        let values = Values {
            leaf,
            trust_domain: self.trust_domain.as_str(),
            svid_path,
            uri_selectors,
        };
        let id = self
            .template
            .agent_id(&self.trust_domain, |value| value.of(&values));
        id.map_err(fault)
    }
}

impl<A: Authorities> ServerHalf for X509PopServer<A> {
    fn name(&self) -> &str {
        Builtin::X509Pop.name()
    }

    async fn attest(
        &self,
        claim: Claim<'_>,
        agent: &mut impl Challenge,
    ) -> Result<AttestedAgent, AttestError> {
        let told = |error: AttestError| error.of_builtin(Builtin::X509Pop);
        let examined = self.examine(claim).await.map_err(told)?;
        let challenge = examined.challenge().map_err(told)?;
        let answer = agent.challenge(write(&challenge)).await?;
        examined.verify(&challenge, &answer).map_err(told)?;
        self.conclude(&examined).map_err(told)
    }
}

/// A chain that is trusted, with a key that is still to be proven.
struct Examined {
    leaf: Certificate,
    /// Fingerprints of the certificates above the leaf.
    signers: Vec<String>,
}

impl Examined {
    fn challenge(&self) -> Result<messages::Challenge, AttestError> {
        let unable = |why: &str, hint| {
            AttestError::invalid(format!("unable to generate challenge: {why}"), hint)
        };
        if !self.leaf.may_sign {
            return Err(unable(
                "certificate not intended for digital signature use",
                "issue the node's certificate with keyUsage digitalSignature",
            ));
        }
        let Some(key) = &self.leaf.key else {
            return Err(unable(
                &format!("unsupported public key type {}", self.leaf.facts.key),
                "use an RSA key, or an ECDSA key on P-256, P-384 or P-521",
            ));
        };
        key.challenge().map_err(|why| {
            let hint = "see the system's log: getrandom(2) fails";
            AttestError::internal(format!("unable to generate challenge: {why}"), hint)
        })
    }

    fn verify(&self, challenge: &messages::Challenge, answer: &[u8]) -> Result<(), AttestError> {
        let response: Response = read(answer).map_err(|error| {
            AttestError::invalid(
                format!("unable to unmarshal challenge response: {error}"),
                "use an agent with the x509pop attestor",
            )
        })?;
        let verified = match &self.leaf.key {
            Some(key) => key.verify(challenge, &response),
            None => Err("unsupported public key type"),
        };
        verified.map_err(|why| {
            AttestError::refused(
                format!("challenge response verification failed: {why}"),
                "the node does not hold the key of its certificate: compare private_key_path with certificate_path on the agent",
            )
        })
    }
}

fn limit(key: &str, value: Option<i64>, default: usize) -> Result<usize, AttestError> {
    match value.map(usize::try_from) {
        None => Ok(default),
        Some(Ok(value)) if value > 0 => Ok(value),
        _ => Err(wrong(
            POP,
            format!("{key} must be greater than 0"),
            format!("the default is {default}"),
        )),
    }
}

async fn roots(paths: &[std::path::PathBuf]) -> Result<Vec<Root>, AttestError> {
    if paths.is_empty() {
        return Err(wrong(
            POP,
            "one of ca_bundle_path or ca_bundle_paths must be configured",
            "name a PEM file with the CAs of your nodes, or set mode = \"spiffe\"",
        ));
    }
    let mut roots = Vec::new();
    for path in paths {
        roots.append(&mut files::roots(POP, "trust bundle", path).await?);
    }
    Ok(roots)
}

async fn own_roots(authorities: &impl Authorities) -> Result<Vec<Root>, AttestError> {
    let fault = |why: String| {
        AttestError::internal(
            format!("failed to get trust bundle: {why}"),
            "see the server's log for the state of its data store, and `spire-server bundle show`",
        )
    };
    let own = authorities.x509_authorities().await;
    let own = own.map_err(|error| fault(error.to_string()))?;
    if own.is_empty() {
        return Err(fault("it is empty".into()));
    }
    let roots = own.into_iter().map(Root::new).collect::<Result<_, _>>();
    roots.map_err(|error| fault(error.to_string()))
}

fn verify_client_ip(leaf: &Certificate, client: Option<IpAddr>) -> Result<(), AttestError> {
    let Some(client) = client else {
        return Err(AttestError::internal(
            "client IP not available for verification",
            "set verify_client_ip = false where agents do not come over TCP",
        ));
    };
    // An IPv4 client of a socket that takes both comes as ::ffff:a.b.c.d.
    let client = client.to_canonical();
    if leaf.facts.ips.iter().any(|ip| ip.to_canonical() == client) {
        return Ok(());
    }
    Err(AttestError::refused(
        format!("client IP {client} does not match any certificate IP SAN"),
        "issue the node's certificate with this address as an IP SAN, or set verify_client_ip = false behind a proxy",
    ))
}
