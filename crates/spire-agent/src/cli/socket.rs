//! Which agent is asked (SR-4).

use std::path::PathBuf;

use ah_spire_plugin::agent::DEFAULT_SOCKET_PATH;
use ah_spire_plugin::goflag::{FlagSet, Flags};

use super::failure::Failure;

const TEMPLATE: &str = "SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE";
const SOCKET: &str = "SPIRE_AGENT_PUBLIC_SOCKET";

/// `-socketPath` and `-instance`.
pub(super) fn with_flags(flags: FlagSet, usage: &str) -> FlagSet {
    flags.string("socketPath", DEFAULT_SOCKET_PATH, usage).string(
        "instance",
        "",
        "Instance name to substitute into socket templates (env SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE).",
    )
}

/// The socket that flags and environment name.
pub(super) fn path(flags: &Flags) -> Result<PathBuf, Failure> {
    let variable = |name| std::env::var(name).unwrap_or_default();
    let path = resolve(
        flags.string("socketPath"),
        flags.string("instance"),
        &variable(TEMPLATE),
        &variable(SOCKET),
    )
    .map_err(Failure::new)?;
    std::path::absolute(&path)
        .map_err(|error| Failure::new(format!("error: -socketPath {path:?}: {error}")))
}

/// A flag that says what the default says counts as not given, as upstream.
fn resolve(flag: &str, instance: &str, template: &str, socket: &str) -> Result<String, String> {
    if !instance.is_empty() {
        if template.is_empty() {
            return Err(format!(
                "{TEMPLATE} environment variable must be defined when using the instance flag"
            ));
        }
        if !template.contains("%i") {
            return Err(format!("failed to find %i in {TEMPLATE}"));
        }
    }
    Ok(if flag != DEFAULT_SOCKET_PATH {
        flag.to_owned()
    } else if !instance.is_empty() {
        template.replace("%i", instance)
    } else if !socket.is_empty() {
        socket.to_owned()
    } else {
        DEFAULT_SOCKET_PATH.to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // SR-4; inventory §2, §12 (CLI env), §13
    #[test]
    fn the_flag_comes_before_the_instance_before_the_environment() {
        let default = DEFAULT_SOCKET_PATH;
        let template = "/run/%i/api.sock";
        for (flag, instance, template, socket, expected) in [
            (default, "", "", "", default),
            (default, "", template, "", default),
            (default, "", "", "/s", "/s"),
            (default, "a", template, "/s", "/run/a/api.sock"),
            ("/f", "a", template, "/s", "/f"),
            ("/f", "", "", "/s", "/f"),
        ] {
            let found = resolve(flag, instance, template, socket);
            assert_eq!(found.as_deref(), Ok(expected));
        }
    }

    #[test]
    fn an_instance_needs_a_template_with_a_place_for_it() {
        let error = resolve(DEFAULT_SOCKET_PATH, "a", "", "").unwrap_err();
        assert!(error.starts_with("SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE environment"));
        let error = resolve("/f", "a", "/run/api.sock", "").unwrap_err();
        assert_eq!(
            error,
            "failed to find %i in SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE"
        );
    }
}
