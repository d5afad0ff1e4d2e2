//! `--validate` (AP-18): every fault at once, and where each setting comes from.

use std::collections::BTreeMap;
use std::fmt;

use ah_daemon::layer::{Origin, Parsed};
use ah_identity_provider::Explained;
use clap::ArgMatches;

use super::{Launch, Settings, unreadable};
use crate::render::Table;

/// A deeper check that `--validate` makes, such as loading the certificate files. It starts nothing.
pub struct Check<S> {
    /// What is checked.
    pub name: &'static str,
    /// The faults found.
    pub faults: fn(&S) -> Vec<Explained>,
}

impl<S> fmt::Debug for Check<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Check").field(&self.name).finish()
    }
}

impl<S: Settings> Launch<S> {
    /// All that is wrong with the settings beyond their form: files that cannot be read, then `checks`.
    ///
    /// `checks` run only when every file can be read, so that one missing file is told once.
    pub fn faults(&self, checks: &[Check<S>]) -> Vec<Explained> {
        let unreadable: Vec<_> = self
            .settings
            .files()
            .into_iter()
            .filter_map(unreadable)
            .collect();
        if !unreadable.is_empty() {
            return unreadable;
        }
        let found = checks
            .iter()
            .flat_map(|check| (check.faults)(&self.settings));
        found.collect()
    }

    /// Every setting that has a value, with its origin, as a table for people.
    pub fn report(&self, parsed: &Parsed) -> String {
        let mut table = Table::new(["SETTING", "VALUE", "FROM"]);
        let derived: BTreeMap<_, _> = self.settings.derived().into_iter().collect();
        let matches = S::PATH.iter().try_fold(&parsed.matches, |matches, name| {
            matches.subcommand_matches(name)
        });
        let hidden = hidden(S::PATH);
        for (id, origin) in &self.origins {
            let value = match derived.get(id.as_str()) {
                Some(value) => value.clone(),
                None if hidden.contains(id) && *origin != Origin::Default => "(hidden)".to_owned(),
                None => matches
                    .map(|matches| shown(matches, id))
                    .unwrap_or_default(),
            };
            // These say what to do, not how.
            let orders = ["validate", "print-config", "print-config-schema"];
            if !value.is_empty() && !orders.contains(&id.as_str()) {
                table.row([id.replace('-', "_"), value, origin.to_string()]);
            }
        }
        table.plain()
    }
}

/// The settings whose values are nobody's to read.
fn hidden(path: &[&str]) -> Vec<String> {
    let definition = crate::args::definition();
    let command = path
        .iter()
        .try_fold(&definition, |command, name| command.find_subcommand(name));
    let args = command.into_iter().flat_map(clap::Command::get_arguments);
    let secret = args.filter(|arg| arg.is_hide_env_values_set());
    secret.map(|arg| arg.get_id().to_string()).collect()
}

fn shown(matches: &ArgMatches, id: &str) -> String {
    match matches.try_get_raw(id) {
        Ok(Some(values)) => {
            let values: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
            values.join(", ")
        }
        _ => String::new(),
    }
}
