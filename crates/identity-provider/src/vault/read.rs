//! Files of the settings: read again whenever they are used, small, and told in words when they cannot be.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::Secret;
use crate::{Code, Explained};

/// No file of the settings is larger.
const MOST: u64 = 1024 * 1024;

/// A file that could not be read, and what it was for.
#[derive(Debug)]
pub(super) struct Reading {
    path: PathBuf,
    flag: &'static str,
    error: io::Error,
}

impl Reading {
    /// ER-8, ER-9 or ER-24.
    pub(super) fn explained(self) -> Explained {
        let shown = self.path.display();
        let explained = match self.error.kind() {
            io::ErrorKind::NotFound => {
                Explained::new(Code::NoSuchFile, format!("no such file: {shown}"))
            }
            io::ErrorKind::PermissionDenied => Explained::new(
                Code::PermissionDenied,
                format!("permission denied reading {shown}"),
            ),
            _ => Explained::new(Code::Other, format!("cannot read {shown}")).cause(&self.error),
        };
        explained.hint(format!(
            "{} names it: put the file there, readable for the user of this process",
            self.flag
        ))
    }
}

/// The bytes of `path`, which `flag` named.
pub(super) fn file(path: &Path, flag: &'static str) -> Result<Zeroizing<Vec<u8>>, Reading> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(8192));
    let read = File::open(path).and_then(|file| file.take(MOST).read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(bytes),
        Err(error) => Err(Reading {
            path: path.to_owned(),
            flag,
            error,
        }),
    }
}

/// The first line of `path`.
pub(super) fn secret(path: &Path, flag: &'static str) -> Result<Secret, Explained> {
    let mut bytes = file(path, flag).map_err(Reading::explained)?;
    Secret::of_file(std::mem::take(&mut *bytes))
        .ok_or_else(|| unusable(path, flag, &"its first line is empty or not text"))
}

/// A file that can be read and not used.
pub(super) fn unusable(path: &Path, flag: &str, why: &dyn fmt::Display) -> Explained {
    Explained::new(Code::Other, format!("cannot use {}", path.display()))
        .cause(why)
        .hint(format!("{flag} names it: mend or replace the file"))
}

/// There is no root to judge Vault by.
pub(super) fn no_system_roots(why: &str) -> Explained {
    let explained = Explained::new(Code::Other, "this system trusts no certificate authority");
    let explained = if why.is_empty() {
        explained
    } else {
        explained.cause(why)
    };
    explained.hint(
        "name the authority of Vault's own certificate with --vault-ca, or install ca-certificates",
    )
}
