//! One attestation's keys in the TPM.

use std::path::{Path, PathBuf};

use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::node::tpm_devid::commands::{ENDORSEMENT, Handle, OWNER, Tpm};
use crate::node::tpm_devid::error::TpmError;
use crate::node::tpm_devid::structures::{
    ECC, Key, Public, RSA, Signature, attestation, endorsement, storage_root,
};
use crate::node::x509pop::proof::ecdsa_der;

/// Where TPMs have the certificate of their RSA endorsement key (TCG EK Credential Profile, 2.2.1.4).
const EK_CERTIFICATE: u32 = 0x01c0_0002;

/// What lets the TPM use its keys. No printing: these are secrets.
#[derive(Clone, Default)]
pub(super) struct Passwords {
    pub(super) devid: Zeroizing<String>,
    pub(super) owner: Zeroizing<String>,
    pub(super) endorsement: Zeroizing<String>,
}

/// A key that the TPM gave out under its own protection.
#[derive(Clone)]
pub(super) struct Blob {
    pub(super) public: Vec<u8>,
    pub(super) private: Zeroizing<Vec<u8>>,
}

/// What failed, and whether a wrong password was the reason.
pub(super) struct Failed {
    pub(super) text: String,
    pub(super) hint: String,
    pub(super) wrong_password: bool,
}

/// What was being done, and what may help.
struct Step(&'static str, &'static str);

const OPEN: Step = Step(
    "cannot open TPM",
    "check tpm_device_path: the agent's user has to read and write it (group tss), and /dev/tpm0 serves one program at a time, unlike /dev/tpmrm0",
);
const ROOT: Step = Step(
    "cannot create the storage root key",
    "check owner_hierarchy_password",
);
const DEVID: Step = Step(
    "cannot load DevID key on TPM",
    "devid_priv_path and devid_pub_path have to be blobs that this TPM made, below its default storage root key; compare owner_hierarchy_password",
);
const AK: Step = Step(
    "cannot create attestation key",
    "look at the TPM with tpm2-tools: tpm2_getcap handles-transient",
);
const EK: Step = Step(
    "cannot create endorsement key",
    "check endorsement_hierarchy_password",
);
const EK_CERT: Step = Step(
    "unable to get endorsement certificate",
    "the TPM has to hold its maker's certificate for its RSA key at 0x01c00002: tpm2_nvread 0x01c00002; write it there with tpm2_nvdefine and tpm2_nvwrite if the maker serves it elsewhere",
);
const CERTIFY: Step = Step("unable to certify DevID key", "check devid_password");
const SIGN: Step = Step(
    "unable to solve proof of possession challenge",
    "check devid_password",
);
const ACTIVATE: Step = Step(
    "unable to solve proof of residency challenge",
    "check endorsement_hierarchy_password; a challenge that is not for this TPM is not answered",
);

impl Step {
    fn failed(&self, error: &TpmError) -> Failed {
        Failed {
            text: format!("{}: {error}", self.0),
            hint: self.1.to_owned(),
            wrong_password: error.is_wrong_password(),
        }
    }
}

/// A TPM with the keys of one attestation. They leave the TPM when it is dropped.
pub(super) struct Session {
    tpm: Tpm,
    path: PathBuf,
    passwords: Passwords,
    loaded: Vec<Handle>,
}

/// The keys, each without a password but the LDevID key.
#[derive(Clone, Copy)]
pub(super) struct Keys {
    devid: Handle,
    ak: Handle,
    ek: Handle,
}

/// What the TPM says of itself.
pub(super) struct Statement {
    pub(super) ek_cert: Vec<u8>,
    pub(super) ek_public: Vec<u8>,
    pub(super) ak_public: Vec<u8>,
    pub(super) certified: Vec<u8>,
    pub(super) signature: Vec<u8>,
}

impl Session {
    pub(super) fn open(path: &Path, passwords: Passwords) -> Result<Self, Failed> {
        let tpm = Tpm::open(path).map_err(|error| Failed {
            text: format!("{} at {}: {error}", OPEN.0, path.display()),
            hint: OPEN.1.to_owned(),
            wrong_password: false,
        })?;
        Ok(Self {
            tpm,
            path: path.to_owned(),
            passwords,
            loaded: Vec::new(),
        })
    }

    /// Loads the LDevID key, makes the others, and has the TPM say what it is. A TPM has room for three keys.
    pub(super) fn state(
        &mut self,
        devid: &Blob,
        public: &Public,
    ) -> Result<(Keys, Statement), Failed> {
        let kind = match public.key {
            Key::Rsa { .. } => RSA,
            Key::Ecc { .. } => ECC,
        };
        let root = self.root(kind)?;
        let key = self
            .load(root, devid)
            .map_err(|error| DEVID.failed(&error))?;
        let root = if kind == RSA {
            root
        } else {
            self.leave(root);
            self.root(RSA)?
        };
        let made = self.tpm.create(root, &attestation());
        let (private, ak_public) = made.map_err(|error| AK.failed(&error))?;
        let blob = Blob {
            public: ak_public,
            private: Zeroizing::new(private),
        };
        let ak = self.load(root, &blob).map_err(|error| AK.failed(&error))?;
        self.leave(root);
        let (ek, ek_public) = self
            .primary(ENDORSEMENT, &endorsement())
            .map_err(|error| EK.failed(&error))?;
        let ek_cert = self.tpm.read_index(EK_CERTIFICATE);
        let ek_cert = ek_cert.map_err(|error| EK_CERT.failed(&error))?;
        let certified = self
            .tpm
            .certify(key, self.passwords.devid.as_bytes(), ak)
            .map_err(|error| CERTIFY.failed(&error))?;
        let keys = Keys { devid: key, ak, ek };
        let statement = Statement {
            ek_cert: whole_certificate(ek_cert),
            ek_public,
            ak_public: blob.public,
            certified: certified.0,
            signature: certified.1,
        };
        Ok((keys, statement))
    }

    /// The LDevID key's signature over `nonce`, as certificates have theirs.
    pub(super) fn prove_possession(&mut self, keys: Keys, nonce: &[u8]) -> Result<Vec<u8>, Failed> {
        let password = self.passwords.devid.as_bytes();
        let signature = self.tpm.sign(keys.devid, password, nonce);
        let signature = signature.map_err(|error| SIGN.failed(&error))?;
        match Signature::read(&signature) {
            Ok(Signature::Rsassa(signature)) => Ok(signature.to_vec()),
            Ok(Signature::Ecdsa { r, s }) => Ok(ecdsa_der(r, s)),
            Err(why) => Err(Failed {
                text: format!("{}: {why}", SIGN.0),
                hint: "provision an LDevID key with the scheme RSASSA or ECDSA, and SHA-256"
                    .to_owned(),
                wrong_password: false,
            }),
        }
    }

    /// The secret that the server enclosed for this TPM and this attestation key.
    pub(super) fn prove_residency(
        &mut self,
        keys: Keys,
        credential: &[u8],
        secret: &[u8],
    ) -> Result<Vec<u8>, Failed> {
        let password = self.passwords.endorsement.as_bytes();
        let session = self.tpm.endorsement_session(password);
        let session = session.map_err(|error| ACTIVATE.failed(&error))?;
        let Keys { ak, ek, .. } = keys;
        let opened = self
            .tpm
            .activate_credential(ak, ek, session, credential, secret);
        opened.map_err(|error| ACTIVATE.failed(&error))
    }

    fn root(&mut self, kind: u16) -> Result<Handle, Failed> {
        let root = self.primary(OWNER, &storage_root(kind));
        root.map(|(root, _)| root)
            .map_err(|error| ROOT.failed(&error))
    }

    fn primary(&mut self, hierarchy: u32, template: &[u8]) -> Result<(Handle, Vec<u8>), TpmError> {
        let password = match hierarchy {
            OWNER => &self.passwords.owner,
            _ => &self.passwords.endorsement,
        };
        let made = self
            .tpm
            .create_primary(hierarchy, password.as_bytes(), template)?;
        self.loaded.push(made.0);
        Ok(made)
    }

    fn load(&mut self, parent: Handle, blob: &Blob) -> Result<Handle, TpmError> {
        let handle = self.tpm.load(parent, &blob.private, &blob.public)?;
        self.loaded.push(handle);
        Ok(handle)
    }

    fn leave(&mut self, handle: Handle) {
        self.loaded.retain(|loaded| *loaded != handle);
        if let Err(error) = self.tpm.flush(handle) {
            tracing::warn!(tpm = %self.path.display(), %error, "a key stays in the TPM");
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for handle in std::mem::take(&mut self.loaded) {
            self.leave(handle);
        }
    }
}

/// Without what some TPMs have behind the certificate.
fn whole_certificate(mut bytes: Vec<u8>) -> Vec<u8> {
    let behind = X509Certificate::from_der(&bytes).map(|(rest, _)| rest.len());
    let length = bytes.len().saturating_sub(behind.unwrap_or_default());
    bytes.truncate(length);
    bytes
}
