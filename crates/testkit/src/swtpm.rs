//! A TPM 2.0 that is a program (`swtpm`), with a certificate of its endorsement key and LDevID keys.
//!
//! It is spoken to in its own few commands, so that what a test provisions is not made by what it tests.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::unistd::Uid;
use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, PublicKeyData, SignatureAlgorithm};
use tempfile::TempDir;

use crate::process::eventually;

/// Who vouches for TPMs: their maker.
pub struct Maker {
    folder: TempDir,
    place: PathBuf,
}

/// A TPM that runs until it is dropped.
pub struct Swtpm {
    folder: TempDir,
    process: Child,
}

/// What kind of LDevID key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DevIdKind {
    /// RSA of 2048 bits.
    Rsa,
    /// ECDSA on P-256.
    Ecdsa,
    /// The same, that another TPM may be given.
    Movable,
}

/// An LDevID key, as the TPM gives it out.
pub struct DevId {
    /// TPM2B_PRIVATE, without its size.
    pub private: Vec<u8>,
    /// TPMT_PUBLIC
    pub public: Vec<u8>,
    kind: DevIdKind,
    bits: Vec<u8>,
}

/// Passwords of hierarchies.
#[derive(Clone, Copy, Default)]
pub struct Hierarchies {
    /// Of the owner's.
    pub owner: &'static str,
    /// Of the endorsement's.
    pub endorsement: &'static str,
}

const OWNER: u32 = 0x4000_0001;
const ENDORSEMENT: u32 = 0x4000_000b;

impl Maker {
    /// A maker, who makes its CA with its first TPM. `None` when swtpm is not installed, as [`crate::need`] tells.
    pub fn new() -> Option<Self> {
        Self::below(&std::env::temp_dir())
    }

    /// The same, with its files and those of its TPMs below `place`.
    pub fn below(place: &Path) -> Option<Self> {
        if !crate::need("swtpm") || !crate::need("swtpm_localca") {
            return None;
        }
        let folder = tempfile::tempdir_in(place).expect("a temporary directory");
        let at = folder.path().display();
        let write = |name: &str, text: String| {
            std::fs::write(folder.path().join(name), text).expect("a writable directory");
        };
        write(
            "localca.conf",
            format!(
                "statedir = {at}\nsigningkey = {at}/key.pem\nissuercert = {at}/issuer.pem\ncertserial = {at}/serial\n"
            ),
        );
        write(
            "localca.options",
            "--platform-manufacturer A\n--platform-version 1\n--platform-model B\n".into(),
        );
        write(
            "setup.conf",
            format!(
                "create_certs_tool = swtpm_localca\ncreate_certs_tool_config = {at}/localca.conf\ncreate_certs_tool_options = {at}/localca.options\nactive_pcr_banks = sha256\n"
            ),
        );
        let place = place.to_owned();
        Some(Self { folder, place })
    }

    /// Makes a TPM whose hierarchies have the passwords `set`.
    pub fn make(&self, set: Hierarchies) -> Swtpm {
        let folder = tempfile::tempdir_in(&self.place).expect("a temporary directory");
        let mut setup = Command::new("swtpm_setup");
        setup
            .args(["--tpm2", "--create-ek-cert", "--config"])
            .arg(self.folder.path().join("setup.conf"))
            .arg("--tpm-state")
            .arg(folder.path());
        if Uid::effective().is_root() {
            setup.args(["--runas", "root"]);
        }
        let made = setup.output().expect("swtpm_setup runs");
        assert!(made.status.success(), "{made:?}");
        let socket = folder.path().join("socket");
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .arg("--tpmstate")
            .arg(format!("dir={}", folder.path().display()))
            .arg("--server")
            .arg(format!("type=unixio,path={}", socket.display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("swtpm runs");
        let tpm = Swtpm { folder, process };
        eventually("the TPM listens", || UnixStream::connect(&socket).ok());
        for (hierarchy, password) in [(OWNER, set.owner), (ENDORSEMENT, set.endorsement)] {
            if !password.is_empty() {
                tpm.ask(0x129, &[hierarchy], Some(""), &sized(password.as_bytes()));
            }
        }
        tpm
    }

    /// PEM of its CAs: the root and the one that signs.
    pub fn authorities(&self) -> String {
        let read = |name: &str| {
            std::fs::read_to_string(self.folder.path().join(name)).expect("the maker made a TPM")
        };
        read("issuer.pem") + &read("swtpm-localca-rootca-cert.pem")
    }
}

impl Swtpm {
    /// Where it takes raw commands.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// Makes a key with `password` below the default storage root key.
    pub fn devid(&self, kind: DevIdKind, password: &str, set: Hierarchies) -> DevId {
        let (rsa, ecc, sha256, null) = (1_u16, 0x23_u16, 0x0b_u16, 0x10_u16);
        let words = |words: &[u16]| -> Vec<u8> {
            words.iter().flat_map(|word| word.to_be_bytes()).collect()
        };
        let (aes, cfb) = (6, 0x43);
        let is_rsa = kind == DevIdKind::Rsa;
        let type_of = if is_rsa { rsa } else { ecc };
        // RSA: bits, exponent, modulus. ECC: curve, no KDF, point.
        let rest = if is_rsa {
            words(&[2048, 0, 0, 0])
        } else {
            words(&[3, null, 0, 0])
        };
        // fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, decrypt
        let root = [
            words(&[type_of, sha256, 0x0003, 0x0472, 0]),
            words(&[aes, 128, cfb, null]),
            rest.clone(),
        ]
        .concat();
        let scheme = if is_rsa { 0x14 } else { 0x18 };
        // sensitiveDataOrigin, userWithAuth, sign, and if it stays fixedTPM and fixedParent
        let attributes = if kind == DevIdKind::Movable {
            0x0060
        } else {
            0x0072
        };
        let template = [
            words(&[type_of, sha256, 0x0004, attributes, 0]),
            words(&[null, scheme, sha256]),
            rest,
        ]
        .concat();
        let creation = |password: &str, template: &[u8]| {
            let sensitive = [sized(password.as_bytes()), sized(&[])].concat();
            [sized(&sensitive), sized(template), sized(&[]), vec![0; 4]].concat()
        };
        let answer = self.ask(0x131, &[OWNER], Some(set.owner), &creation("", &root));
        let parent = u32::from_be_bytes(answer[..4].try_into().expect("a handle"));
        let answer = self.ask(0x153, &[parent], Some(""), &creation(password, &template));
        self.ask(0x165, &[parent], None, &[]);
        let (private, rest) = split_sized(&answer[4..]);
        let (public, _) = split_sized(rest);
        let bits = if is_rsa {
            let modulus = &public[public.len() - 256..];
            [
                &[0x30, 0x82, 0x01, 0x0a, 0x02, 0x82, 0x01, 0x01, 0][..],
                modulus,
                &[2, 3, 1, 0, 1],
            ]
            .concat()
        } else {
            let (x, rest) = split_sized(&public[public.len() - 68..]);
            let (y, _) = split_sized(rest);
            [&[4], x, y].concat()
        };
        DevId {
            private: private.to_vec(),
            public: public.to_vec(),
            kind,
            bits,
        }
    }

    /// How many keys and sessions are in it.
    pub fn loaded(&self) -> u32 {
        let count = |first: u32| {
            let parameters = [1_u32, first, 16].map(u32::to_be_bytes).concat();
            let answer = self.ask(0x17a, &[], None, &parameters);
            u32::from_be_bytes(answer[5..9].try_into().expect("a number"))
        };
        let (transient, loaded_sessions) = (0x8000_0000, 0x0200_0000);
        count(transient) + count(loaded_sessions)
    }

    /// What stands behind the header of the answer to a command that has to succeed.
    #[track_caller]
    fn ask(
        &self,
        code: u32,
        handles: &[u32],
        password: Option<&str>,
        parameters: &[u8],
    ) -> Vec<u8> {
        let mut body: Vec<u8> = handles.iter().flat_map(|it| it.to_be_bytes()).collect();
        let mut tag = 0x8001_u16;
        if let Some(password) = password {
            tag = 0x8002;
            let session = 0x4000_0009_u32.to_be_bytes();
            let auth = [&session[..], &[0, 0, 0], &sized(password.as_bytes())].concat();
            body.extend((auth.len() as u32).to_be_bytes());
            body.extend(auth);
        }
        body.extend(parameters);
        let size = (body.len() + 10) as u32;
        let command = [
            &tag.to_be_bytes()[..],
            &size.to_be_bytes(),
            &code.to_be_bytes(),
            &body,
        ];
        let mut stream = UnixStream::connect(self.socket()).expect("the TPM listens");
        stream.write_all(&command.concat()).expect("it reads");
        let mut header = [0; 10];
        stream.read_exact(&mut header).expect("it answers");
        let [.., a, b, c, d, e, f, g, h] = header;
        assert_eq!(u32::from_be_bytes([e, f, g, h]), 0, "command {code:#x}");
        let mut rest = vec![0; u32::from_be_bytes([a, b, c, d]) as usize - 10];
        stream.read_exact(&mut rest).expect("it answers");
        rest
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl DevId {
    /// Writes `<folder>/<name>.priv` and `<folder>/<name>.pub`, as tpm2-tools do with the sizes.
    pub fn write(&self, folder: &Path, name: &str, sizes: bool) {
        for (bytes, ext) in [(&self.private, "priv"), (&self.public, "pub")] {
            let bytes = if sizes { sized(bytes) } else { bytes.clone() };
            std::fs::write(folder.join(format!("{name}.{ext}")), bytes)
                .expect("a writable directory");
        }
    }
}

impl PublicKeyData for DevId {
    fn der_bytes(&self) -> &[u8] {
        &self.bits
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        match self.kind {
            DevIdKind::Rsa => &PKCS_RSA_SHA256,
            DevIdKind::Ecdsa | DevIdKind::Movable => &PKCS_ECDSA_P256_SHA256,
        }
    }
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

fn split_sized(bytes: &[u8]) -> (&[u8], &[u8]) {
    let size = usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    bytes[2..].split_at(size)
}
