//! The file that a plugin is run from.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ah_identity_provider::{Code, Explained, hex};
use ah_spire_plugin::catalog::PluginConfig;
use aws_lc_rs::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;

use crate::launch;

/// Variables between us and who started us. A plugin that had them would answer for us, or take settings of another host
/// for ours.
const NOT_FOR_PLUGINS: [&str; 6] = [
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// A program that may be run as often as it has to be.
pub(crate) struct Program {
    path: PathBuf,
    arguments: Vec<String>,
    /// What was checked: a copy that nobody can change any more. `None` where there is no checksum.
    sealed: Option<File>,
}

impl Program {
    /// Looks at `plugin_cmd`, and compares it with `plugin_checksum` where there is one.
    pub(crate) fn open(config: &PluginConfig) -> Result<Self, Explained> {
        let command = config.command.clone().unwrap_or_default();
        let path = std::path::absolute(&command).map_err(|error| {
            Explained::new(Code::Usage, "plugin_cmd cannot be used")
                .cause(format!("{}: {error}", command.display()))
        })?;
        let unusable = |why: String| {
            Explained::new(Code::Usage, "plugin_cmd cannot be used")
                .cause(format!("{}: {why}", path.display()))
                .hint("let plugin_cmd be the path of a program that the daemon's user may read and run; PATH is not searched")
        };
        let mut file = File::open(&path).map_err(|error| unusable(error.to_string()))?;
        let about = file
            .metadata()
            .map_err(|error| unusable(error.to_string()))?;
        if !about.is_file() {
            return Err(unusable("it is no file".to_owned()));
        }
        if about.permissions().mode() & 0o111 == 0 {
            return Err(unusable("it is not executable".to_owned()));
        }
        let sealed = match &config.checksum {
            Some(sum) => Some(checked(&mut file, &path, sum)?),
            None => None,
        };
        Ok(Self {
            path,
            arguments: config.arguments.clone(),
            sealed,
        })
    }

    /// Whether it is run from what a checksum was found right of.
    pub(crate) fn is_checked(&self) -> bool {
        self.sealed.is_some()
    }

    /// The file's name without its folder.
    pub(crate) fn file_name(&self) -> String {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str());
        name.to_string_lossy().into_owned()
    }

    /// What runs it, in a process group of its own, by way of `launcher` where there is one. `kind` is the plugin's type:
    /// the cookie by which a plugin knows that it was meant.
    pub(crate) fn command(
        &self,
        launcher: Option<&Path>,
        kind: &str,
        sockets: &Path,
    ) -> std::io::Result<Command> {
        let (target, stdin) = match &self.sealed {
            // By its descriptor, since the copy has no name. It is at its end: a plugin that reads stdin finds nothing.
            Some(file) => (
                OsString::from("/proc/self/fd/0"),
                Stdio::from(file.try_clone()?),
            ),
            None => (self.path.clone().into_os_string(), Stdio::null()),
        };
        let name = self.path.clone().into_os_string();
        let mut command = match launcher {
            Some(launcher) => launch::command(launcher, target, name),
            None => {
                let mut command = Command::new(target);
                command.arg0(name);
                command
            }
        };
        for (name, _) in std::env::vars_os() {
            let of_another_host = name.as_encoded_bytes().starts_with(b"PLUGIN_");
            if of_another_host || NOT_FOR_PLUGINS.iter().any(|ours| name == *ours) {
                command.env_remove(name);
            }
        }
        command
            .args(&self.arguments)
            .env(kind, kind)
            .env("PLUGIN_MIN_PORT", "10000")
            .env("PLUGIN_MAX_PORT", "25000")
            .env("PLUGIN_PROTOCOL_VERSIONS", "1")
            .env("PLUGIN_UNIX_SOCKET_DIR", sockets)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        Ok(command)
    }
}

/// The checksum in hex, as bytes.
fn parse_checksum(text: &str) -> Result<[u8; SHA256_OUTPUT_LEN], Explained> {
    let wrong = |why: String| {
        Explained::new(Code::Usage, "plugin_checksum cannot be used")
            .cause(why)
            .hint("it is the SHA-256 of the program in hex, as `sha256sum` prints it")
    };
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let digits: Option<Vec<u32>> = text.as_bytes().iter().map(digit).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0);
    let digits = digits.ok_or_else(|| wrong("checksum is not a valid hex string".to_owned()))?;
    let (pairs, _) = digits.as_chunks::<2>();
    let bytes = pairs
        .iter()
        .filter_map(|[high, low]| u8::try_from(high * 16 + low).ok());
    let bytes: Vec<u8> = bytes.collect();
    bytes.try_into().map_err(|_| {
        let expected = 2 * SHA256_OUTPUT_LEN;
        wrong(format!(
            "expected checksum of length {expected}; got {}",
            digits.len()
        ))
    })
}

/// A sealed copy of `file`, whose checksum is `sum`. What is summed is what will be run: nobody can change it in between.
fn checked(file: &mut File, path: &Path, sum: &str) -> Result<File, Explained> {
    let expected = parse_checksum(sum)?;
    let failed = |error: std::io::Error| {
        Explained::new(Code::Other, "a checked copy of the plugin cannot be made")
            .cause(format!("{}: {error}", path.display()))
            .hint("plugins with a plugin_checksum are run from memory: there has to be room, and the kernel has to allow it (sysctl vm.memfd_noexec)")
    };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let made = match memfd_create("plugin", flags | MemfdFlags::EXEC) {
        // Kernels before 6.3 do not know the flag, and make what can be run in any case.
        Err(Errno::INVAL) => memfd_create("plugin", flags),
        made => made,
    };
    let mut copy = File::from(made.map_err(|error| failed(error.into()))?);
    let mut digest = Context::new(&SHA256);
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let length = file.read(&mut chunk).map_err(failed)?;
        let read = chunk.get(..length).unwrap_or_default();
        if read.is_empty() {
            break;
        }
        digest.update(read);
        copy.write_all(read).map_err(failed)?;
    }
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&copy, seals).map_err(|error| failed(error.into()))?;
    let found = digest.finish();
    if found.as_ref() == expected {
        return Ok(copy);
    }
    Err(
        Explained::new(Code::Usage, "checksums did not match")
            .cause(format!("plugin_checksum is {sum}"))
            .cause(format!("{} has {}", path.display(), hex(found.as_ref())))
            .hint("if the program was changed on purpose, let plugin_checksum be its new SHA-256; if not, find out who changed it"),
    )
}
