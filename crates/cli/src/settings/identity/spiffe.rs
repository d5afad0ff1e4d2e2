//! The spiffe provider's settings (AP-4, EN-4, SP-1).

use ah_identity_provider::spiffe::{Choice, Endpoint};

use crate::args::SpiffeArgs;

/// The spiffe provider's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpiffeSettings {
    /// Where the Workload API is.
    pub endpoint: Endpoint,
    /// Which SVID to take where there are several.
    pub choice: Choice,
}

impl SpiffeSettings {
    pub(super) fn resolve(args: &SpiffeArgs) -> Self {
        Self {
            endpoint: args.spiffe_socket.clone(),
            choice: Choice {
                id: args.spiffe_id.clone(),
                hint: args.spiffe_hint.clone(),
            },
        }
    }
}
