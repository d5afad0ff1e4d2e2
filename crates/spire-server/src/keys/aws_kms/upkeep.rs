//! What keys in KMS need over the years: servers tell that theirs are in use, and delete those of servers that are gone.

use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use ah_spire_wire::aws::Fault;
use serde_json::{Value, json};

use super::wire::{self, Alias};
use super::{ACTIVE, AwsKms, ID, LAST_UPDATE, SERVER, failed, since};
use crate::keys::KeyError;
use crate::keys::remote::{Held, Place};

const HOUR: Duration = Duration::from_hours(1);

/// How often keys in use are marked as such.
pub(super) const EVERY: Duration = HOUR.saturating_mul(6);

/// How often what other servers left is looked for: aliases that no server marks any more, and keys.
const ALIASES_EVERY: Duration = HOUR.saturating_mul(24);
const KEYS_EVERY: Duration = HOUR.saturating_mul(48);

/// How long a server may be silent before its keys are deleted, and a key be without alias.
const SILENT: Duration = HOUR.saturating_mul(24 * 14);
const WITHOUT_ALIAS: Duration = HOUR.saturating_mul(48);

/// When the next looks are due.
pub(super) struct Due {
    aliases: SystemTime,
    keys: SystemTime,
}

impl Due {
    pub(super) fn from(now: SystemTime) -> Self {
        Self {
            aliases: later(now, ALIASES_EVERY),
            keys: later(now, KEYS_EVERY),
        }
    }

    /// Which of the two are due.
    fn are(&mut self, now: SystemTime) -> (bool, bool) {
        let is = |due: &mut SystemTime, every| {
            let is = now >= *due;
            if is {
                *due = later(now, every);
            }
            is
        };
        (
            is(&mut self.aliases, ALIASES_EVERY),
            is(&mut self.keys, KEYS_EVERY),
        )
    }
}

fn later(now: SystemTime, by: Duration) -> SystemTime {
    now.checked_add(by).unwrap_or(now)
}

impl AwsKms {
    /// Marks `held` as in use, and looks for what is not. The error is that of the marking; what others left is looked for
    /// again.
    pub(super) async fn upkeep(&self, held: &[Held]) -> Result<(), KeyError> {
        let mut told = Ok(());
        for held in held {
            let marked = self.mark(held).await;
            if marked.is_err() {
                told = marked;
            }
        }
        let now = self.clock.now();
        let due = {
            let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
            due.are(now)
        };
        let looked = match (self.by_tags, due) {
            (true, (_, true)) => self.dispose_of_tagged(held, now).await,
            (true, _) => Ok(()),
            (false, (aliases, keys)) => {
                let mut looked = Ok(());
                if aliases {
                    looked = self.dispose_of_aliases(now).await;
                }
                if keys {
                    looked = looked.and(self.dispose_of_keys(held, now).await);
                }
                looked
            }
        };
        if let Err(error) = looked {
            tracing::warn!(%error, "Keys that no server uses any more were not all looked for, which is done again");
        }
        told
    }

    async fn mark(&self, held: &Held) -> Result<(), KeyError> {
        let alias = self.refresh(held).await;
        if !self.by_tags {
            return alias;
        }
        let tag = [(LAST_UPDATE, wire::seconds(self.clock.now()))];
        let tagged = self.tag(&held.handle, &tag).await;
        let what = "failed to update the tag spire-last-update";
        tagged.map_err(|fault| failed(what, &fault)).and(alias)
    }

    async fn refresh(&self, held: &Held) -> Result<(), KeyError> {
        let alias = self.alias(&held.id);
        match self.describe(&alias).await {
            // Another server of the same name has replaced it.
            Ok(target) if target.arn != held.handle => {
                tracing::warn!(
                    alias,
                    key_arn = held.handle,
                    alias_means = target.arn,
                    "The alias means another key than this server's, and is left so"
                );
                Ok(())
            }
            Ok(_) => self.point(&held.id, &held.handle).await,
            // Somebody took it away: without it the key would be nobody's.
            Err(fault) if fault.is("NotFoundException") => self.point(&held.id, &held.handle).await,
            Err(fault) => Err(failed("failed to describe key of alias", &fault)),
        }
    }

    /// Aliases of other servers of the trust domain that were not refreshed for long, and their keys.
    async fn dispose_of_aliases(&self, now: SystemTime) -> Result<(), KeyError> {
        let fetch = self.aliases(None).await;
        let all = fetch.map_err(|fault| failed("failed to fetch aliases", &fault))?;
        for alias in all {
            let Alias {
                alias_name,
                alias_arn,
                last_updated_date,
                ..
            } = alias;
            let of_another = alias_name.starts_with(&self.aliases_of_domain)
                && !alias_name.starts_with(&self.aliases);
            let silent = last_updated_date.is_some_and(|at| since(now, wire::time(at)) >= SILENT);
            if !of_another || !silent {
                continue;
            }
            let disposed = async {
                let key = self.describe(&alias_arn).await?;
                if key.enabled {
                    self.tell("DeleteAlias", &json!({"AliasName": alias_name}))
                        .await?;
                }
                Ok::<_, Fault>(key)
            };
            match disposed.await {
                Ok(key) if key.enabled => self.drop_key(&key.arn).await,
                Ok(_) => {}
                Err(fault) => {
                    tracing::warn!(alias = alias_name, %fault, "Alias that no server uses any more is not deleted");
                }
            }
        }
        Ok(())
    }

    /// Keys of the trust domain that never got an alias, or lost it to their successor.
    async fn dispose_of_keys(&self, held: &[Held], now: SystemTime) -> Result<(), KeyError> {
        let mut marker: Option<String> = None;
        loop {
            let fields = wire::fields([
                ("Limit", Some(json!(1000))),
                ("Marker", marker.map(Value::from)),
            ]);
            let page = self.ask::<wire::Keys>("ListKeys", &fields).await;
            let page = page.map_err(|fault| failed("failed to fetch keys", &fault))?;
            for key in page.keys {
                if held.iter().any(|held| held.handle == key.key_arn) {
                    continue;
                }
                match self.is_without_alias(&key.key_arn, now).await {
                    Ok(false) => {}
                    Ok(true) => self.drop_key(&key.key_arn).await,
                    // Keys of others may be hidden.
                    Err(fault) => {
                        tracing::debug!(key_arn = key.key_arn, %fault, "Key is left alone");
                    }
                }
            }
            marker = page.next_marker.filter(|_| page.truncated);
            if marker.is_none() {
                return Ok(());
            }
        }
    }

    async fn is_without_alias(&self, arn: &str, now: SystemTime) -> Result<bool, Fault> {
        let key = self.describe(arn).await?;
        let old = since(now, wire::time(key.creation_date)) >= WITHOUT_ALIAS;
        let ours = key.enabled && key.description.starts_with(&self.description);
        Ok(old && ours && self.aliases(Some(arn)).await?.is_empty())
    }

    /// Tagged keys of servers that are silent for long, and of this server what is not in use.
    async fn dispose_of_tagged(&self, held: &[Held], now: SystemTime) -> Result<(), KeyError> {
        for resource in self.tagged(None).await? {
            let arn = &resource.resource_arn;
            let said = resource.tag(LAST_UPDATE).unwrap_or("0");
            let Ok(said) = said.parse::<u32>() else {
                tracing::warn!(key_arn = arn, "The tag spire-last-update is no time");
                continue;
            };
            let silent = since(now, wire::time(f64::from(said)));
            if resource.tag(SERVER) == Some(&self.server) {
                let in_use = held.iter().any(|held| held.handle == *arn);
                let id = resource.tag(ID).unwrap_or_default();
                if in_use || silent < WITHOUT_ALIAS || !self.is_replaced(id, arn).await {
                    continue;
                }
            } else if silent < SILENT {
                continue;
            }
            // In this order: what is not active is not found again.
            let disposed = async {
                self.delete(arn).await?;
                let tagged = self.tag(arn, &[(ACTIVE, "false".into())]).await;
                tagged.map_err(|fault| failed("failed to mark key as inactive", &fault))
            };
            match disposed.await {
                Ok(()) => {
                    tracing::info!(key_arn = arn, "Key that no server uses any more is deleted")
                }
                Err(error) => {
                    tracing::warn!(key_arn = arn, %error, "Key that no server uses any more is not deleted");
                }
            }
        }
        Ok(())
    }

    /// Whether the alias of `id` means another key than `arn`.
    async fn is_replaced(&self, id: &str, arn: &str) -> bool {
        let target = self.describe(&self.alias(id)).await;
        target.is_ok_and(|target| target.arn != arn)
    }

    async fn drop_key(&self, arn: &str) {
        match self.delete(arn).await {
            Ok(()) => tracing::info!(key_arn = arn, "Key that no server uses any more is deleted"),
            Err(error) => {
                tracing::warn!(key_arn = arn, %error, "Key that no server uses any more is not deleted");
            }
        }
    }
}
