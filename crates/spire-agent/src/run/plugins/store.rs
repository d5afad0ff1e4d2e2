//! `SVIDStore` plugins.

use std::path::PathBuf;
use std::sync::Arc;

use ah_identity_provider::{Code, Explained};
use ah_spire_attest::node::gcp_iit::{Account, Google};
use ah_spire_plugin::catalog::PluginConfig;
use ah_spire_plugin::config_block;
use ah_spire_wire::aws::{Caller, Environment};
use spiffe::TrustDomain;
use zeroize::Zeroizing;

use super::data;
use crate::svid_store::{AwsSecrets, Directory, GoogleSecrets, SvidStore};

config_block! {
    /// `SVIDStore "aws_secretsmanager"`
    struct AwsSecretsData {
        access_key_id: String = "access_key_id",
        secret_access_key: Zeroizing<String> = "secret_access_key",
        region: String = "region",
    }
}

config_block! {
    /// `SVIDStore "directory"`
    struct DirectoryData {
        path: String = "path",
    }
}

config_block! {
    /// `SVIDStore "gcp_secretmanager"`
    struct GoogleSecretsData {
        service_account_file: String = "service_account_file",
    }
}

/// A store that is part of the agent, with its settings.
pub(super) enum BuiltInStore {
    Aws(Box<AwsSecrets>),
    /// Where the folders are.
    Directory(PathBuf),
    /// The key file of the account.
    Google(Option<PathBuf>),
}

impl BuiltInStore {
    /// `None` when there is none of this name.
    pub(super) fn read(plugin: &PluginConfig) -> Result<Option<Self>, Explained> {
        Ok(Some(match plugin.name.as_str() {
            "aws_secretsmanager" => {
                let store = aws_secrets(data(plugin)?, Environment::of_process())?;
                Self::Aws(Box::new(store))
            }
            "directory" => Self::Directory(directory(data(plugin)?)?),
            "gcp_secretmanager" => {
                let data: GoogleSecretsData = data(plugin)?;
                let file = Some(data.service_account_file).filter(|file| !file.is_empty());
                Self::Google(file.map(PathBuf::from))
            }
            _ => return Ok(None),
        }))
    }

    /// Nobody is asked anything yet.
    pub(super) fn open(self, of: &TrustDomain) -> Arc<dyn SvidStore> {
        match self {
            Self::Aws(store) => Arc::new(*store),
            Self::Directory(path) => Arc::new(Directory::new(path)),
            Self::Google(file) => {
                let account = Account::new(file, Google::default().metadata);
                let api = "https://secretmanager.googleapis.com";
                Arc::new(GoogleSecrets::new(api, account, of))
            }
        }
    }
}

fn aws_secrets(data: AwsSecretsData, environment: Environment) -> Result<AwsSecrets, Explained> {
    let told = |why: String, hint: &str| {
        let what = format!("SVIDStore \"aws_secretsmanager\": {why}");
        Explained::new(Code::Usage, what).hint(hint.to_owned())
    };
    let of_region =
        "let `region` in its plugin_data name where the secrets are, such as eu-central-1";
    if data.region.is_empty() {
        return Err(told("region is required".into(), of_region));
    }
    let keys = environment.keys(&data.access_key_id, &data.secret_access_key);
    let keys = keys.map_err(|why| told(why, "set both in its plugin_data, or neither"))?;
    let caller = Caller::new(environment, &data.region, keys);
    let found = caller.endpoint(AwsSecrets::SERVICE);
    found.map_err(|why| told(why, of_region))?;
    Ok(AwsSecrets::new(caller))
}

fn directory(data: DirectoryData) -> Result<PathBuf, Explained> {
    if data.path.is_empty() {
        return Err(
            Explained::new(Code::Usage, "SVIDStore \"directory\": path is required").hint(
                "let `path` in its plugin_data name the folder that gets a folder for each SVID",
            ),
        );
    }
    Ok(data.path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    // Inventory, SVIDStore aws_secretsmanager: its keys.
    #[test]
    fn the_keys_of_aws_secretsmanager_are_read() {
        let of = |id: &str, secret: &str, region: &str| {
            let data = AwsSecretsData {
                access_key_id: id.into(),
                secret_access_key: Zeroizing::new(secret.into()),
                region: region.into(),
                ..AwsSecretsData::default()
            };
            aws_secrets(data, Environment::default()).map(|_| ())
        };
        of("", "", "eu-central-1").unwrap();
        of("a", "s", "eu-central-1").unwrap();
        for (id, secret, region, why) in [
            ("", "", "", "region is required"),
            ("", "", "Mars", "\"Mars\" is no region of AWS"),
            ("a", "", "eu-central-1", "missing secret access key"),
            ("", "s", "eu-central-1", "missing access key id"),
        ] {
            let error = of(id, secret, region).unwrap_err().report();
            assert!(error.contains(why), "{error}");
        }
    }
}
