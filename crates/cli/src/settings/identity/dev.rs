//! The dev provider's settings (DV-1, DV-2).

use std::path::PathBuf;

use ah_identity_provider::Explained;

use super::{Context, usage};
use crate::args::DevArgs;

/// The dev provider's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevSettings {
    /// `<state>`; the development CA lives in its folder `dev`.
    pub state: PathBuf,
    /// Whether it may leave this machine (DV-2).
    pub allow_remote: bool,
}

impl DevSettings {
    pub(super) fn resolve(
        args: &DevArgs,
        context: &Context<'_>,
        faults: &mut Vec<Explained>,
    ) -> Option<Self> {
        match context.paths.state() {
            Ok(state) => Some(Self {
                state: state.to_owned(),
                allow_remote: args.dev_allow_remote,
            }),
            Err(error) => {
                faults.push(usage(error.to_string()).hint("set one of them"));
                None
            }
        }
    }
}

/// DV-2, for an address that others can reach.
pub(in crate::settings) fn dev_leaves(flag: &str, verb: &str, address: &str) -> Explained {
    usage(format!(
        "the dev identity does not {verb} {address}: it is for this machine only"
    ))
    .cause(format!(
        "{flag} {address} is not a loopback address, and anyone with a copy of the dev CA could pose as either side"
    ))
    .hint(
        "use an identity of files, spiffe, vault or exec, or a loopback address; \
         --dev-allow-remote lifts this on machines that share a copied dev CA",
    )
}
