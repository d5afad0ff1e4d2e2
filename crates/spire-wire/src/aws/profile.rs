//! A profile of the two files that AWS's SDKs share.

use std::collections::BTreeMap;
use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::aws::Environment;
use crate::aws::credentials::credentials;
use crate::sigv4::Credentials;

/// What says who calls, apart from keys.
const OTHER_SOURCES: [&str; 8] = [
    "role_arn",
    "source_profile",
    "credential_source",
    "credential_process",
    "sso_session",
    "sso_account_id",
    "sso_start_url",
    "web_identity_token_file",
];

/// What would lead calls somewhere else, and the variable that is served in its place.
const ELSEWHERE: [(&str, &str); 5] = [
    ("endpoint_url", "AWS_ENDPOINT_URL"),
    ("services", "AWS_ENDPOINT_URL_<SERVICE>"),
    ("use_fips_endpoint", "AWS_ENDPOINT_URL_<SERVICE>"),
    ("use_dualstack_endpoint", "AWS_ENDPOINT_URL_<SERVICE>"),
    ("ca_bundle", "AWS_CA_BUNDLE"),
];

/// The settings of one profile.
pub(super) struct Profile {
    name: String,
    /// Whether the environment names it.
    named: bool,
    /// With the file of each.
    settings: BTreeMap<String, (Zeroizing<String>, String)>,
}

impl Profile {
    /// `AWS_PROFILE`, or `default`, of the configuration file (`AWS_CONFIG_FILE`, `~/.aws/config`) and the credentials file
    /// (`AWS_SHARED_CREDENTIALS_FILE`, `~/.aws/credentials`), which counts where both have a setting.
    pub(super) async fn read(environment: &Environment) -> Result<Self, String> {
        let named = environment.variable("AWS_PROFILE");
        let named = named.or_else(|| environment.variable("AWS_DEFAULT_PROFILE"));
        let mut profile = Self {
            name: named.unwrap_or("default").to_owned(),
            named: named.is_some(),
            settings: BTreeMap::new(),
        };
        let mut known = false;
        let mut looked = Vec::new();
        for (variable, usual, prefix) in [
            ("AWS_CONFIG_FILE", ".aws/config", "profile"),
            ("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials", ""),
        ] {
            let path = match (environment.variable(variable), environment.variable("HOME")) {
                (Some(path), _) => PathBuf::from(path),
                (None, Some(home)) => PathBuf::from(home).join(usual),
                (None, None) => continue,
            };
            let shown = path.display().to_string();
            // As with the SDKs, a file that cannot be read counts as none.
            match tokio::fs::read_to_string(&path).await {
                Ok(text) => {
                    known |= profile.take(&Zeroizing::new(text), prefix, &shown);
                    looked.push(shown);
                }
                Err(error) => looked.push(format!("{shown} ({error})")),
            }
        }
        if profile.named && !known {
            return Err(format!(
                "there is no profile {:?} in {}",
                profile.name,
                looked.join(" or ")
            ));
        }
        Ok(profile)
    }

    /// Takes what `text` says of the profile, and tells whether it has it. Sections of a configuration file begin with
    /// `prefix`, apart from that of the default profile.
    fn take(&mut self, text: &str, prefix: &str, shown: &str) -> bool {
        let mut within = false;
        let mut known = false;
        for line in text.lines() {
            if let Some(section) = line.strip_prefix('[') {
                let section = section.split(']').next().unwrap_or_default().trim();
                let name = section.strip_prefix(prefix).filter(|rest| {
                    prefix.is_empty() || rest.starts_with([' ', '\t']) && !rest.trim().is_empty()
                });
                let name = name.map(|name| name.trim().trim_matches(['"', '\'']));
                within = name.unwrap_or(section) == self.name
                    && (name.is_some() || section == "default");
                known |= within;
                continue;
            }
            // A line that begins with a space belongs to the setting above it.
            if !within || line.starts_with([' ', '\t', '#', ';']) {
                continue;
            }
            let Some((key, value)) = line.split_once('=') else {
                continue;
            };
            let end = [" #", " ;", "\t#", "\t;"];
            let end = end.iter().filter_map(|mark| value.find(mark)).min();
            let value = end.and_then(|end| value.get(..end)).unwrap_or(value).trim();
            let value = (Zeroizing::new(value.to_owned()), shown.to_owned());
            self.settings.insert(key.trim().to_ascii_lowercase(), value);
        }
        known
    }

    fn setting(&self, key: &str) -> Option<(&str, &str)> {
        let (value, file) = self.settings.get(key)?;
        (!value.is_empty()).then_some((value.as_str(), file.as_str()))
    }

    /// Refuses settings that would lead calls somewhere else.
    pub(super) fn check(&self) -> Result<(), String> {
        for (key, variable) in ELSEWHERE {
            let set = self.setting(key);
            if let Some((_, file)) = set.filter(|(value, _)| !value.eq_ignore_ascii_case("false")) {
                return Err(format!(
                    "{file}: {key} of the profile {:?} is not served; take it out, and set {variable} in the environment if \
                     it is wanted",
                    self.name
                ));
            }
        }
        Ok(())
    }

    /// The profile's keys, if it has any.
    pub(super) fn credentials(&self) -> Result<Option<Credentials>, String> {
        for key in OTHER_SOURCES {
            if let Some((_, file)) = self.setting(key) {
                return Err(format!(
                    "{file}: {key} of the profile {:?} is not served; give it keys",
                    self.name
                ));
            }
        }
        let value = |key| self.setting(key).map(|(value, _)| value);
        match (value("aws_access_key_id"), value("aws_secret_access_key")) {
            (Some(id), Some(secret)) => {
                let token = value("aws_session_token");
                Ok(Some(credentials(id, secret, token)))
            }
            (None, None) if !self.named => Ok(None),
            _ => Err(format!(
                "the profile {:?} needs aws_access_key_id and aws_secret_access_key",
                self.name
            )),
        }
    }
}
