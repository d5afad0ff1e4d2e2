//! `DataStore "sql"`.

use std::collections::BTreeMap;

use ah_spire_plugin::catalog::PluginConfig;
use ah_spire_plugin::config_block;
use ah_spire_plugin::decode::{Decode, Node};
use ah_spire_plugin::hcl::HclError;
use ah_spire_wire::aws::Environment;
use zeroize::Zeroizing;

use super::{all_known, aws, data, path, wrong};
use crate::store::{AwsLogin, StoreConfig};

config_block! {
    /// `DataStore "sql"`
    struct SqlData {
        database_type: DatabaseType = "database_type",
        connection_string: String = "connection_string",
        ro_connection_string: String = "ro_connection_string",
        root_ca_path: String = "root_ca_path",
        client_cert_path: String = "client_cert_path",
        client_key_path: String = "client_key_path",
        conn_max_lifetime: Option<String> = "conn_max_lifetime",
        max_open_conns: Option<i64> = "max_open_conns",
        max_idle_conns: Option<i64> = "max_idle_conns",
        disable_migration: bool = "disable_migration",
        log_sql: bool = "log_sql",
    }
}

config_block! {
    /// `database_type "aws_…"`
    struct AwsData {
        region: String = "region",
        access_key_id: String = "access_key_id",
        secret_access_key: Zeroizing<String> = "secret_access_key",
    }
}

/// `database_type = "…"`, or `database_type "…" { }`.
#[derive(Clone, Default)]
struct DatabaseType {
    name: String,
    blocks: BTreeMap<String, AwsData>,
}

impl Decode for DatabaseType {
    fn decode(&mut self, path: &str, node: Node<'_>) -> Result<(), HclError> {
        match node {
            node @ Node::Literal(_) => self.name.decode(path, node),
            node => self.blocks.decode(path, node),
        }
    }
}

pub(super) fn sql(plugin: &PluginConfig, environment: &Environment) -> Result<StoreConfig, String> {
    let data = data(plugin, |it: &SqlData| &it.unknown)?;
    let number = |value: Option<i64>| value.and_then(|value| u32::try_from(value).ok());
    let (database_type, aws) = database_type(plugin, data.database_type, environment)?;
    let config = StoreConfig {
        database_type,
        aws,
        connection_string: data.connection_string,
        ro_connection_string: data.ro_connection_string,
        root_ca_path: path(&data.root_ca_path),
        client_cert_path: path(&data.client_cert_path),
        client_key_path: path(&data.client_key_path),
        conn_max_lifetime: data.conn_max_lifetime,
        max_open_conns: number(data.max_open_conns),
        max_idle_conns: number(data.max_idle_conns),
        disable_migration: data.disable_migration,
        log_sql: data.log_sql,
    };
    let valid = config.validate();
    valid.map_err(|error| wrong(plugin, error))?;
    Ok(config)
}

fn database_type(
    plugin: &PluginConfig,
    given: DatabaseType,
    environment: &Environment,
) -> Result<(String, Option<AwsLogin>), String> {
    let mut blocks = given.blocks.into_iter();
    let (name, login) = match (blocks.next(), blocks.next(), given.name.is_empty()) {
        (None, _, _) => return Ok((given.name, None)),
        (Some(only), None, true) => only,
        _ => return Err(wrong(plugin, "exactly one database_type is expected")),
    };
    if !["aws_mysql", "aws_postgres"].contains(&name.as_str()) {
        let why = format!(
            "database_type {name:?} takes no block: aws_mysql and aws_postgres do, others are written as database_type = {name:?}"
        );
        return Err(wrong(plugin, why));
    }
    all_known(plugin, &format!("database_type {name:?}"), &login.unknown)?;
    if login.region.is_empty() {
        let why = format!("database_type {name:?}: region must be specified");
        return Err(wrong(plugin, why));
    }
    let (id, secret) = (&login.access_key_id, &login.secret_access_key);
    let keys = aws::keys(plugin, environment, id, secret)?;
    let caller = AwsLogin::new(environment.clone(), &login.region, keys);
    let caller = caller.map_err(|why| wrong(plugin, format!("database_type {name:?}: {why}")))?;
    Ok((name, Some(caller)))
}

#[cfg(test)]
mod tests {
    use ah_spire_plugin::catalog::PluginType;

    use super::super::kit::with;
    use super::*;

    fn read(text: &str) -> Result<StoreConfig, String> {
        with(PluginType::DataStore, "sql", text, |plugin| {
            sql(plugin, &Environment::default())
        })
    }

    const MYSQL: &str = r#"connection_string = "u@tcp(db:3306)/spire?parseTime=true&allowCleartextPasswords=1&tls=true""#;

    // inventory §7 DataStore sql: database_type as a text and as a block.
    #[test]
    fn the_database_is_named_as_a_text_or_as_a_block() {
        let plain = read(
            r#"database_type = "mysql" connection_string = "u:p@tcp(db)/spire?parseTime=true""#,
        )
        .unwrap();
        assert_eq!(plain.database_type, "mysql");
        assert!(plain.aws.is_none());
        for block in [
            r#"database_type "aws_mysql" { region = "eu-west-1" }"#,
            r#"database_type "aws_mysql" { region = "eu-west-1" access_key_id = "a" secret_access_key = "s" }"#,
        ] {
            let config = read(&format!("{block}\n{MYSQL}")).unwrap();
            assert_eq!(config.database_type, "aws_mysql");
            assert!(config.aws.is_some());
        }
        let postgres = r#"database_type "aws_postgres" { region = "eu-west-1" } connection_string = "dbname=spire user=u host=db""#;
        assert_eq!(read(postgres).unwrap().database_type, "aws_postgres");
        let json = r#"{"database_type": {"aws_postgres": {"region": "eu-west-1"}}, "connection_string": "dbname=spire user=u host=db"}"#;
        assert_eq!(read(json).unwrap().database_type, "aws_postgres");
    }

    #[test]
    fn a_block_that_cannot_be_used_is_named() {
        for (block, why) in [
            ("database_type = \"aws_mysql\"", "region must be specified"),
            ("database_type \"aws_mysql\" {}", "region must be specified"),
            (
                "database_type \"aws_mysql\" { region = \"Mars\" }",
                "\"Mars\" is no region",
            ),
            (
                "database_type \"aws_mysql\" { region = \"eu-west-1\" zone = \"b\" }",
                "unknown keys in database_type \"aws_mysql\": zone",
            ),
            (
                "database_type \"aws_mysql\" { region = \"eu-west-1\" access_key_id = \"a\" }",
                "missing secret access key",
            ),
            (
                "database_type \"mysql\" { region = \"eu-west-1\" }",
                "takes no block",
            ),
            (
                "database_type \"aws_mysql\" { region = \"eu-west-1\" } database_type \"aws_postgres\" { region = \"eu-west-1\" }",
                "exactly one",
            ),
        ] {
            let Err(error) = read(&format!("{block}\n{MYSQL}")) else {
                panic!("{block} was taken");
            };
            assert!(error.starts_with("DataStore \"sql\": "), "{error}");
            assert!(error.contains(why), "{block}: {error}");
        }
    }
}
