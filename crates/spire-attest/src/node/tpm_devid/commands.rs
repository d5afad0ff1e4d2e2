//! Commands of TPM 2.0 Part 3, as far as they are needed here.

use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::node::binary::Reader;
use crate::node::tpm_devid::device::Device;
use crate::node::tpm_devid::error::{RETRY, TpmError};
use crate::node::tpm_devid::structures::{ALG_SHA256, NULL, put_sized};

const NO_SESSIONS: u16 = 0x8001;
const SESSIONS: u16 = 0x8002;
/// What a TPM 1.2 answers with.
const OLD: u16 = 0x00c4;

/// Handles that are always there.
pub(super) const OWNER: u32 = 0x4000_0001;
pub(super) const ENDORSEMENT: u32 = 0x4000_000b;
const NO_HANDLE: u32 = 0x4000_0007;
const PASSWORD: u32 = 0x4000_0009;

/// How often a busy TPM is asked again, a tenth of a second apart.
const RETRIES: usize = 100;

/// A handle of something that was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handle(pub(super) u32);

/// What lets a command use a handle.
pub(super) enum Auth<'a> {
    Password(&'a [u8]),
    /// A policy session, which ends with the command.
    Policy(Handle),
}

/// A command in the making.
struct Command<'a> {
    name: &'static str,
    code: u32,
    handles: &'a [u32],
    auths: &'a [Auth<'a>],
    parameters: Vec<u8>,
}

/// What a command answered.
struct Answer(Vec<u8>);

impl Command<'_> {
    /// In one piece of memory, for there may be passwords in it.
    fn bytes(&self) -> Zeroizing<Vec<u8>> {
        let auths = self.auths.iter().map(|auth| 9 + auth.password().len());
        let auths: usize = auths.sum();
        let (tag, authorization) = match auths {
            0 => (NO_SESSIONS, 0),
            _ => (SESSIONS, 4 + auths),
        };
        let size = 10 + 4 * self.handles.len() + authorization + self.parameters.len();
        let mut out = Zeroizing::new(Vec::with_capacity(size));
        out.extend_from_slice(&tag.to_be_bytes());
        put_u32(&mut out, size);
        out.extend_from_slice(&self.code.to_be_bytes());
        for handle in self.handles {
            out.extend_from_slice(&handle.to_be_bytes());
        }
        if auths > 0 {
            put_u32(&mut out, auths);
        }
        for auth in self.auths {
            let (no_nonce, no_attributes) = (&[], 0);
            out.extend_from_slice(&auth.session().to_be_bytes());
            put_sized(&mut out, no_nonce);
            out.push(no_attributes);
            put_sized(&mut out, auth.password());
        }
        out.extend_from_slice(&self.parameters);
        out
    }
}

impl Auth<'_> {
    fn session(&self) -> u32 {
        match self {
            Self::Password(_) => PASSWORD,
            Self::Policy(session) => session.0,
        }
    }

    fn password(&self) -> &[u8] {
        match self {
            Self::Password(password) => password,
            Self::Policy(_) => &[],
        }
    }
}

fn put_u32(out: &mut Vec<u8>, number: usize) {
    let number = u32::try_from(number).unwrap_or(u32::MAX);
    out.extend_from_slice(&number.to_be_bytes());
}

/// A TPM 2.0.
pub(super) struct Tpm(Device);

impl Tpm {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Device::open(path).map(Self)
    }

    /// What stands behind the handle, if there is one, in the answer to `command`.
    fn run(&mut self, command: &Command<'_>) -> Result<(Option<Handle>, Vec<u8>), TpmError> {
        let bytes = command.bytes();
        let mut tries = 0;
        let answer = loop {
            let answer = Answer(self.0.ask(&bytes)?);
            match answer.code(command.name)? {
                0 => break answer,
                RETRY if tries < RETRIES => {
                    tries = tries.saturating_add(1);
                    sleep(Duration::from_millis(100));
                }
                code => {
                    let command = command.name;
                    return Err(TpmError::Refused { command, code });
                }
            }
        };
        answer.parts(command).map_err(|why| TpmError::Broken {
            command: command.name,
            why,
        })
    }

    /// TPM2_CreatePrimary: the key that `template` describes, below `hierarchy`.
    pub(super) fn create_primary(
        &mut self,
        hierarchy: u32,
        password: &[u8],
        template: &[u8],
    ) -> Result<(Handle, Vec<u8>), TpmError> {
        let (handle, answer) = self.run(&Command {
            name: "TPM2_CreatePrimary",
            code: 0x131,
            handles: &[hierarchy],
            auths: &[Auth::Password(password)],
            parameters: creation(template),
        })?;
        let public = read("TPM2_CreatePrimary", &answer, |it| Ok(it.sized()?.to_vec()))?;
        Ok((loaded("TPM2_CreatePrimary", handle)?, public))
    }

    /// TPM2_Create: the private and the public part of a new key below `parent`, neither with a password.
    pub(super) fn create(
        &mut self,
        parent: Handle,
        template: &[u8],
    ) -> Result<(Vec<u8>, Vec<u8>), TpmError> {
        let (_, answer) = self.run(&Command {
            name: "TPM2_Create",
            code: 0x153,
            handles: &[parent.0],
            auths: &[Auth::Password(&[])],
            parameters: creation(template),
        })?;
        read("TPM2_Create", &answer, |it| {
            Ok((it.sized()?.to_vec(), it.sized()?.to_vec()))
        })
    }

    /// TPM2_Load: a key below `parent`.
    pub(super) fn load(
        &mut self,
        parent: Handle,
        private: &[u8],
        public: &[u8],
    ) -> Result<Handle, TpmError> {
        let mut parameters = Vec::new();
        put_sized(&mut parameters, private);
        put_sized(&mut parameters, public);
        let (handle, _) = self.run(&Command {
            name: "TPM2_Load",
            code: 0x157,
            handles: &[parent.0],
            auths: &[Auth::Password(&[])],
            parameters,
        })?;
        loaded("TPM2_Load", handle)
    }

    /// TPM2_FlushContext
    pub(super) fn flush(&mut self, handle: Handle) -> Result<(), TpmError> {
        let command = Command {
            name: "TPM2_FlushContext",
            code: 0x165,
            handles: &[handle.0],
            auths: &[],
            parameters: Vec::new(),
        };
        self.run(&command).map(|_| ())
    }

    /// TPM2_Hash and TPM2_Sign: a TPMT_SIGNATURE over `data`, by the scheme of `key`, with SHA-256.
    pub(super) fn sign(
        &mut self,
        key: Handle,
        password: &[u8],
        data: &[u8],
    ) -> Result<Vec<u8>, TpmError> {
        let mut parameters = Vec::new();
        put_sized(&mut parameters, data);
        parameters.extend_from_slice(&ALG_SHA256.to_be_bytes());
        parameters.extend_from_slice(&OWNER.to_be_bytes());
        // The ticket in the answer says that the TPM made the digest, without which a restricted key signs nothing.
        let (_, answer) = self.run(&Command {
            name: "TPM2_Hash",
            code: 0x17d,
            handles: &[],
            auths: &[],
            parameters,
        })?;
        let (digest, ticket) = read("TPM2_Hash", &answer, |it| Ok((it.sized()?, it.rest())))?;
        let mut parameters = Vec::new();
        put_sized(&mut parameters, digest);
        parameters.extend_from_slice(&NULL.to_be_bytes());
        parameters.extend_from_slice(ticket);
        let (_, signature) = self.run(&Command {
            name: "TPM2_Sign",
            code: 0x15d,
            handles: &[key.0],
            auths: &[Auth::Password(password)],
            parameters,
        })?;
        Ok(signature)
    }

    /// TPM2_Certify: the statement of `signer`, which has no password, that `key` is in this TPM, and its signature.
    pub(super) fn certify(
        &mut self,
        key: Handle,
        password: &[u8],
        signer: Handle,
    ) -> Result<(Vec<u8>, Vec<u8>), TpmError> {
        let mut parameters = Vec::new();
        put_sized(&mut parameters, &[]);
        parameters.extend_from_slice(&NULL.to_be_bytes());
        let (_, answer) = self.run(&Command {
            name: "TPM2_Certify",
            code: 0x148,
            handles: &[key.0, signer.0],
            auths: &[Auth::Password(password), Auth::Password(&[])],
            parameters,
        })?;
        read("TPM2_Certify", &answer, |it| {
            Ok((it.sized()?.to_vec(), it.rest().to_vec()))
        })
    }

    /// TPM2_StartAuthSession and TPM2_PolicySecret: a session that may use the endorsement key, by the password of
    /// its hierarchy.
    pub(super) fn endorsement_session(&mut self, password: &[u8]) -> Result<Handle, TpmError> {
        const POLICY: u8 = 0x01;

        let mut parameters = Vec::new();
        put_sized(&mut parameters, &[0; 16]);
        put_sized(&mut parameters, &[]);
        parameters.push(POLICY);
        parameters.extend_from_slice(&NULL.to_be_bytes());
        parameters.extend_from_slice(&ALG_SHA256.to_be_bytes());
        let (handle, _) = self.run(&Command {
            name: "TPM2_StartAuthSession",
            code: 0x176,
            handles: &[NO_HANDLE, NO_HANDLE],
            auths: &[],
            parameters,
        })?;
        let session = loaded("TPM2_StartAuthSession", handle)?;
        let mut parameters = Vec::new();
        for _nonce_digest_and_reference in 0..3 {
            put_sized(&mut parameters, &[]);
        }
        let expiration = 0_i32;
        parameters.extend_from_slice(&expiration.to_be_bytes());
        let allowed = self.run(&Command {
            name: "TPM2_PolicySecret",
            code: 0x151,
            handles: &[ENDORSEMENT, session.0],
            auths: &[Auth::Password(password)],
            parameters,
        });
        if allowed.is_err() {
            // The reason is told; that the session stays is not worth another one.
            let _ = self.flush(session);
        }
        allowed.map(|_| session)
    }

    /// TPM2_ActivateCredential: the secret in `credential`, that `ek` opens for `ak` alone. `session` ends.
    pub(super) fn activate_credential(
        &mut self,
        ak: Handle,
        ek: Handle,
        session: Handle,
        credential: &[u8],
        secret: &[u8],
    ) -> Result<Vec<u8>, TpmError> {
        let mut parameters = Vec::new();
        put_sized(&mut parameters, credential);
        put_sized(&mut parameters, secret);
        let activated = self.run(&Command {
            name: "TPM2_ActivateCredential",
            code: 0x147,
            handles: &[ak.0, ek.0],
            auths: &[Auth::Password(&[]), Auth::Policy(session)],
            parameters,
        });
        if activated.is_err() {
            let _ = self.flush(session);
        }
        let (_, answer) = activated?;
        read("TPM2_ActivateCredential", &answer, |it| {
            Ok(it.sized()?.to_vec())
        })
    }

    /// TPM2_NV_ReadPublic and TPM2_NV_Read: all that is at `index`, which has no password.
    pub(super) fn read_index(&mut self, index: u32) -> Result<Vec<u8>, TpmError> {
        /// Any TPM gives so many at a time.
        const AT_A_TIME: u16 = 256;

        let (_, answer) = self.run(&Command {
            name: "TPM2_NV_ReadPublic",
            code: 0x169,
            handles: &[index],
            auths: &[],
            parameters: Vec::new(),
        })?;
        let size = read("TPM2_NV_ReadPublic", &answer, |it| {
            let mut public = Reader::new(it.sized()?);
            let _index_algorithm_attributes = public.take(4 + 2 + 4)?;
            let _policy = public.sized()?;
            public.u16()
        })?;
        let mut all = Vec::new();
        let mut at = 0_u16;
        while at < size {
            let length = size.saturating_sub(at).min(AT_A_TIME);
            let (_, answer) = self.run(&Command {
                name: "TPM2_NV_Read",
                code: 0x14e,
                handles: &[index, index],
                auths: &[Auth::Password(&[])],
                parameters: [length.to_be_bytes(), at.to_be_bytes()].concat(),
            })?;
            let part = read("TPM2_NV_Read", &answer, |it| it.sized())?;
            all.extend_from_slice(part);
            at = at.saturating_add(length);
        }
        Ok(all)
    }
}

impl Answer {
    fn code(&self, command: &'static str) -> Result<u32, TpmError> {
        let mut reader = Reader::new(&self.0);
        let broken = |why| TpmError::Broken { command, why };
        let tag = reader.u16().map_err(broken)?;
        let _size = reader.u32().map_err(broken)?;
        let code = reader.u32().map_err(broken)?;
        if tag == OLD {
            return Err(broken("it is a TPM 1.2, and this attestor needs a TPM 2.0"));
        }
        Ok(code)
    }

    /// The handle, where `command` gives one, and the parameters.
    fn parts(&self, command: &Command<'_>) -> Result<(Option<Handle>, Vec<u8>), &'static str> {
        let mut reader = Reader::new(&self.0);
        let tag = reader.u16()?;
        let _size_and_code = reader.take(8)?;
        let gives_handle = matches!(command.code, 0x131 | 0x157 | 0x176);
        let handle = gives_handle.then(|| reader.u32()).transpose()?;
        let parameters = if tag == SESSIONS {
            let size = reader.u32()?;
            reader.take(usize::try_from(size).unwrap_or(usize::MAX))?
        } else {
            reader.rest()
        };
        Ok((handle.map(Handle), parameters.to_vec()))
    }
}

/// The parameters that make a key of `template`, without a password.
fn creation(template: &[u8]) -> Vec<u8> {
    let mut sensitive = Vec::new();
    let (no_password, no_data) = (&[], &[]);
    put_sized(&mut sensitive, no_password);
    put_sized(&mut sensitive, no_data);
    let mut out = Vec::new();
    put_sized(&mut out, &sensitive);
    put_sized(&mut out, template);
    let outside_info = &[];
    put_sized(&mut out, outside_info);
    let no_registers = 0_u32;
    out.extend_from_slice(&no_registers.to_be_bytes());
    out
}

fn loaded(command: &'static str, handle: Option<Handle>) -> Result<Handle, TpmError> {
    let why = "it has no handle";
    handle.ok_or(TpmError::Broken { command, why })
}

fn read<'a, T>(
    command: &'static str,
    answer: &'a [u8],
    parts: impl FnOnce(&mut Reader<'a>) -> Result<T, &'static str>,
) -> Result<T, TpmError> {
    parts(&mut Reader::new(answer)).map_err(|why| TpmError::Broken { command, why })
}
