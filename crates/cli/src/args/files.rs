//! Flags of the files provider (FI-1, FI-4). `--ca` is every provider's (AP-3, EN-3).

use std::path::PathBuf;

use clap::{Args, ValueHint};

/// PEM files.
#[derive(Debug, Args)]
pub struct FilesArgs {
    /// Certificate chain in PEM, leaf first (files)
    #[arg(long, env = "AH_CERT", value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub cert: Option<PathBuf>,

    /// Private key in PEM: PKCS#8, PKCS#1 or SEC1 (files)
    #[arg(long, env = "AH_KEY", value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub key: Option<PathBuf>,

    /// File that holds the passphrase of an encrypted private key
    #[arg(long, id = "key-passphrase-file", value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub key_passphrase_file: Option<PathBuf>,

    /// Refuse a private key that group or others can read, instead of warning
    #[arg(long, id = "strict-key-permissions")]
    pub strict_key_permissions: bool,
}
