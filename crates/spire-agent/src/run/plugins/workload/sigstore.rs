//! `sigstore { }` of workload attestors.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ah_identity_provider::Explained;
use ah_spire_attest::workload::sigstore::{Credential, RootFiles, SigstoreConfig};
use ah_spire_plugin::catalog::PluginConfig;
use ah_spire_plugin::config_block;
use zeroize::Zeroizing;

use super::{known, refused, variable};

config_block! {
    /// `sigstore`
    pub(super) struct SigstoreData {
        allowed_identities: BTreeMap<String, Vec<String>> = "allowed_identities",
        skipped_images: Vec<String> = "skipped_images",
        rekor_url: String = "rekor_url",
        ignore_sct: bool = "ignore_sct",
        ignore_tlog: bool = "ignore_tlog",
        ignore_attestations: bool = "ignore_attestations",
        registry_credentials: BTreeMap<String, CredentialData> = "registry_credentials",
    }
}

config_block! {
    /// `sigstore.registry_credentials[]`
    struct CredentialData {
        username: String = "username",
        password: String = "password",
    }
}

pub(super) fn read(
    plugin: &PluginConfig,
    data: Option<SigstoreData>,
) -> Result<Option<SigstoreConfig>, Explained> {
    let Some(data) = data else {
        return Ok(None);
    };
    known(plugin, &data.unknown)?;
    if !data.rekor_url.is_empty() {
        return Err(refused(plugin, "sigstore.rekor_url is not supported").hint(
            "take it out: entries are verified as they lie beside the signature, and Rekor is not asked; its key is \
             that of SIGSTORE_REKOR_PUBLIC_KEY, or of trusted_root.json",
        ));
    }
    let mut registry_credentials = BTreeMap::new();
    for (registry, credential) in data.registry_credentials {
        known(plugin, &credential.unknown)?;
        let CredentialData {
            username, password, ..
        } = credential;
        if username.is_empty() || password.is_empty() {
            let why = format!(
                "incomplete credentials for registry {registry:?}: both username and password must be provided"
            );
            return Err(refused(plugin, &why).hint("set both, or take the registry out"));
        }
        let password = Zeroizing::new(password);
        registry_credentials.insert(registry, Credential { username, password });
    }
    Ok(Some(SigstoreConfig {
        allowed_identities: data.allowed_identities,
        skipped_images: data.skipped_images.into_iter().collect(),
        ignore_sct: data.ignore_sct,
        ignore_tlog: data.ignore_tlog,
        ignore_attestations: data.ignore_attestations,
        registry_credentials,
        roots: RootFiles {
            fulcio: variable("SIGSTORE_ROOT_FILE").into(),
            rekor: variable("SIGSTORE_REKOR_PUBLIC_KEY").into(),
            ct_log: variable("SIGSTORE_CT_LOG_PUBLIC_KEY_FILE").into(),
            tuf_root: tuf_root(),
        },
    }))
}

/// Where `cosign initialize` puts what it finds.
fn tuf_root() -> PathBuf {
    match (variable("TUF_ROOT"), variable("HOME")) {
        (set, _) if !set.is_empty() => set.into(),
        (_, home) if !home.is_empty() => PathBuf::from(home).join(".sigstore/root"),
        _ => PathBuf::new(),
    }
}
