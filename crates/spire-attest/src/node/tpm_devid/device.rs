//! The way to the TPM.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The largest response, in bytes.
const MAX_RESPONSE: usize = 4096;

/// Making an RSA key takes a slow TPM half a minute.
const PATIENCE: Duration = Duration::from_mins(3);

/// A TPM that takes commands.
pub(super) enum Device {
    /// `/dev/tpmrm0` and its kin.
    File(File),
    /// A program that plays a TPM and takes raw commands. It may end each connection after a response, so that
    /// each command has its own.
    Socket(PathBuf),
}

impl Device {
    /// The TPM at `path`.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let kind = std::fs::metadata(path)?.file_type();
        if kind.is_socket() {
            return Ok(Self::Socket(path.to_owned()));
        }
        if !kind.is_char_device() {
            return Err(io::Error::other("it is neither a device nor a socket"));
        }
        let file = File::options().read(true).write(true).open(path)?;
        Ok(Self::File(file))
    }

    /// What the TPM answers to `command`, header and all.
    pub(super) fn ask(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::File(file) => exchange(file, command),
            Self::Socket(path) => {
                let mut stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                exchange(&mut stream, command)
            }
        }
    }
}

fn exchange(way: &mut (impl Read + Write), command: &[u8]) -> io::Result<Vec<u8>> {
    // A device takes a command in one write, and gives a response in one read where there is room for all of it.
    way.write_all(command)?;
    let mut response = vec![0; MAX_RESPONSE];
    let mut filled = 0;
    loop {
        let room = response.get_mut(filled..).unwrap_or_default();
        let read = way.read(room)?;
        filled = filled.saturating_add(read);
        let size = response.get(2..6).filter(|_| filled >= 10);
        let size = size.and_then(|size| size.try_into().ok());
        let size = size.map(|size| u32::from_be_bytes(size) as usize);
        match size {
            Some(size) if size == filled => {
                response.truncate(filled);
                return Ok(response);
            }
            Some(size) if size < filled || size > MAX_RESPONSE => {
                return Err(io::Error::other(
                    "its response has not the size that it says",
                ));
            }
            _ if read == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => {}
        }
    }
}

/// The one TPM in `folder` (`/dev`), the kernel's resource manager before the bare device. The error is a text.
pub(super) fn detect(folder: &Path) -> Result<PathBuf, String> {
    let entries = std::fs::read_dir(folder).map_err(|error| error.to_string())?;
    let names: Vec<_> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    for prefix in ["tpmrm", "tpm"] {
        let numbered = |name: &&String| {
            let number = name.strip_prefix(prefix).unwrap_or_default();
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        };
        let mut found = names.iter().filter(numbered);
        match (found.next(), found.next()) {
            (None, _) => {}
            (Some(one), None) => return Ok(folder.join(one)),
            _ => return Err("more than one possible TPM device was found".into()),
        }
    }
    Err("not found".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_tpm_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str| std::fs::write(folder.path().join(name), "").unwrap();
        let found = || detect(folder.path());
        for other in ["tpm", "tpmrm", "tpmx0", "vtpmx", "tty0"] {
            make(other);
        }
        assert_eq!(found().unwrap_err(), "not found");
        make("tpm0");
        assert_eq!(found().unwrap(), folder.path().join("tpm0"));
        make("tpmrm0");
        assert_eq!(found().unwrap(), folder.path().join("tpmrm0"));
        make("tpmrm1");
        assert!(found().unwrap_err().contains("more than one"));
        assert!(detect(&folder.path().join("none")).is_err());
    }
}
