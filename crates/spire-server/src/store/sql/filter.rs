//! What is asked for, as the condition of a statement.

use std::collections::BTreeSet;
use std::fmt;

use ah_spire_wire::model::Selector;

use super::bundles::stored_name;
use super::connection::{Arg, Connection};
use crate::store::{AgentFilter, EntryFilter, Match, StoreError};

/// Conditions that all have to hold, with the values they speak of.
#[derive(Default)]
pub(super) struct Where {
    conditions: Vec<String>,
    args: Vec<Arg>,
}

impl Where {
    /// The placeholder of a new value.
    pub(super) fn arg(&mut self, value: impl Into<Arg>) -> String {
        self.args.push(value.into());
        format!("${}", self.args.len())
    }

    pub(super) fn and(&mut self, condition: String) {
        self.conditions.push(condition);
    }

    pub(super) fn args(&self) -> &[Arg] {
        &self.args
    }

    /// Any of these in the columns `type` and `value` of `s`.
    pub(super) fn selectors<'a>(&mut self, any: impl Iterator<Item = &'a Selector>) -> String {
        let one = |selector: &Selector| {
            let kind = self.arg(selector.kind.as_str());
            let value = self.arg(selector.value.as_str());
            format!("(s.type = {kind} AND s.value = {value})")
        };
        any.map(one).collect::<Vec<_>>().join(" OR ")
    }

    /// On table `e`.
    pub(super) fn entries(filter: &EntryFilter) -> Result<Self, StoreError> {
        let mut all = Self::default();
        for (column, value) in [
            (
                "spiffe_id",
                filter.spiffe_id.as_ref().map(ToString::to_string),
            ),
            (
                "parent_id",
                filter.parent_id.as_ref().map(ToString::to_string),
            ),
            ("hint", filter.hint.clone()),
        ] {
            if let Some(value) = value {
                let value = all.arg(value);
                all.and(format!("e.{column} = {value}"));
            }
        }
        if let Some(downstream) = filter.downstream {
            let downstream = all.arg(downstream);
            all.and(format!("coalesce(e.downstream, false) = {downstream}"));
        }
        if let Some((how, wanted)) = &filter.selectors {
            all.by_selectors(*how, wanted, "selectors", "registered_entry_id", "e.id")?;
        }
        if let Some((how, wanted)) = &filter.federates_with
            && !wanted.is_empty()
        {
            let names: Vec<_> = wanted
                .iter()
                .map(|domain| all.arg(stored_name(domain)))
                .collect();
            let names = format!("s.trust_domain IN ({})", names.join(", "));
            let table = "(SELECT f.registered_entry_id, b.trust_domain FROM federated_registration_entries f JOIN bundles b ON b.id = f.bundle_id)";
            all.by_set(
                *how,
                &names,
                wanted.len(),
                table,
                "registered_entry_id",
                "e.id",
            );
        }
        Ok(all)
    }

    /// On table `e`.
    pub(super) fn agents(filter: &AgentFilter, db: &Connection) -> Result<Self, StoreError> {
        let mut all = Self::default();
        if let Some(kind) = &filter.attestation_type {
            let kind = all.arg(kind.as_str());
            all.and(format!("e.data_type = {kind}"));
        }
        if let Some(banned) = filter.banned {
            let not = if banned { "" } else { "NOT " };
            // As upstream has it: a ban clears the serial number.
            all.and(format!("{not}coalesce(e.serial_number, '') = ''"));
        }
        if let Some(can) = filter.can_reattest {
            let can = all.arg(can);
            all.and(format!("coalesce(e.can_reattest, false) = {can}"));
        }
        if let Some(before) = filter.expires_before {
            let before = all.arg(before);
            let expires = db.seconds("e.expires_at");
            all.and(format!("{expires} < {before}"));
        }
        if let Some((how, wanted)) = &filter.selectors {
            all.by_selectors(
                *how,
                wanted,
                "node_resolver_map_entries",
                "spiffe_id",
                "e.spiffe_id",
            )?;
        }
        Ok(all)
    }

    fn by_selectors(
        &mut self,
        how: Match,
        wanted: &BTreeSet<Selector>,
        table: &str,
        column: &str,
        id: &str,
    ) -> Result<(), StoreError> {
        if wanted.is_empty() {
            return Err(StoreError::Invalid(
                "cannot list by empty selector set".into(),
            ));
        }
        let any = self.selectors(wanted.iter());
        self.by_set(how, &any, wanted.len(), table, column, id);
        Ok(())
    }

    /// `any` says which rows `s` of `table` are among the `count` that are wanted. None is twice in a set.
    fn by_set(&mut self, how: Match, any: &str, count: usize, table: &str, column: &str, id: &str) {
        let all_of = format!("GROUP BY s.{column} HAVING count(*) = {count}");
        let group = match how {
            Match::Exact | Match::Superset => all_of.as_str(),
            Match::Subset | Match::Any => "",
        };
        self.and(format!(
            "{id} IN (SELECT s.{column} FROM {table} s WHERE {any} {group})"
        ));
        if matches!(how, Match::Exact | Match::Subset) {
            self.and(format!(
                "NOT EXISTS (SELECT 1 FROM {table} s WHERE s.{column} = {id} AND NOT ({any}))"
            ));
        }
    }
}

impl fmt::Display for Where {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.conditions.is_empty() {
            return Ok(());
        }
        write!(f, "WHERE {}", self.conditions.join(" AND "))
    }
}

/// Row numbers of ours, for `IN (…)`.
pub(super) fn id_list(ids: &[impl ToString]) -> String {
    let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
    ids.join(", ")
}
