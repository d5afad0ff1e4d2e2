//! `KeyManager` plugins.

use std::path::PathBuf;
use std::time::Duration;

use ah_identity_provider::vault::Retry;
use ah_spire_plugin::catalog::PluginConfig;
use ah_spire_plugin::config_block;

use super::{data, required, vault, wrong};
use crate::keys::{Identifier, Pin, Pkcs11Settings, TokenName, TransitSettings};

/// Who asks for a signature waits: what is tried again is tried soon.
const RETRY: Retry = Retry {
    max: 2,
    delay: Duration::from_millis(500),
};

config_block! {
    /// `KeyManager "disk"`
    struct DiskData {
        keys_path: String = "keys_path",
    }
}

config_block! {
    /// What `KeyManager "hashicorp_vault"` has besides the access.
    struct TransitData {
        key_identifier_file: String = "key_identifier_file",
        key_identifier_value: String = "key_identifier_value",
        transit_engine_path: String = "transit_engine_path",
    }
}

config_block! {
    /// `KeyManager "pkcs11"`
    struct Pkcs11Data {
        module_path: String = "module_path",
        token_label: String = "token_label",
        slot: Option<i64> = "slot",
        pin_file: String = "pin_file",
        pin_env: String = "pin_env",
        key_identifier_file: String = "key_identifier_file",
        key_identifier_value: String = "key_identifier_value",
    }
}

/// Where the keys of the authorities are to be.
#[derive(Clone)]
pub(crate) enum KeysWanted {
    Memory,
    /// The file.
    Disk(PathBuf),
    /// The name of the plugin.
    External(String),
    /// `hashicorp_vault`
    Transit(Box<TransitSettings>),
    /// `pkcs11`
    Pkcs11(Pkcs11Settings),
}

impl KeysWanted {
    /// Reads the plugin; `None` when there is none of this name. `variable` is the environment, where the plugin looks.
    pub(super) fn read(
        plugin: &PluginConfig,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, String> {
        Ok(Some(match plugin.name.as_str() {
            "memory" => Self::Memory,
            "disk" => {
                let data = data(plugin, |it: &DiskData| &it.unknown)?;
                Self::Disk(required(plugin, "keys_path", &data.keys_path)?)
            }
            "hashicorp_vault" => Self::Transit(Box::new(transit(plugin, variable)?)),
            "pkcs11" => Self::Pkcs11(pkcs11(plugin)?),
            _ => return Ok(None),
        }))
    }
}

fn transit(
    plugin: &PluginConfig,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<TransitSettings, String> {
    let (access, data) = vault::data(plugin, |it: &TransitData| &it.unknown)?;
    let path = variable("VAULT_TRANSIT_ENGINE_PATH").unwrap_or(data.transit_engine_path);
    let mount = vault::mount(plugin, "transit_engine_path", &path, "transit")?;
    let server = identifier(
        plugin,
        &data.key_identifier_file,
        &data.key_identifier_value,
    )?;
    Ok(TransitSettings {
        access: vault::access(plugin, &access, &mount, RETRY, variable)?,
        mount,
        server,
    })
}

fn pkcs11(plugin: &PluginConfig) -> Result<Pkcs11Settings, String> {
    let data = data(plugin, |it: &Pkcs11Data| &it.unknown)?;
    let token = match (data.token_label, data.slot) {
        (label, None) if !label.is_empty() => TokenName::Label(label),
        (label, Some(slot)) if label.is_empty() => {
            let slot = u64::try_from(slot);
            TokenName::Slot(
                slot.map_err(|_| wrong(plugin, "slot is the number of a slot, from 0"))?,
            )
        }
        _ => {
            let why = "set one of token_label and slot, and no more";
            return Err(wrong(plugin, why));
        }
    };
    let pin = match (data.pin_file, data.pin_env) {
        (file, variable) if variable.is_empty() && !file.is_empty() => Pin::File(file.into()),
        (file, variable) if file.is_empty() && !variable.is_empty() => Pin::Variable(variable),
        _ => {
            let why = "set one of pin_file (a file with the PIN) and pin_env (the name of a variable of the environment that holds it), and no more";
            return Err(wrong(plugin, why));
        }
    };
    let server = identifier(
        plugin,
        &data.key_identifier_file,
        &data.key_identifier_value,
    )?;
    Ok(Pkcs11Settings {
        module: required(plugin, "module_path", &data.module_path)?,
        token,
        pin,
        server,
    })
}

/// Whose keys they are. It becomes part of names and paths.
fn identifier(plugin: &PluginConfig, file: &str, value: &str) -> Result<Identifier, String> {
    match (file, value) {
        ("", "") => Err(wrong(
            plugin,
            "one of 'key_identifier_file' or 'key_identifier_value' must be provided",
        )),
        (file, "") => Ok(Identifier::File(file.into())),
        ("", value) => {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            if value.len() <= 63 && value.chars().all(allowed) {
                return Ok(Identifier::Value(value.to_owned()));
            }
            Err(wrong(
                plugin,
                format!(
                    "key_identifier_value \"{value}\" cannot be part of a key's name; use at most 63 letters, digits, '.', '_' and '-'"
                ),
            ))
        }
        _ => Err(wrong(
            plugin,
            "only one of 'key_identifier_file' or 'key_identifier_value' should be provided",
        )),
    }
}
