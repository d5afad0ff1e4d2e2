//! The files provider's settings (FI-1, FI-4).

use std::path::{Path, PathBuf};

use ah_identity_provider::Explained;

use super::{Context, usage};
use crate::args::FilesArgs;

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

impl FilesSettings {
    pub(super) fn resolve(
        args: &FilesArgs,
        ca: Option<&Path>,
        context: &Context<'_>,
        faults: &mut Vec<Explained>,
    ) -> Option<Self> {
        let (Some(cert), Some(key), Some(ca)) = (&args.cert, &args.key, ca) else {
            let needed = [
                ("--cert", args.cert.is_some()),
                ("--key", args.key.is_some()),
                ("--ca", ca.is_some()),
            ];
            let missing = needed.iter().filter(|(_, given)| !given);
            let missing: Vec<_> = missing.map(|(name, _)| *name).collect();
            let text = format!("{} files needs {}", context.flag(), missing.join(", "));
            let example = "--cert /etc/ah/cert.pem --key /etc/ah/key.pem --ca /etc/ah/ca.pem";
            faults.push(usage(text).hint(format!("all three belong together: {example}")));
            return None;
        };
        Some(Self {
            cert: cert.clone(),
            key: key.clone(),
            ca: ca.to_owned(),
            key_passphrase_file: args.key_passphrase_file.clone(),
            strict_key_permissions: args.strict_key_permissions,
        })
    }

    /// The files it reads.
    pub(super) fn files(&self) -> Vec<&Path> {
        let always = [&self.cert, &self.key, &self.ca];
        let all = always.into_iter().chain(&self.key_passphrase_file);
        all.map(PathBuf::as_path).collect()
    }
}
