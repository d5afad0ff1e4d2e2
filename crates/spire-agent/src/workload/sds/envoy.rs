//! What an Envoy says of itself, as far as it says what it can do with secrets.

use ah_spire_plugin::agent::SdsConfig;
use ah_spire_wire::envoy::core::Node;
use ah_spire_wire::envoy::core::node::UserAgentVersionType;
use prost_types::value::Kind;

/// In an Envoy's metadata: what overrides the key of this name in the agent's file.
const DISABLE: &str = "disable_spiffe_cert_validation";

/// Whether bundles go to `node` as a configuration of its SPIFFE validator, which knows one bundle from another, and not
/// as CA certificates. Envoy has it since 1.18; one that does not tell its version has it.
pub(super) fn validates_spiffe(node: Option<&Node>, config: &SdsConfig) -> bool {
    let disabled = node
        .and_then(disabled_in_metadata)
        .unwrap_or(config.disable_spiffe_cert_validation);
    !disabled && node.is_none_or(has_validator)
}

fn has_validator(node: &Node) -> bool {
    let Some(UserAgentVersionType::UserAgentBuildVersion(build)) = &node.user_agent_version_type
    else {
        return true;
    };
    let version = build.version.unwrap_or_default();
    (version.major_number, version.minor_number) >= (1, 18)
}

/// A value that is neither a bool nor one of the texts for it is as good as none.
fn disabled_in_metadata(node: &Node) -> Option<bool> {
    let value = node.metadata.as_ref()?.fields.get(DISABLE)?;
    match value.kind.as_ref()? {
        Kind::BoolValue(value) => Some(*value),
        Kind::StringValue(text) => match text.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use ah_spire_wire::envoy::core::BuildVersion;
    use ah_spire_wire::envoy::version::SemanticVersion;
    use prost_types::{Struct, Value};

    use super::*;

    fn node(version: Option<(u32, u32)>, disabled: Option<Kind>) -> Node {
        let build = version.map(|(major_number, minor_number)| {
            UserAgentVersionType::UserAgentBuildVersion(BuildVersion {
                version: Some(SemanticVersion {
                    major_number,
                    minor_number,
                    patch: 9,
                }),
                metadata: None,
            })
        });
        let fields = disabled.map(|kind| (DISABLE.to_owned(), Value { kind: Some(kind) }));
        Node {
            user_agent_version_type: build,
            metadata: Some(Struct {
                fields: fields.into_iter().collect(),
            }),
            ..Node::default()
        }
    }

    // Inventory section 4: Envoy's version.
    #[test]
    fn envoy_has_the_validator_since_1_18() {
        let config = SdsConfig::default();
        let validates = |version| validates_spiffe(Some(&node(version, None)), &config);
        for (version, has) in [
            (Some((1, 17)), false),
            (Some((0, 99)), false),
            (Some((1, 18)), true),
            (Some((2, 0)), true),
            (None, true),
        ] {
            assert_eq!(validates(version), has, "{version:?}");
        }
        assert!(validates_spiffe(None, &config));
    }

    // Inventory 1.2 disable_spiffe_cert_validation; section 4: the override in a node's metadata.
    #[test]
    fn a_node_overrides_the_configuration() {
        let text = |text: &str| Some(Kind::StringValue(text.to_owned()));
        for (said, configured, validates) in [
            (None, false, true),
            (None, true, false),
            (Some(Kind::BoolValue(true)), false, false),
            (Some(Kind::BoolValue(false)), true, true),
            (text("true"), false, false),
            (text("0"), true, true),
            (text("yes"), false, true),
            (Some(Kind::NumberValue(1.0)), false, true),
        ] {
            let config = SdsConfig {
                disable_spiffe_cert_validation: configured,
                ..SdsConfig::default()
            };
            let told = format!("{said:?} {configured}");
            let node = node(Some((1, 30)), said);
            assert_eq!(validates_spiffe(Some(&node), &config), validates, "{told}");
        }
        let old = node(Some((1, 17)), Some(Kind::BoolValue(false)));
        assert!(!validates_spiffe(Some(&old), &SdsConfig::default()));
    }
}
