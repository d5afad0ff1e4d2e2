//! What the doctor looks at: an executor's settings, under its own command.

use std::collections::BTreeMap;
use std::path::Path;

use ah_daemon::layer::Origin;
use ah_daemon::paths::Paths;
use ah_identity_provider::Explained;

use super::{EnrollSettings, Settings};
use crate::args::DoctorArgs;

/// The settings that `ah agent enroll` would have with the same arguments, environment and file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoctorSettings(pub EnrollSettings);

impl Settings for DoctorSettings {
    type Args = DoctorArgs;
    const PATH: &'static [&'static str] = &["agent", "doctor"];

    fn resolve(
        args: &DoctorArgs,
        origins: &BTreeMap<String, Origin>,
        paths: &Paths,
    ) -> Result<Self, Vec<Explained>> {
        EnrollSettings::resolve(&args.enroll, origins, paths).map(Self)
    }

    fn files(&self) -> Vec<&Path> {
        self.0.files()
    }

    fn derived(&self) -> Vec<(&'static str, String)> {
        self.0.derived()
    }
}
