//! From what is written to what holds: defaults and rules.

use std::time::Duration;

use super::file::{
    AcmeBlock, HealthBlock, OidcFile, ServerApiBlock, ServingCertFileBlock, WorkloadApiBlock,
};
use super::{DEFAULT_CONFIG_PATH, OidcAcme, OidcConfig, OidcHealth, OidcKeys, OidcListen, WebUrl};
use crate::check::{self, nonempty, or};
use crate::error::ConfigError;
use crate::goflag::Flags;
use crate::source::{Environment, Source, socket};

const DEFAULT_POLL_INTERVAL: Duration = Duration::from_secs(10);
const DEFAULT_FILE_SYNC_INTERVAL: Duration = Duration::from_secs(60);
const DEFAULT_CACHE_DIR: &str = "./.acme-cache";
const DEFAULT_ADDRESS: &str = ":443";
const DEFAULT_HEALTH_PORT: u16 = 8008;

impl OidcConfig {
    /// What a provider with these flags (of [`flags`](super::flags)) is told: reads the file that `-config` names.
    /// `environment` is asked only with `-expandEnv`.
    pub fn load(flags: &Flags, environment: Environment<'_>) -> Result<Self, ConfigError> {
        let source = Source::read(flags, DEFAULT_CONFIG_PATH, environment)?;
        Self::resolve(source.decode()?)
    }

    fn resolve(mut file: OidcFile) -> Result<Self, ConfigError> {
        let mut warnings = file.unknown();
        if file.domains.is_empty() {
            return ConfigError::rule("at least one domain must be configured: set domains");
        }
        let listen = listen(&mut file)?;
        let (keys, interval) = keys(&mut file)?;
        let poll_interval = check::ttl("poll_interval", &interval)?;
        let jwt_issuer = web_url("jwt_issuer", file.jwt_issuer)?;
        let jwks_uri = web_url("jwks_uri", file.jwks_uri)?;
        if jwt_issuer.is_some() && jwks_uri.is_none() {
            warnings.push(
                "jwt_issuer is set and jwks_uri is not: clients are sent to keys below jwt_issuer; \
                 set jwks_uri to where this provider answers"
                    .to_owned(),
            );
        }
        let server_path_prefix = or(file.server_path_prefix, "/");
        let plain = |c: char| c.is_ascii_alphanumeric() || "/-._~!$&'()*+,;=:@".contains(c);
        if !server_path_prefix.starts_with('/') || !server_path_prefix.chars().all(plain) {
            return ConfigError::rule(format!(
                "server_path_prefix must begin with / and be a path as it stands in a URL, unlike {server_path_prefix:?}"
            ));
        }
        let mut domains = Vec::with_capacity(file.domains.len());
        for domain in file.domains {
            if !domains.contains(&domain) {
                domains.push(domain);
            }
        }
        Ok(Self {
            log: check::log(&file.log_level, &file.log_format, file.log_path, false)?,
            log_requests: file.log_requests,
            domains,
            set_key_use: file.set_key_use,
            allow_insecure_scheme: file.allow_insecure_scheme,
            listen,
            keys,
            poll_interval: poll_interval.unwrap_or(DEFAULT_POLL_INTERVAL),
            health_checks: file.health_checks.map(health).transpose()?,
            jwt_issuer,
            jwks_uri,
            server_path_prefix,
            warnings,
        })
    }
}

/// The one of four ways that is configured.
fn listen(file: &mut OidcFile) -> Result<OidcListen, ConfigError> {
    if !file.experimental.listen_named_pipe_name.is_empty() {
        return no_pipe("experimental.listen_named_pipe_name", "listen_socket_path");
    }
    let insecure = nonempty(std::mem::take(&mut file.insecure_addr));
    let path = nonempty(std::mem::take(&mut file.listen_socket_path));
    let (acme, files) = (file.acme.take(), file.serving_cert_file.take());
    let configured = [
        ("acme", acme.is_some()),
        ("serving_cert_file", files.is_some()),
        ("insecure_addr", insecure.is_some()),
        ("listen_socket_path", path.is_some()),
    ];
    let mut configured = configured.into_iter().filter(|(_, is)| *is);
    if let (Some((one, _)), Some((other, _))) = (configured.next(), configured.next()) {
        return ConfigError::rule(format!(
            "{one} and {other} are mutually exclusive; keep one"
        ));
    }
    match (acme, files, insecure, path) {
        (Some(block), ..) => self::acme(block),
        (_, Some(block), ..) => serving_cert_file(block),
        (_, _, Some(address), _) => Ok(OidcListen::Insecure(address)),
        (.., Some(path)) => Ok(OidcListen::Socket(socket("listen_socket_path", &path)?)),
        _ => ConfigError::rule(
            "either acme, serving_cert_file, insecure_addr or listen_socket_path must be configured",
        ),
    }
}

fn acme(block: AcmeBlock) -> Result<OidcListen, ConfigError> {
    if !block.tos_accepted {
        return ConfigError::rule(
            "tos_accepted must be set to true in the acme configuration section",
        );
    }
    if block.email.is_empty() {
        return ConfigError::rule("email must be configured in the acme configuration section");
    }
    let cache_dir = block
        .cache_dir
        .unwrap_or_else(|| DEFAULT_CACHE_DIR.to_owned());
    Ok(OidcListen::Acme(OidcAcme {
        directory_url: nonempty(block.directory_url),
        email: block.email,
        cache_dir: nonempty(cache_dir).map(Into::into),
    }))
}

fn serving_cert_file(block: ServingCertFileBlock) -> Result<OidcListen, ConfigError> {
    for (key, value) in [
        ("cert_file_path", &block.cert_file_path),
        ("key_file_path", &block.key_file_path),
    ] {
        if value.is_empty() {
            return ConfigError::rule(format!(
                "{key} must be configured in the serving_cert_file configuration section"
            ));
        }
    }
    let interval = check::ttl(
        "serving_cert_file.file_sync_interval",
        &block.file_sync_interval,
    )?;
    Ok(OidcListen::ServingCertFile {
        cert: block.cert_file_path.into(),
        key: block.key_file_path.into(),
        address: or(block.addr, DEFAULT_ADDRESS),
        sync_interval: interval.unwrap_or(DEFAULT_FILE_SYNC_INTERVAL),
    })
}

/// The one of three sources that is configured, and its `poll_interval`.
fn keys(file: &mut OidcFile) -> Result<(OidcKeys, String), ConfigError> {
    match (
        file.server_api.take(),
        file.workload_api.take(),
        file.file.take(),
    ) {
        (Some(block), None, None) => server_api(block),
        (None, Some(block), None) => workload_api(block),
        (None, None, Some(block)) if block.path.is_empty() => {
            ConfigError::rule("path must be configured in the file configuration section")
        }
        (None, None, Some(block)) => Ok((OidcKeys::File(block.path.into()), block.poll_interval)),
        (None, None, None) => ConfigError::rule(
            "exactly one of the server_api, workload_api, or file sections must be configured",
        ),
        _ => ConfigError::rule(
            "the server_api, workload_api, and file sections are mutually exclusive; keep one",
        ),
    }
}

fn server_api(block: ServerApiBlock) -> Result<(OidcKeys, String), ConfigError> {
    if !block.experimental.named_pipe_name.is_empty() {
        return no_pipe("server_api.experimental.named_pipe_name", "address");
    }
    if block.address.is_empty() {
        return ConfigError::rule(
            "address must be configured in the server_api configuration section",
        );
    }
    // gRPC's naming: unix:PATH, or unix:///PATH for one from the root.
    let path = block.address.strip_prefix("unix:").map(|path| {
        let absolute = path.strip_prefix("//");
        absolute
            .filter(|path| path.starts_with('/'))
            .unwrap_or(path)
    });
    let Some(path) = path.filter(|path| !path.is_empty() && !path.starts_with("//")) else {
        return ConfigError::rule(format!(
            "address must use the unix name system in the server_api configuration section: \
             write unix:///PATH, unlike {:?}",
            block.address
        ));
    };
    let path = socket("server_api.address", path)?;
    Ok((OidcKeys::ServerApi(path), block.poll_interval))
}

fn workload_api(block: WorkloadApiBlock) -> Result<(OidcKeys, String), ConfigError> {
    if !block.experimental.named_pipe_name.is_empty() {
        return no_pipe("workload_api.experimental.named_pipe_name", "socket_path");
    }
    for (key, value) in [
        ("trust_domain", &block.trust_domain),
        ("socket_path", &block.socket_path),
    ] {
        if value.is_empty() {
            return ConfigError::rule(format!(
                "{key} must be configured in the workload_api configuration section"
            ));
        }
    }
    let keys = OidcKeys::WorkloadApi {
        socket: socket("workload_api.socket_path", &block.socket_path)?,
        trust_domain: check::trust_domain(&block.trust_domain)?,
    };
    Ok((keys, block.poll_interval))
}

fn no_pipe<T>(key: &str, instead: &str) -> Result<T, ConfigError> {
    ConfigError::rule(format!(
        "{key} is not supported on this platform; use {instead} instead"
    ))
}

fn health(block: HealthBlock) -> Result<OidcHealth, ConfigError> {
    let port = match block.bind_port {
        ..=0 => DEFAULT_HEALTH_PORT,
        port => check::port("health_checks.bind_port", port)?,
    };
    let path = |key: &str, path: String, default: &str| match or(path, default) {
        path if path.starts_with('/') => Ok(path),
        path => ConfigError::rule(format!(
            "health_checks.{key} must begin with /, unlike {path:?}"
        )),
    };
    Ok(OidcHealth {
        port,
        live_path: path("live_path", block.live_path, "/live")?,
        ready_path: path("ready_path", block.ready_path, "/ready")?,
    })
}

/// `None` when not set.
fn web_url(key: &str, text: String) -> Result<Option<WebUrl>, ConfigError> {
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = |why: &str| ConfigError::Rule(format!("the {key} url {why}: {text:?}"));
    let (scheme, rest) = text
        .split_once("://")
        .ok_or_else(|| wrong("must contain a scheme, as in https://HOST"))?;
    // Which are not there for the parser.
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(wrong("must not contain white space"));
    }
    url::Url::parse(&text).map_err(|error| wrong(&format!("could not be parsed: {error}")))?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, below) = rest.split_at(end);
    let host = authority.rsplit('@').next().unwrap_or_default();
    if host.is_empty() {
        return Err(wrong("must contain a host"));
    }
    let path = below.split(['?', '#']).next().unwrap_or_default();
    let scheme = scheme.to_ascii_lowercase();
    Ok(Some(WebUrl {
        text: format!("{scheme}://{rest}"),
        host: host.to_owned(),
        path: path.to_owned(),
        scheme,
    }))
}
