//! Which provider, and what it works with (contract §6).

use std::path::{Path, PathBuf};

use ah_daemon::paths::Paths;
use ah_identity_provider::{Explained, ProviderKind};

use super::{no_directory, usage};
use crate::args::{IdentityChoice, MaterialArgs};

/// Where the identity comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentitySettings {
    /// DV-1
    Dev(DevSettings),
    /// FI-1
    Files(FilesSettings),
}

/// The dev provider's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevSettings {
    /// `<state>`; the development CA lives in its folder `dev`.
    pub state: PathBuf,
    /// Whether it may leave this machine (DV-2).
    pub allow_remote: bool,
    /// More authorities to trust (AP-3).
    pub extra_roots: Option<PathBuf>,
}

/// The files provider's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilesSettings {
    /// Chain in PEM, leaf first.
    pub cert: PathBuf,
    /// Private key in PEM.
    pub key: PathBuf,
    /// Authorities to trust, in PEM.
    pub ca: PathBuf,
    /// Where the passphrase of an encrypted key is.
    pub key_passphrase_file: Option<PathBuf>,
    /// Whether a key that others can read is refused (FI-4).
    pub strict_key_permissions: bool,
}

/// Which side resolves its identity: the flags differ in name, and in what `--ca` means for dev.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    AccessPoint,
    Executor,
}

impl Side {
    fn flag(self) -> &'static str {
        match self {
            Self::AccessPoint => "--server-identity",
            Self::Executor => "--identity",
        }
    }
}

impl IdentitySettings {
    /// Which provider this is.
    pub fn kind(&self) -> ProviderKind {
        match self {
            Self::Dev(_) => ProviderKind::Dev,
            Self::Files(_) => ProviderKind::Files,
        }
    }

    /// The files it reads.
    pub(super) fn files(&self) -> Vec<&Path> {
        match self {
            Self::Dev(dev) => dev.extra_roots.as_deref().into_iter().collect(),
            Self::Files(files) => {
                let always = [&files.cert, &files.key, &files.ca];
                always
                    .into_iter()
                    .chain(&files.key_passphrase_file)
                    .map(PathBuf::as_path)
                    .collect()
            }
        }
    }

    /// Whether it is the dev identity and has to stay on this machine (DV-2).
    pub(super) fn stays_here(&self) -> bool {
        matches!(self, Self::Dev(dev) if !dev.allow_remote)
    }
}

pub(super) fn resolve(
    side: Side,
    choice: IdentityChoice,
    material: &MaterialArgs,
    paths: &Paths,
    faults: &mut Vec<Explained>,
) -> Option<IdentitySettings> {
    let flag = side.flag();
    match choice {
        IdentityChoice::Dev => dev(side, material, paths, faults).map(IdentitySettings::Dev),
        IdentityChoice::Files => files(flag, material, faults).map(IdentitySettings::Files),
        IdentityChoice::Spiffe | IdentityChoice::Vault | IdentityChoice::Exec => {
            let name = match choice {
                IdentityChoice::Spiffe => "spiffe",
                IdentityChoice::Vault => "vault",
                _ => "exec",
            };
            let text = format!("{flag} {name} is not in this build, which has dev and files");
            faults.push(usage(text).hint(format!(
                "use {flag} files with --cert, --key and --ca, or a build that has {name}"
            )));
            None
        }
    }
}

fn dev(
    side: Side,
    material: &MaterialArgs,
    paths: &Paths,
    faults: &mut Vec<Explained>,
) -> Option<DevSettings> {
    let flag = side.flag();
    let mut of_files = Vec::new();
    if material.cert.is_some() {
        of_files.push("--cert");
    }
    if material.key.is_some() {
        of_files.push("--key");
    }
    // AP-3 gives an access point extra roots with every provider; EN-3 gives none to a dev executor.
    if material.ca.is_some() && side == Side::Executor {
        of_files.push("--ca");
    }
    if material.key_passphrase_file.is_some() {
        of_files.push("--key-passphrase-file");
    }
    if material.strict_key_permissions {
        of_files.push("--strict-key-permissions");
    }
    if !of_files.is_empty() {
        let verb = if of_files.len() == 1 { "has" } else { "have" };
        let text = format!(
            "{} {verb} no meaning with {flag} dev, which makes its own certificate",
            of_files.join(", ")
        );
        faults.push(usage(text).hint(format!("add {flag} files")));
    }
    match paths.state() {
        Ok(state) => Some(DevSettings {
            state: state.to_owned(),
            allow_remote: material.dev_allow_remote,
            extra_roots: material.ca.clone(),
        }),
        Err(error) => {
            faults.push(usage(error.to_string()).hint("set one of them"));
            None
        }
    }
}

fn files(
    flag: &str,
    material: &MaterialArgs,
    faults: &mut Vec<Explained>,
) -> Option<FilesSettings> {
    if material.dev_allow_remote {
        let text = format!("--dev-allow-remote has no meaning with {flag} files");
        faults.push(usage(text).hint("leave it out"));
    }
    let needed = [
        ("--cert", &material.cert),
        ("--key", &material.key),
        ("--ca", &material.ca),
    ];
    let missing: Vec<_> = needed
        .iter()
        .filter(|(_, path)| path.is_none())
        .map(|(name, _)| *name)
        .collect();
    let (Some(cert), Some(key), Some(ca)) = (&material.cert, &material.key, &material.ca) else {
        let text = format!("{flag} files needs {}", missing.join(", "));
        let example = "--cert /etc/ah/cert.pem --key /etc/ah/key.pem --ca /etc/ah/ca.pem";
        faults.push(usage(text).hint(format!("all three belong together: {example}")));
        return None;
    };
    Some(FilesSettings {
        cert: cert.clone(),
        key: key.clone(),
        ca: ca.clone(),
        key_passphrase_file: material.key_passphrase_file.clone(),
        strict_key_permissions: material.strict_key_permissions,
    })
}

/// DV-2, for an address that others can reach.
pub(super) fn dev_leaves(flag: &str, verb: &str, address: &str) -> Explained {
    usage(format!(
        "the dev identity does not {verb} {address}: it is for this machine only"
    ))
    .cause(format!(
        "{flag} {address} is not a loopback address, and anyone with a copy of the dev CA could pose as either side"
    ))
    .hint(
        "use an identity of files, spiffe, vault or exec, or a loopback address; \
         --dev-allow-remote lifts this on machines that share a copied dev CA",
    )
}

/// A path below `<state>`, unless one was given by `flag`.
pub(super) fn in_state(
    paths: &Paths,
    name: &str,
    flag: &str,
    faults: &mut Vec<Explained>,
) -> Option<PathBuf> {
    match paths.state() {
        Ok(state) => Some(state.join(name)),
        Err(error) => {
            faults.push(no_directory(&error, flag));
            None
        }
    }
}
