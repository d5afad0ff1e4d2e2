//! Which provider, and what it works with (contract §6). Each provider's settings have a file of their own.

mod dev;
mod exec;
mod files;
mod spiffe;
mod vault;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ah_daemon::layer::Origin;
use ah_daemon::paths::Paths;
use ah_identity_provider::{Explained, ProviderKind};

pub use dev::DevSettings;
pub use exec::ExecSettings;
pub use files::FilesSettings;
pub use spiffe::SpiffeSettings;
pub use vault::VaultSettings;

pub(super) use dev::dev_leaves;

use super::{no_directory, usage};
use crate::args::{IdentityChoice, ProviderArgs};

/// Where the identity comes from, and whom it trusts besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentitySettings {
    /// The provider and its settings.
    pub source: SourceSettings,
    /// `--ca` beside a provider that brings its own roots: more authorities to trust (AP-3, EN-3).
    pub extra_roots: Option<PathBuf>,
}

/// A provider's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceSettings {
    /// DV-1
    Dev(DevSettings),
    /// FI-1
    Files(FilesSettings),
    /// SP-1
    Spiffe(SpiffeSettings),
    /// VA-1
    Vault(Box<VaultSettings>),
    /// EX-1
    Exec(ExecSettings),
}

/// Which side resolves its identity: the flags differ in name, and in what `--ca` means for dev.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    AccessPoint,
    Executor,
}

/// What a provider's settings are resolved with, besides its own flags.
pub(super) struct Context<'a> {
    pub(super) side: Side,
    /// What was given and what is a default, by flag.
    pub(super) origins: &'a BTreeMap<String, Origin>,
    pub(super) paths: &'a Paths,
    /// The executor's name (EN-6).
    pub(super) name: Option<&'a str>,
}

impl Context<'_> {
    /// The flag that chooses the provider.
    fn flag(&self) -> &'static str {
        match self.side {
            Side::AccessPoint => "--server-identity",
            Side::Executor => "--identity",
        }
    }

    /// Whether somebody gave this flag to this program. A variable that other programs read too, such as
    /// `VAULT_ADDR`, says nothing about what is wanted here.
    fn is_given(&self, flag: &str) -> bool {
        match self.origins.get(flag) {
            Some(Origin::Flag | Origin::File(..)) => true,
            Some(Origin::Environment(name)) => name.starts_with("AH_"),
            Some(Origin::Default) | None => false,
        }
    }
}

impl IdentitySettings {
    /// Which provider this is.
    pub fn kind(&self) -> ProviderKind {
        match self.source {
            SourceSettings::Dev(_) => ProviderKind::Dev,
            SourceSettings::Files(_) => ProviderKind::Files,
            SourceSettings::Spiffe(_) => ProviderKind::Spiffe,
            SourceSettings::Vault(_) => ProviderKind::Vault,
            SourceSettings::Exec(_) => ProviderKind::Exec,
        }
    }

    /// The files it reads.
    pub(super) fn files(&self) -> Vec<&Path> {
        let mut files = match &self.source {
            // The agent's socket is none: it may come and go while the process runs.
            SourceSettings::Dev(_) | SourceSettings::Spiffe(_) | SourceSettings::Exec(_) => {
                Vec::new()
            }
            SourceSettings::Files(files) => files.files(),
            SourceSettings::Vault(vault) => vault.files(),
        };
        files.extend(self.extra_roots.as_deref());
        files
    }

    /// Whether it is the dev identity and has to stay on this machine (DV-2).
    pub(super) fn stays_here(&self) -> bool {
        matches!(&self.source, SourceSettings::Dev(dev) if !dev.allow_remote)
    }
}

pub(super) fn resolve(
    choice: IdentityChoice,
    args: &ProviderArgs,
    context: &Context<'_>,
    faults: &mut Vec<Explained>,
) -> Option<IdentitySettings> {
    faults.extend(strangers(choice, context));
    let source = match choice {
        IdentityChoice::Dev => {
            DevSettings::resolve(&args.dev, context, faults).map(SourceSettings::Dev)
        }
        IdentityChoice::Files => {
            FilesSettings::resolve(&args.files, args.ca.as_deref(), context, faults)
                .map(SourceSettings::Files)
        }
        IdentityChoice::Spiffe => Some(SourceSettings::Spiffe(SpiffeSettings::resolve(
            &args.spiffe,
        ))),
        IdentityChoice::Vault => VaultSettings::resolve(&args.vault, context, faults)
            .map(|vault| SourceSettings::Vault(Box::new(vault))),
        IdentityChoice::Exec => {
            ExecSettings::resolve(&args.exec, context, faults).map(SourceSettings::Exec)
        }
    };
    let extra_roots = match choice {
        // Its `--ca` is among its own settings.
        IdentityChoice::Files => None,
        _ => args.ca.clone(),
    };
    source.map(|source| IdentitySettings {
        source,
        extra_roots,
    })
}

/// Flags that were given and have no meaning with `choice`: a fault for each provider that they belong to.
fn strangers(choice: IdentityChoice, context: &Context<'_>) -> Vec<Explained> {
    let flag = context.flag();
    let others = IdentityChoice::ALL
        .into_iter()
        .filter(|other| *other != choice);
    let faults = others.filter_map(|owner| {
        let mut given: Vec<_> = owner
            .flags()
            .into_iter()
            .filter(|id| context.is_given(id))
            .collect();
        // AP-3 gives an access point extra roots with every provider; EN-3 gives none to a dev executor.
        let no_roots = choice == IdentityChoice::Dev && context.side == Side::Executor;
        if owner == IdentityChoice::Files && no_roots && context.is_given("ca") {
            given.push("ca".to_owned());
        }
        if given.is_empty() {
            return None;
        }
        let (verb, them) = match given.len() {
            1 => ("has", "it"),
            _ => ("have", "them"),
        };
        let given: Vec<_> = given.iter().map(|id| format!("--{id}")).collect();
        let (given, owner) = (given.join(", "), owner.name());
        let text = format!("{given} {verb} no meaning with {flag} {}", choice.name());
        let chosen = flag.trim_start_matches('-');
        Some(
            usage(text)
                .cause(format!("only the {owner} identity takes {them}"))
                .hint(match context.origins.get(chosen) {
                    Some(Origin::Default) | None => format!("add {flag} {owner}"),
                    Some(_) => format!("leave {them} out, or use {flag} {owner}"),
                }),
        )
    });
    faults.collect()
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
