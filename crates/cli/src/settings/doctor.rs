//! What the doctor looks at: an executor's settings, under its own command, and the access point of this machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ah_daemon::layer::Origin;
use ah_daemon::paths::Paths;
use ah_identity_provider::Explained;

use super::access_point::admin_socket;
use super::{EnrollSettings, Settings};
use crate::args::DoctorArgs;

/// What the doctor is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoctorSettings {
    /// The settings that `ah agent enroll` would have with the same arguments, environment and file. `None` when no
    /// access point is named, which only `--production` allows: no executor is set up here.
    pub executor: Option<EnrollSettings>,
    /// With `--production`: the admin socket of this machine's access point.
    pub production: Option<PathBuf>,
}

impl Settings for DoctorSettings {
    type Args = DoctorArgs;
    const PATH: &'static [&'static str] = &["agent", "doctor"];

    fn resolve(
        args: &DoctorArgs,
        origins: &BTreeMap<String, Origin>,
        paths: &Paths,
    ) -> Result<Self, Vec<Explained>> {
        let executor = if args.enroll.remote.remote_server.is_empty() {
            None
        } else {
            Some(EnrollSettings::resolve(&args.enroll, origins, paths)?)
        };
        let mut faults = Vec::new();
        let production = if args.production {
            admin_socket(args.admin_socket.clone(), paths, &mut faults)
        } else {
            None
        };
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(Self {
            executor,
            production,
        })
    }

    fn files(&self) -> Vec<&Path> {
        self.executor
            .as_ref()
            .map(EnrollSettings::files)
            .unwrap_or_default()
    }

    fn derived(&self) -> Vec<(&'static str, String)> {
        self.executor
            .as_ref()
            .map(EnrollSettings::derived)
            .unwrap_or_default()
    }
}
