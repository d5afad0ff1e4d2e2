//! From what is written to what holds: defaults and rules.

use std::path::{Path, PathBuf};
use std::time::Duration;

use spiffe::{SpiffeId, TrustDomain};
use zeroize::Zeroizing;

use super::file::{AgentBlock, AgentFile, ExperimentalBlock, RateLimitBlock, SdsBlock};
use super::{
    AgentConfig, AgentExperimental, DEFAULT_CONFIG_PATH, DEFAULT_SOCKET_PATH, RebootstrapMode,
    SdsConfig, WorkloadApiRateLimit, bootstrap, broker, flags,
};
use crate::catalog::{self, Role};
use crate::check::{self, number, or};
use crate::error::ConfigError;
use crate::goflag::Flags;
use crate::settings::{JoinToken, KeyType};
use crate::source::{Environment, Source, socket};

const DEFAULT_REBOOTSTRAP_DELAY: Duration = Duration::from_secs(10 * 60);
const MIN_AVAILABILITY_TARGET: Duration = Duration::from_secs(24 * 60 * 60);
const DEFAULT_CACHE_SIZE: usize = 1000;
const WORKLOAD_KEY_TYPES: [KeyType; 3] = [KeyType::Rsa2048, KeyType::EcP256, KeyType::EcP384];

impl AgentConfig {
    /// What `spire-agent run` with these flags (of [`run_flags`](super::run_flags)) is told: reads the file that
    /// `-config` names, and that of `join_token_file`. `environment` is asked only with `-expandEnv`.
    pub fn load(flags: &Flags, environment: Environment<'_>) -> Result<Self, ConfigError> {
        let source = Source::read(flags, DEFAULT_CONFIG_PATH, environment)?;
        Self::resolve(&source, flags)
    }

    fn resolve(source: &Source<'_>, flags: &Flags) -> Result<Self, ConfigError> {
        let mut file: AgentFile = source.decode()?;
        file.unknown().into_result(source.path)?;
        flags::overlay(flags, &mut file.agent);
        let mut warnings = Vec::new();
        let plugins = catalog::plugins(Role::Agent, file.plugins, source.path, &mut warnings)?;

        let agent = file.agent;
        let bootstrap = bootstrap::from(&agent)?;
        let (server_address, server_port) = server(&agent)?;
        if agent.trust_domain.is_empty() {
            return ConfigError::rule("trust_domain must be configured");
        }
        let trust_domain = check::trust_domain(&agent.trust_domain)?;
        let workload_socket = if agent.disable_workload_api && agent.disable_sds_api {
            None
        } else {
            let path = if agent.socket_path.is_empty() {
                DEFAULT_SOCKET_PATH
            } else {
                &agent.socket_path
            };
            Some(socket("socket_path", path)?)
        };
        let admin_socket = match agent.admin_socket_path.as_str() {
            "" => None,
            path => Some(apart(
                "admin_socket_path",
                path,
                workload_socket.as_deref(),
            )?),
        };
        let (rebootstrap_mode, rebootstrap_delay) = rebootstrap(&agent)?;
        let join_token = join_token(agent.join_token, &agent.join_token_file)?;
        let join_token_file = Some(agent.join_token_file.into())
            .filter(|path: &PathBuf| !path.as_os_str().is_empty());
        let sds = sds(agent.sds, &mut warnings);
        let authorized_delegates = delegates(&agent.authorized_delegates, &trust_domain)?;
        let experimental = experimental(
            agent.experimental,
            workload_socket.as_deref(),
            &mut warnings,
        )?;
        Ok(Self {
            trust_domain,
            server_address,
            server_port,
            data_dir: or(agent.data_dir, ".").into(),
            workload_socket,
            disable_workload_api: agent.disable_workload_api,
            disable_sds_api: agent.disable_sds_api,
            admin_socket,
            bootstrap,
            rebootstrap_mode,
            rebootstrap_delay,
            join_token,
            join_token_file,
            log: check::log(
                &agent.log_level,
                &agent.log_format,
                agent.log_file,
                agent.log_source_location,
            )?,
            log_selectors: agent.log_selectors,
            sds,
            workload_key_type: key_type(&agent.workload_x509_svid_key_type)?,
            allow_unauthenticated_verifiers: agent.allow_unauthenticated_verifiers,
            allowed_foreign_jwt_claims: agent.allowed_foreign_jwt_claims,
            authorized_delegates,
            availability_target: availability_target(&agent.availability_target)?,
            x509_svid_cache_max_size: cache_size(
                "x509_svid_cache_max_size",
                agent.x509_svid_cache_max_size,
            )?,
            jwt_svid_cache_max_size: cache_size(
                "jwt_svid_cache_max_size",
                agent.jwt_svid_cache_max_size,
            )?,
            warm_start: agent.warm_start.unwrap_or(true),
            profiling: check::profiling(
                agent.profiling_enabled,
                agent.profiling_port,
                agent.profiling_freq,
                agent.profiling_names,
            )?,
            experimental,
            plugins,
            telemetry: file.telemetry.into_config()?,
            health_checks: file.health_checks.into_config(),
            warnings,
        })
    }
}

fn server(agent: &AgentBlock) -> Result<(String, u16), ConfigError> {
    if agent.server_address.is_empty() {
        return ConfigError::rule("server_address must be configured");
    }
    if agent.server_port == 0 {
        return ConfigError::rule("server_port must be configured");
    }
    let address = agent.server_address.trim_matches(['[', ']']).to_owned();
    Ok((address, check::port("server_port", agent.server_port)?))
}

/// A socket for the few may not lie where every workload can look.
pub(super) fn apart(
    key: &str,
    path: &str,
    workload_socket: Option<&Path>,
) -> Result<std::path::PathBuf, ConfigError> {
    let path = socket(key, path)?;
    // Everything is below the root.
    let public = workload_socket
        .and_then(Path::parent)
        .filter(|public| public.parent().is_some());
    if public.is_some_and(|public| path.starts_with(public)) {
        return ConfigError::rule(format!(
            "{key} cannot be in the directory of the Workload API socket or below it; give it a directory of its own"
        ));
    }
    Ok(path)
}

fn rebootstrap(agent: &AgentBlock) -> Result<(RebootstrapMode, Duration), ConfigError> {
    let mode = match agent.rebootstrap_mode.as_str() {
        "" | "never" => RebootstrapMode::Never,
        "auto" => RebootstrapMode::Auto,
        "always" => RebootstrapMode::Always,
        other => {
            return ConfigError::rule(format!(
                "rebootstrap_mode {other:?} is unknown; use never, auto or always"
            ));
        }
    };
    if mode != RebootstrapMode::Never && agent.insecure_bootstrap {
        return ConfigError::rule(
            "insecure_bootstrap cannot be used with a rebootstrap_mode other than never",
        );
    }
    let delay = check::duration("rebootstrap_delay", &agent.rebootstrap_delay)?;
    Ok((mode, delay.unwrap_or(DEFAULT_REBOOTSTRAP_DELAY)))
}

fn join_token(token: Zeroizing<String>, file: &str) -> Result<Option<JoinToken>, ConfigError> {
    if file.is_empty() {
        return Ok(Some(token)
            .filter(|token| !token.is_empty())
            .map(JoinToken::new));
    }
    if !token.is_empty() {
        return ConfigError::rule("only one of join_token and join_token_file can be specified");
    }
    let text = std::fs::read_to_string(file)
        .map(Zeroizing::new)
        .map_err(|source| ConfigError::Read {
            what: "join_token_file",
            path: file.into(),
            source,
        })?;
    match text.trim() {
        "" => ConfigError::rule(format!("join_token_file {file:?} is empty")),
        token => Ok(Some(JoinToken::new(Zeroizing::new(token.to_owned())))),
    }
}

fn sds(sds: SdsBlock, warnings: &mut Vec<String>) -> SdsConfig {
    let names = SdsConfig::default();
    let config = SdsConfig {
        default_svid_name: or(sds.default_svid_name, &names.default_svid_name),
        default_bundle_name: or(sds.default_bundle_name, &names.default_bundle_name),
        default_all_bundles_name: or(
            sds.default_all_bundles_name,
            &names.default_all_bundles_name,
        ),
        disable_spiffe_cert_validation: sds.disable_spiffe_cert_validation,
    };
    if config.default_bundle_name == config.default_all_bundles_name {
        warnings.push(format!(
            "sds.default_bundle_name and sds.default_all_bundles_name are both {:?}, so that the second has no effect",
            config.default_bundle_name
        ));
    }
    config
}

fn delegates(ids: &[String], trust_domain: &TrustDomain) -> Result<Vec<SpiffeId>, ConfigError> {
    let delegate = |text: &String| {
        let id = SpiffeId::new(text).map_err(|why| {
            ConfigError::Rule(format!(
                "authorized_delegates has {text:?}, which is no SPIFFE ID: {why}"
            ))
        })?;
        if !id.is_member_of(trust_domain) {
            return ConfigError::rule(format!(
                "authorized_delegates has {text:?}, which is not in the trust domain {trust_domain}"
            ));
        }
        Ok(id)
    };
    ids.iter().map(delegate).collect()
}

fn key_type(text: &str) -> Result<KeyType, ConfigError> {
    if text.is_empty() {
        return Ok(KeyType::EcP256);
    }
    KeyType::among(&WORKLOAD_KEY_TYPES, text)
        .map_err(|why| ConfigError::Rule(format!("workload_x509_svid_key_type: {why}")))
}

fn availability_target(text: &str) -> Result<Option<Duration>, ConfigError> {
    let target = check::duration("availability_target", text)?;
    if target.is_some_and(|target| target < MIN_AVAILABILITY_TARGET) {
        return ConfigError::rule("availability_target must be at least 24h0m0s");
    }
    Ok(target)
}

fn cache_size(key: &str, size: i64) -> Result<usize, ConfigError> {
    match number(key, size)? {
        0 => Ok(DEFAULT_CACHE_SIZE),
        size => Ok(size),
    }
}

fn experimental(
    block: Option<ExperimentalBlock>,
    workload_socket: Option<&Path>,
    warnings: &mut Vec<String>,
) -> Result<AgentExperimental, ConfigError> {
    let block = check::experimental(block, warnings);
    for (key, value, instead) in [
        ("named_pipe_name", &block.named_pipe_name, "socket_path"),
        (
            "admin_named_pipe_name",
            &block.admin_named_pipe_name,
            "admin_socket_path",
        ),
    ] {
        if !value.is_empty() {
            return ConfigError::rule(format!(
                "{key} is not supported on this platform; use {instead} instead"
            ));
        }
    }
    let feature_flags = check::feature_flags(&block.feature_flags, warnings)?;
    if block.use_sync_authorized_entries.is_some() {
        warnings.push("use_sync_authorized_entries is deprecated and may go away".to_owned());
    }
    let broker = block
        .broker
        .map(|broker| broker::from(broker, workload_socket))
        .transpose()?;
    Ok(AgentExperimental {
        sync_interval: check::ttl("sync_interval", &block.sync_interval)?,
        jwt_svid_cache_hit_timeout: cache_hit_timeout(&block.jwt_svid_cache_hit_timeout)?,
        use_sync_authorized_entries: block.use_sync_authorized_entries.unwrap_or(true),
        require_pq_kem: block.require_pq_kem,
        rate_limit: rate_limit(&block.rate_limit)?,
        broker,
        feature_flags,
    })
}

fn cache_hit_timeout(text: &str) -> Result<Option<Duration>, ConfigError> {
    let key = "jwt_svid_cache_hit_timeout";
    let timeout = check::duration(key, text)?;
    match timeout.map(|timeout| timeout.as_secs()) {
        Some(..5) => ConfigError::rule(format!("{key} ({text}) must be at least 5s")),
        Some(30..) => ConfigError::rule(format!("{key} ({text}) must be less than 30s")),
        _ => Ok(timeout),
    }
}

fn rate_limit(block: &RateLimitBlock) -> Result<WorkloadApiRateLimit, ConfigError> {
    let limit = |key: &str, value| number(&format!("experimental.ratelimit.{key}"), value);
    Ok(WorkloadApiRateLimit {
        fetch_x509_svid: limit("fetch_x509_svid", block.fetch_x509_svid)?,
        fetch_jwt_svid: limit("fetch_jwt_svid", block.fetch_jwt_svid)?,
        fetch_x509_bundles: limit("fetch_x509_bundles", block.fetch_x509_bundles)?,
        fetch_jwt_bundles: limit("fetch_jwt_bundles", block.fetch_jwt_bundles)?,
        stream_secrets: limit("stream_secrets", block.stream_secrets)?,
        fetch_secrets: limit("fetch_secrets", block.fetch_secrets)?,
    })
}
