//! The exec provider's settings (EX-1).

use std::time::Duration;

use ah_identity_provider::Explained;
use ah_identity_provider::exec::ExecCommand;

use super::{Context, usage};
use crate::args::ExecArgs;

/// The shortest refresh interval: more often than this is a mistake that only makes work.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);

/// The exec provider's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecSettings {
    /// What is run.
    pub command: ExecCommand,
    /// How often at least: one second or more. Two thirds of the certificate's life bound it in any case.
    pub refresh_interval: Option<Duration>,
    /// How long one run may take: more than nothing.
    pub timeout: Duration,
}

impl ExecSettings {
    pub(super) fn resolve(
        args: &ExecArgs,
        context: &Context<'_>,
        faults: &mut Vec<Explained>,
    ) -> Option<Self> {
        if let Some(interval) = args.exec_refresh_interval
            && interval < SHORTEST_INTERVAL
        {
            faults.push(usage(format!(
                "--exec-refresh-interval {} is shorter than 1s",
                humantime::format_duration(interval)
            )));
        }
        let Some(command) = &args.exec_command else {
            let text = format!("{} exec needs --exec-command", context.flag());
            faults.push(usage(text).hint(
                "give a command that prints an identity, such as --exec-command /etc/ah/identity.sh",
            ));
            return None;
        };
        Some(Self {
            command: command.clone(),
            refresh_interval: args.exec_refresh_interval,
            timeout: args.exec_timeout,
        })
    }
}
