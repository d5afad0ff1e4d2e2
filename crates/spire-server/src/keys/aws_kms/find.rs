//! What KMS and the tagging API have, page by page.

use ah_spire_wire::aws::Fault;
use serde_json::{Value, json};

use super::wire::{self, Alias, Resource};
use super::{ACTIVE, AwsKms, DOMAIN, failed};
use crate::keys::KeyError;

impl AwsKms {
    /// All aliases, or those of one key.
    pub(super) async fn aliases(&self, key: Option<&str>) -> Result<Vec<Alias>, Fault> {
        let mut all = Vec::new();
        let mut marker: Option<String> = None;
        loop {
            let fields = wire::fields([
                ("Limit", Some(json!(100))),
                ("KeyId", key.map(Value::from)),
                ("Marker", marker.map(Value::from)),
            ]);
            let page: wire::Aliases = self.ask("ListAliases", &fields).await?;
            all.extend(page.aliases);
            marker = page.next_marker.filter(|_| page.truncated);
            if marker.is_none() {
                return Ok(all);
            }
        }
    }

    /// Keys of the trust domain that are in use and have this tag besides.
    pub(super) async fn tagged(
        &self,
        tag: Option<(&str, &str)>,
    ) -> Result<Vec<Resource>, KeyError> {
        let tags = [(DOMAIN, self.trust_domain.as_str()), (ACTIVE, "true")];
        let tags = tags.into_iter().chain(tag);
        let filters: Vec<Value> = tags
            .map(|(key, value)| json!({"Key": key, "Values": [value]}))
            .collect();
        let mut all = Vec::new();
        let mut next: Option<String> = None;
        loop {
            let fields = wire::fields([
                ("ResourceTypeFilters", Some(json!(["kms:key"]))),
                ("TagFilters", Some(json!(filters))),
                ("PaginationToken", next.map(Value::from)),
            ]);
            let operation = "ResourceGroupsTaggingAPI_20170126.GetResources";
            let now = self.clock.now();
            let page = self.caller.ask(Self::TAGGING, operation, &fields, now);
            let page: wire::Resources = page.await.map_err(|fault| {
                let why = if fault.is("AccessDeniedException") {
                    "tag-based key discovery needs the permission tag:GetResources in a policy of the server's identity (a key's policy cannot grant it): grant it, or set enable_tag_based_key_discovery = false"
                } else {
                    "failed to fetch keys by tags"
                };
                failed(why, &fault)
            })?;
            all.extend(page.resource_tag_mapping_list);
            next = Some(page.pagination_token).filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(all);
            }
        }
    }
}
