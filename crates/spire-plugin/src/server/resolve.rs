//! From what is written to what holds: defaults and rules.

use std::path::Path;
use std::time::Duration;

use spiffe::SpiffeId;

use super::file::{CaSubjectBlock, ExperimentalBlock, OpaBlock, ServerBlock, ServerFile};
use super::{
    CaSubject, DEFAULT_CONFIG_PATH, DEFAULT_SOCKET_PATH, Federation, OpaPolicy, PruneAttestedNodes,
    RateLimit, ServerConfig, ServerExperimental, federation, flags, ttl,
};
use crate::catalog::{self, Role};
use crate::check::{self, nonempty, or};
use crate::error::ConfigError;
use crate::goflag::Flags;
use crate::settings::KeyType;
use crate::source::{Environment, Source, socket};

const DEFAULT_BIND_PORT: i64 = 8081;
const DEFAULT_CA_TTL: Duration = Duration::from_secs(24 * 60 * 60);
const DEFAULT_X509_SVID_TTL: Duration = Duration::from_secs(60 * 60);
const DEFAULT_JWT_SVID_TTL: Duration = Duration::from_secs(5 * 60);
const DEFAULT_PRUNE_BATCH_SIZE: u32 = 1000;
const KEY_TYPES: [KeyType; 4] = [
    KeyType::Rsa2048,
    KeyType::Rsa4096,
    KeyType::EcP256,
    KeyType::EcP384,
];

impl ServerConfig {
    /// What `spire-server run` with these flags (of [`run_flags`](super::run_flags)) is told: reads the file that
    /// `-config` names. `environment` is asked only with `-expandEnv`.
    pub fn load(flags: &Flags, environment: Environment<'_>) -> Result<Self, ConfigError> {
        let source = Source::read(flags, DEFAULT_CONFIG_PATH, environment)?;
        Self::resolve(&source, flags)
    }

    fn resolve(source: &Source<'_>, flags: &Flags) -> Result<Self, ConfigError> {
        let mut file: ServerFile = source.decode()?;
        file.unknown().into_result(source.path)?;
        flags::overlay(flags, &mut file.server);
        let server = file.server;
        for (key, value) in [
            ("trust_domain", &server.trust_domain),
            ("data_dir", &server.data_dir),
        ] {
            if value.is_empty() {
                return ConfigError::rule(format!("{key} must be configured"));
            }
        }
        let mut warnings = Vec::new();
        let plugins = catalog::plugins(Role::Server, file.plugins, source.path, &mut warnings)?;

        let trust_domain = check::trust_domain(&server.trust_domain)?;
        let port = if server.bind_port == 0 {
            DEFAULT_BIND_PORT
        } else {
            server.bind_port
        };
        let socket_path = if server.socket_path.is_empty() {
            DEFAULT_SOCKET_PATH
        } else {
            &server.socket_path
        };
        let data_dir = Path::new(&server.data_dir).to_owned();
        let agent_ttl = check::ttl("agent_ttl", &server.agent_ttl)?;
        let x509_svid_ttl = check::ttl("default_x509_svid_ttl", &server.default_x509_svid_ttl)?;
        let x509_svid_ttl = x509_svid_ttl.unwrap_or(DEFAULT_X509_SVID_TTL);
        let jwt_svid_ttl = check::ttl("default_jwt_svid_ttl", &server.default_jwt_svid_ttl)?;
        let jwt_svid_ttl = jwt_svid_ttl.unwrap_or(DEFAULT_JWT_SVID_TTL);
        let ca_ttl = check::ttl("ca_ttl", &server.ca_ttl)?.unwrap_or(DEFAULT_CA_TTL);
        warnings.extend(ttl::warnings(
            ca_ttl,
            &[
                ("default_x509_svid_ttl", Some(x509_svid_ttl)),
                ("default_jwt_svid_ttl", Some(jwt_svid_ttl)),
                ("agent_ttl", agent_ttl),
            ],
        ));
        let ca_key_type = key_type("ca_key_type", &server.ca_key_type, KeyType::EcP256)?;
        let federation = match server.federation {
            None => Federation::default(),
            Some(ref block) => {
                let mut context = federation::Context {
                    path: source.path,
                    data_dir: &data_dir,
                    warnings: &mut warnings,
                };
                federation::from(block.clone(), &mut context)?
            }
        };
        let prune_attested_nodes = prune_attested_nodes(&server)?;
        let experimental = experimental(server.experimental, ca_key_type, &mut warnings)?;
        Ok(Self {
            trust_domain,
            bind_address: or(
                server.bind_address.trim_matches(['[', ']']).to_owned(),
                "0.0.0.0",
            ),
            bind_port: check::port("bind_port", port)?,
            socket: socket("socket_path", socket_path)?,
            data_dir,
            log: check::log(
                &server.log_level,
                &server.log_format,
                server.log_file,
                server.log_source_location,
            )?,
            audit_log_enabled: server.audit_log_enabled,
            admin_ids: admin_ids(&server.admin_ids)?,
            agent_ttl,
            x509_svid_ttl,
            jwt_svid_ttl,
            ca_ttl,
            ca_key_type,
            jwt_key_type: key_type("jwt_key_type", &server.jwt_key_type, ca_key_type)?,
            jwt_issuer: nonempty(server.jwt_issuer),
            disable_jwt_svids: server.disable_jwt_svids,
            ca_subject: ca_subject(server.ca_subject, &mut warnings),
            federation,
            prune_attested_nodes,
            proxy_protocol_trusted_cidrs: networks(&server.proxy_protocol_trusted_cidrs)?,
            rate_limit: RateLimit {
                attestation: server.rate_limit.attestation.unwrap_or(true),
                signing: server.rate_limit.signing.unwrap_or(true),
            },
            max_attested_node_info_staleness: check::duration(
                "max_attested_node_info_staleness",
                &server.max_attested_node_info_staleness,
            )?
            .unwrap_or_default(),
            profiling: check::profiling(
                server.profiling_enabled,
                server.profiling_port,
                server.profiling_freq,
                server.profiling_names,
            )?,
            experimental,
            plugins,
            telemetry: file.telemetry.into_config()?,
            health_checks: file.health_checks.into_config(),
            warnings,
        })
    }
}

fn admin_ids(ids: &[String]) -> Result<Vec<SpiffeId>, ConfigError> {
    let parse = |text: &String| {
        SpiffeId::new(text)
            .map_err(|why| ConfigError::Rule(format!("could not parse admin ID {text:?}: {why}")))
    };
    ids.iter().map(parse).collect()
}

fn networks(texts: &[String]) -> Result<Vec<super::Cidr>, ConfigError> {
    let parse = |text: &String| {
        text.parse().map_err(|why| {
            ConfigError::Rule(format!("invalid proxy_protocol_trusted_cidrs value: {why}"))
        })
    };
    texts.iter().map(parse).collect()
}

fn key_type(key: &str, text: &str, default: KeyType) -> Result<KeyType, ConfigError> {
    if text.is_empty() {
        return Ok(default);
    }
    KeyType::among(&KEY_TYPES, text).map_err(|why| ConfigError::Rule(format!("{key}: {why}")))
}

/// An issuer needs a name (RFC 5280 §4.1.2.4), so that an empty subject is the default.
fn ca_subject(block: Option<CaSubjectBlock>, warnings: &mut Vec<String>) -> CaSubject {
    let subject = block.map(|block| CaSubject {
        country: block.country,
        organization: block.organization,
        common_name: nonempty(block.common_name),
    });
    match subject {
        Some(subject) if subject != CaSubject::default() => return subject,
        Some(_) => warnings.push("ca_subject is empty; the default is used".to_owned()),
        None => {}
    }
    CaSubject {
        country: vec!["US".to_owned()],
        organization: vec!["SPIFFE".to_owned()],
        common_name: None,
    }
}

fn prune_attested_nodes(server: &ServerBlock) -> Result<Option<PruneAttestedNodes>, ConfigError> {
    let expired_for = check::duration(
        "prune_attested_nodes_expired_for",
        &server.prune_attested_nodes_expired_for,
    )?;
    let batch_size = check::number(
        "prune_attested_nodes_batch_size",
        server.prune_attested_nodes_batch_size,
    )?;
    Ok(expired_for.map(|expired_for| PruneAttestedNodes {
        expired_for,
        batch_size: if batch_size == 0 {
            DEFAULT_PRUNE_BATCH_SIZE
        } else {
            batch_size
        },
        include_tofu: server.prune_tofu_nodes,
    }))
}

fn experimental(
    block: Option<ExperimentalBlock>,
    ca_key_type: KeyType,
    warnings: &mut Vec<String>,
) -> Result<ServerExperimental, ConfigError> {
    let block = check::experimental(block, warnings);
    if !block.named_pipe_name.is_empty() {
        return ConfigError::rule(
            "named_pipe_name is not supported on this platform; use socket_path instead",
        );
    }
    if !block.event_timeout.is_empty() && !block.sql_transaction_timeout.is_empty() {
        return ConfigError::rule(
            "both experimental sql_transaction_timeout and event_timeout are set; keep event_timeout",
        );
    }
    let feature_flags = check::feature_flags(&block.feature_flags, warnings)?;
    let old_event_timeout = check::ttl("sql_transaction_timeout", &block.sql_transaction_timeout)?;
    if old_event_timeout.is_some() {
        warnings.push(
            "experimental.sql_transaction_timeout is deprecated; use experimental.event_timeout"
                .to_owned(),
        );
    }
    let auth_opa_policy_engine = match block.auth_opa_policy_engine {
        None => None,
        Some(OpaBlock {
            local: Some(policy),
            ..
        }) if policy.rego_path.is_empty() => {
            return ConfigError::rule(
                "experimental.auth_opa_policy_engine.local needs rego_path: the file of the policy",
            );
        }
        Some(OpaBlock {
            local: Some(policy),
            ..
        }) => Some(OpaPolicy {
            rego_path: policy.rego_path.into(),
            policy_data_path: nonempty(policy.policy_data_path).map(Into::into),
        }),
        Some(OpaBlock { local: None, .. }) => {
            return ConfigError::rule(
                "experimental.auth_opa_policy_engine needs a local { } block",
            );
        }
    };
    Ok(ServerExperimental {
        agent_spiffe_id_as_selector: block.agent_spiffe_id_as_selector,
        auth_opa_policy_engine,
        cache_reload_interval: check::ttl("cache_reload_interval", &block.cache_reload_interval)?,
        full_cache_reload_interval: check::ttl(
            "full_cache_reload_interval",
            &block.full_cache_reload_interval,
        )?,
        events_based_cache: block.events_based_cache,
        prune_events_older_than: check::ttl(
            "prune_events_older_than",
            &block.prune_events_older_than,
        )?,
        event_timeout: check::ttl("event_timeout", &block.event_timeout)?.or(old_event_timeout),
        require_pq_kem: block.require_pq_kem,
        wit_key_type: key_type("wit_key_type", &block.wit_key_type, ca_key_type)?,
        wit_issuer: nonempty(block.wit_issuer),
        feature_flags,
    })
}
