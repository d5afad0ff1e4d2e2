//! What the Compute Engine API knows of an instance.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use bytes::Bytes;
use http::Request;
use serde::Deserialize;

use super::account::{Account, read};
use crate::node::gcp_iit::Google;

const SCOPE: &str = "https://www.googleapis.com/auth/compute.readonly";

/// An instance, with what is used of it.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Instance {
    tags: Items<String>,
    pub(super) labels: BTreeMap<String, String>,
    metadata: Items<Member>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Items<T> {
    items: Vec<T>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Member {
    pub(super) key: String,
    pub(super) value: String,
}

impl Instance {
    pub(super) fn tags(&self) -> &[String] {
        &self.tags.items
    }

    pub(super) fn metadata(&self) -> &[Member] {
        &self.metadata.items
    }
}

/// The API, for a service account.
pub(super) struct Compute {
    url: String,
    account: Account,
}

impl Compute {
    pub(super) fn new(google: Google, account: Option<PathBuf>) -> Self {
        Self {
            url: google.compute,
            account: Account::new(account, google.metadata),
        }
    }

    pub(super) async fn instance(
        &self,
        project: &str,
        zone: &str,
        name: &str,
        now: SystemTime,
    ) -> Result<Instance, String> {
        for part in [project, zone, name] {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
            if part.is_empty() || part.starts_with('.') || !part.bytes().all(fits) {
                return Err(format!("{part:?} is no name of Google Cloud"));
            }
        }
        let url = format!(
            "{}/compute/v1/projects/{project}/zones/{zone}/instances/{name}",
            self.url
        );
        let request = Request::get(&url).body(Bytes::new());
        let request = request.map_err(|error| error.to_string())?;
        let answer = self.account.send(request, SCOPE, now).await?;
        read(&url, &answer)
    }
}
