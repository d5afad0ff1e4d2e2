use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use ah_identity_provider::pem;
use tokio::sync::{Mutex, OwnedMutexGuard};
use zeroize::Zeroizing;

use crate::node::binary::Reader;
use crate::node::files::{file, wrong};
use crate::node::messages::{Bytes, read, write};
use crate::node::tpm_devid::device::detect;
use crate::node::tpm_devid::messages::{AttestationRequest, ChallengeRequest, ChallengeResponse};
use crate::node::tpm_devid::residency::key_of;
use crate::node::tpm_devid::session::{Blob, Failed, Keys, Passwords, Session, Statement};
use crate::node::tpm_devid::structures::Public;
use crate::node::x509pop::certificate::Certificate;
use crate::node::{AgentHalf, Conversation, Payload};
use crate::{AttestError, Builtin};

const DEVID: Builtin = Builtin::TpmDevId;

/// The agent's settings, under the names of SPIRE's configuration files.
#[derive(Clone, Default)]
pub struct TpmDevIdAgentConfig {
    /// The TPM: a device, or a socket that takes raw commands; the one in `/dev` if empty.
    pub tpm_device_path: PathBuf,
    /// PEM of the LDevID certificate, and of CAs between it and a root. Required.
    pub devid_cert_path: PathBuf,
    /// The private part of its key, as the TPM gave it out (TPM2B_PRIVATE, with or without its size). Required.
    pub devid_priv_path: PathBuf,
    /// The public part (TPM2B_PUBLIC, with or without its size). Required.
    pub devid_pub_path: PathBuf,
    /// The password of the LDevID key.
    pub devid_password: Zeroizing<String>,
    /// The password of the owner hierarchy.
    pub owner_hierarchy_password: Zeroizing<String>,
    /// The password of the endorsement hierarchy.
    pub endorsement_hierarchy_password: Zeroizing<String>,
}

/// The agent's half. Clones are one.
#[derive(Clone)]
pub struct TpmDevIdAgent(Arc<Inner>);

struct Inner {
    device: PathBuf,
    config: TpmDevIdAgentConfig,
    /// A password that the TPM refused. It counts wrong passwords, and locks itself after a few: no second try.
    refused: OnceLock<AttestError>,
    /// A TPM has room for the keys of one attestation.
    turn: Arc<Mutex<()>>,
}

impl fmt::Debug for TpmDevIdAgent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TpmDevIdAgent({})", self.0.device.display())
    }
}

/// What the files say.
struct Material {
    /// DER, leaf first.
    chain: Vec<Bytes>,
    blob: Blob,
    public: Public,
}

impl TpmDevIdAgent {
    /// The half that proves what `config` names. Files are read once, so that what is wrong with them is told now.
    pub async fn configure(config: TpmDevIdAgentConfig) -> Result<Self, AttestError> {
        for (key, path) in [
            ("devid_cert_path", &config.devid_cert_path),
            ("devid_priv_path", &config.devid_priv_path),
            ("devid_pub_path", &config.devid_pub_path),
        ] {
            if path.as_os_str().is_empty() {
                return Err(wrong(
                    DEVID,
                    format!("invalid configuration: {key} is required"),
                    "set devid_cert_path, devid_priv_path and devid_pub_path",
                ));
            }
        }
        let device = match &config.tpm_device_path {
            path if path.as_os_str().is_empty() => detect(Path::new("/dev")).map_err(|error| {
                wrong(
                    DEVID,
                    format!("tpm autodetection failed: {error}"),
                    "name the TPM: tpm_device_path = \"/dev/tpmrm0\"",
                )
            })?,
            path => path.clone(),
        };
        let agent = Self(Arc::new(Inner {
            device,
            config,
            refused: OnceLock::new(),
            turn: Arc::default(),
        }));
        agent.material().await?;
        Ok(agent)
    }

    async fn material(&self) -> Result<Material, AttestError> {
        let config = &self.0.config;
        let unusable = |what: &str, path: &Path, error: &dyn fmt::Display| {
            wrong(
                DEVID,
                format!(
                    "unable to load DevID files: cannot load {what} {}: {error}",
                    path.display()
                ),
                "devid_cert_path is PEM; devid_priv_path and devid_pub_path are what the TPM gave when the key was made (tpm2_create -r and -u)",
            )
        };
        let path = &config.devid_cert_path;
        let text = file(DEVID, "DevID certificate", path).await?;
        let chain = pem::certificates(&text);
        let chain = chain.map_err(|error| unusable("certificate(s)", path, &error))?;
        let leaf = chain.first().map(|der| (der, Certificate::read(der)));
        let Some((der, Ok(leaf))) = leaf else {
            return Err(unusable("certificate(s)", path, &"it cannot be read"));
        };
        let private = file(DEVID, "DevID private key", &config.devid_priv_path).await?;
        let path = &config.devid_pub_path;
        let bytes = file(DEVID, "DevID public key", path).await?;
        let public = Public::read(without_size(&bytes))
            .map_err(|error| unusable("public key", path, &error))?;
        if !public.signs_with_sha256() {
            let why = "it does not sign by RSASSA or ECDSA with SHA-256";
            return Err(unusable("public key", path, &why));
        }
        if key_of(der, &leaf).as_ref() != Some(&public.key) {
            let why = "it is not the key in the certificate of devid_cert_path";
            return Err(unusable("public key", path, &why));
        }
        Ok(Material {
            chain: chain.iter().map(|der| Bytes(der.to_vec())).collect(),
            blob: Blob {
                public: public.bytes.clone(),
                private: Zeroizing::new(without_size(&private).to_vec()),
            },
            public,
        })
    }

    fn passwords(&self) -> Passwords {
        let config = &self.0.config;
        Passwords {
            devid: config.devid_password.clone(),
            owner: config.owner_hierarchy_password.clone(),
            endorsement: config.endorsement_hierarchy_password.clone(),
        }
    }

    /// What to tell of a failure in the TPM.
    fn failed(&self, failed: Failed) -> AttestError {
        let told = |hint| AttestError::internal(&failed.text, hint).of_builtin(Builtin::TpmDevId);
        if failed.wrong_password {
            let hint = format!(
                "{}; it is tried again when the agent starts anew",
                failed.hint
            );
            return self.0.refused.get_or_init(|| told(hint)).clone();
        }
        told(failed.hint.clone())
    }
}

impl AgentHalf for TpmDevIdAgent {
    type Conversation = TpmDevIdConversation;

    fn name(&self) -> &str {
        Builtin::TpmDevId.name()
    }

    async fn begin(&self) -> Result<(Payload, TpmDevIdConversation), AttestError> {
        if let Some(refused) = self.0.refused.get() {
            return Err(refused.clone());
        }
        let Material {
            chain,
            blob,
            public,
        } = self.material().await?;
        let turn = self.0.turn.clone().lock_owned().await;
        let (device, passwords) = (self.0.device.clone(), self.passwords());
        let devid_pub = Bytes(blob.public.clone());
        let stated = blocking(move || {
            let mut session = Session::open(&device, passwords)?;
            let (keys, statement) = session.state(&blob, &public)?;
            let held = Held {
                session,
                keys,
                _turn: turn,
            };
            Ok((held, statement))
        });
        let (held, statement) = stated.await.map_err(|error| self.failed(error))?;
        let Statement {
            ek_cert,
            ek_public,
            ak_public,
            certified,
            signature,
        } = statement;
        let payload = write(&AttestationRequest {
            devid_cert: Some(chain),
            devid_pub,
            ek_cert: Bytes(ek_cert),
            ek_pub: Bytes(ek_public),
            ak_pub: Bytes(ak_public),
            certified_devid: Bytes(certified),
            certification_signature: Bytes(signature),
        });
        let conversation = TpmDevIdConversation {
            agent: self.clone(),
            held: Some(held),
        };
        Ok((Payload::new(payload), conversation))
    }
}

/// Answers the one challenge.
pub struct TpmDevIdConversation {
    agent: TpmDevIdAgent,
    held: Option<Held>,
}

/// Keys in the TPM, and after them the turn: the next attestation finds room.
struct Held {
    session: Session,
    keys: Keys,
    _turn: OwnedMutexGuard<()>,
}

impl fmt::Debug for TpmDevIdConversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TpmDevIdConversation(…)")
    }
}

impl Drop for TpmDevIdConversation {
    fn drop(&mut self) {
        // Its keys leave the TPM, which is no work for a thread that others wait for.
        let held = self.held.take();
        if let (Some(held), Ok(runtime)) = (held, tokio::runtime::Handle::try_current()) {
            runtime.spawn_blocking(move || drop(held));
        }
    }
}

impl Conversation for TpmDevIdConversation {
    async fn answer(&mut self, challenge: &[u8]) -> Result<Vec<u8>, AttestError> {
        let fault = |text: String| {
            let hint =
                "check that the address is that of a SPIRE server which has the tpm_devid attestor";
            AttestError::internal(text, hint).of_builtin(Builtin::TpmDevId)
        };
        let challenge: ChallengeRequest = read(challenge)
            .map_err(|error| fault(format!("unable to unmarshall challenges: {error}")))?;
        let activation = challenge.activation.ok_or_else(|| {
            fault("received empty credential activation challenge from server".into())
        })?;
        let nonce = challenge.devid.0;
        if nonce.is_empty() {
            return Err(fault("received empty DevID challenge from server".into()));
        }
        // Nothing but one nonce is signed.
        let held = self.held.take();
        let mut held = held.ok_or_else(|| fault("server sent a second challenge".into()))?;
        let solved = blocking(move || {
            let Held { session, keys, .. } = &mut held;
            let devid = session.prove_possession(*keys, &nonce)?;
            let Bytes(credential) = activation.credential;
            let Bytes(secret) = activation.secret;
            let activation = session.prove_residency(*keys, &credential, &secret)?;
            Ok((devid, activation))
        });
        let (devid, activation) = solved.await.map_err(|error| self.agent.failed(error))?;
        Ok(write(&ChallengeResponse {
            devid: Bytes(devid),
            activation: Bytes(activation),
        }))
    }
}

/// Runs `work`, which waits for the TPM, where nothing else waits.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failed> + Send + 'static,
) -> Result<T, Failed> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| {
        Err(Failed {
            text: format!("the work in the TPM ended: {error}"),
            hint: "report it as a bug".to_owned(),
            wrong_password: false,
        })
    })
}

/// A blob without its size: tpm2-tools write it, and others do not. No blob begins with its own size less two.
fn without_size(blob: &[u8]) -> &[u8] {
    let mut reader = Reader::new(blob);
    match reader.sized() {
        Ok(inside) if reader.rest().is_empty() => inside,
        _ => blob,
    }
}
