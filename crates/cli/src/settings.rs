//! What was typed, set and written, resolved: plain values that are valid together.
//!
//! Nothing below reads the environment, and nothing here opens a connection or starts a task.

mod access_point;
mod doctor;
mod enroll;
mod identity;
mod validate;
pub mod value;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ah_daemon::layer::{FileFault, Layered, Layers, Origin, Parsed};
use ah_daemon::logging::{Format, Level, LogSettings};
use ah_daemon::paths::{NoDirectory, Paths};
use ah_identity_provider::{Code, Explained};

pub use access_point::{AccessPointSettings, AdmissionSettings, HttpSettings, HttpTls};
pub use doctor::DoctorSettings;
pub use enroll::EnrollSettings;
pub use identity::{
    DevSettings, ExecSettings, FilesSettings, IdentitySettings, SourceSettings, SpiffeSettings,
    VaultSettings,
};
pub use validate::Check;

use crate::args::{LogFormatArg, LogLevelArg, ProcessArgs};
use crate::errors;

/// The name of this product's directories (contract §9).
pub const PRODUCT: &str = "ah";

/// Where settings files are looked for (AP-17, EN-12).
const CONFIG_DIRECTORY: &str = "/etc/ah";

/// Settings that a subcommand resolves from its arguments.
pub trait Settings: Sized {
    /// What clap understood.
    type Args: clap::FromArgMatches;

    /// The names that lead to the subcommand.
    const PATH: &'static [&'static str];

    /// Makes settings of arguments, or says everything that is wrong with them at once (AP-18).
    /// `origins` tell, by flag, what was given and what is a default.
    fn resolve(
        args: &Self::Args,
        origins: &BTreeMap<String, Origin>,
        paths: &Paths,
    ) -> Result<Self, Vec<Explained>>;

    /// Files that must be readable when the process starts.
    fn files(&self) -> Vec<&Path>;

    /// Defaults that depend on the machine, by flag, as a person would write them.
    fn derived(&self) -> Vec<(&'static str, String)>;
}

/// Settings with what is needed to resolve them again.
#[derive(Debug)]
pub struct Launch<S> {
    /// The settings.
    pub settings: S,
    /// Where each comes from, by flag.
    pub origins: BTreeMap<String, Origin>,
    /// The settings file, when one was read.
    pub file: Option<PathBuf>,
    layers: Layers,
    paths: Paths,
}

impl<S: Settings> Launch<S> {
    /// Resolves what was parsed. Every fault of the file and of the settings is told.
    pub fn new(layers: Layers, parsed: &Parsed, paths: Paths) -> Result<Self, Vec<Explained>> {
        let mut faults: Vec<Explained> = parsed.faults.iter().map(file_fault).collect();
        match resolve::<S>(parsed, &paths) {
            Ok(settings) if faults.is_empty() => Ok(Self {
                settings,
                origins: parsed.origins.clone(),
                file: parsed.file.clone(),
                layers,
                paths,
            }),
            Ok(_) => Err(faults),
            Err(more) => {
                faults.extend(more);
                Err(faults)
            }
        }
    }

    /// The settings as the file has them now, with the same arguments and environment (HUP, AP-19).
    pub fn reload(&self) -> Result<Self, Vec<Explained>> {
        match self.layers.parse() {
            Ok(parsed) => Self::new(self.layers.clone(), &parsed, self.paths.clone()),
            Err(error) => {
                let mut faults: Vec<Explained> = error.faults.iter().map(file_fault).collect();
                faults.push(errors::explain(&error.error));
                Err(faults)
            }
        }
    }
}

fn resolve<S: Settings>(parsed: &Parsed, paths: &Paths) -> Result<S, Vec<Explained>> {
    let matches = S::PATH
        .iter()
        .try_fold(&parsed.matches, |matches, name| {
            matches.subcommand_matches(name)
        })
        .ok_or_else(|| {
            let text = format!("'{}' was not asked for", S::PATH.join(" "));
            vec![Explained::new(Code::Other, text)]
        })?;
    let args = <S::Args as clap::FromArgMatches>::from_arg_matches(matches)
        .map_err(|error| vec![errors::explain(&error)])?;
    S::resolve(&args, &parsed.origins, paths)
}

/// The whole command over `arguments` (the program's name first), with the files of contract §2 and §3.
pub fn layers(arguments: Vec<OsString>) -> Layers {
    let layered = |path, file: &str, not_in_file, tables| Layered {
        path,
        default_file: Path::new(CONFIG_DIRECTORY).join(file),
        file_arg: "config",
        not_in_file,
        tables,
        describing: &["print-config", "print-config-schema"],
        lifting: &["production"],
    };
    Layers::new(
        crate::args::definition(),
        arguments,
        vec![
            layered(
                AccessPointSettings::PATH,
                "access-point.toml",
                &["config", "validate"],
                &[],
            ),
            layered(
                EnrollSettings::PATH,
                "executor.toml",
                &["config", "validate"],
                &["label"],
            ),
            layered(
                DoctorSettings::PATH,
                "executor.toml",
                &["config", "validate", "json", "production", "admin-socket"],
                &["label"],
            ),
        ],
    )
}

/// The directories of this process.
pub fn paths() -> Paths {
    Paths::new(
        PRODUCT,
        &ah_daemon::paths::Surroundings::of_process(PRODUCT),
    )
}

/// A wrong setting.
pub(crate) fn usage(text: impl Into<String>) -> Explained {
    Explained::new(Code::Usage, text)
}

/// A file's fault as a person reads it.
pub(crate) fn file_fault(fault: &FileFault) -> Explained {
    let explained = usage(fault.to_string());
    match &fault.hint {
        Some(hint) => explained.hint(hint.clone()),
        None => explained,
    }
}

/// What a file that cannot be read means (ER-8, ER-9), or `None` when it can be read.
pub(crate) fn unreadable(path: &Path) -> Option<Explained> {
    let opened = fs::File::open(path).and_then(|file| file.metadata());
    match opened {
        Ok(facts) if facts.is_dir() => Some(read_fault(path, &io::ErrorKind::IsADirectory.into())),
        Ok(_) => None,
        Err(error) => Some(read_fault(path, &error)),
    }
}

/// What the failure to read a file means (ER-8, ER-9, ER-24).
pub(crate) fn read_fault(path: &Path, error: &io::Error) -> Explained {
    let shown = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => {
            Explained::new(Code::NoSuchFile, format!("no such file: {shown}"))
                .hint("check the path, or create the file")
        }
        io::ErrorKind::PermissionDenied => Explained::new(
            Code::PermissionDenied,
            format!("permission denied reading {shown}"),
        )
        .hint(format!(
            "make it readable for the user of this process: chown it, then chmod 600 {shown}"
        )),
        _ => Explained::new(Code::Other, format!("cannot read {shown}"))
            .cause(error)
            .hint("check that the path names a readable file"),
    }
}

/// A directory that is needed and not to be had.
fn no_directory(error: &NoDirectory, flag: &str) -> Explained {
    usage(error.to_string()).hint(format!("set one of them, or give {flag}"))
}

fn log_settings(process: &ProcessArgs) -> LogSettings {
    LogSettings {
        level: match process.log_level {
            LogLevelArg::Error => Level::Error,
            LogLevelArg::Warn => Level::Warn,
            LogLevelArg::Info => Level::Info,
            LogLevelArg::Debug => Level::Debug,
            LogLevelArg::Trace => Level::Trace,
        },
        format: match process.log_format {
            LogFormatArg::Text => Format::Text,
            LogFormatArg::Json => Format::Json,
        },
    }
}
