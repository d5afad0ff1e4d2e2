//! How a provider's configuration is written.

use crate::config_block;
use crate::decode::UnknownKeys;

config_block! {
    pub(super) struct OidcFile {
        pub(super) log_format: String = "log_format",
        pub(super) log_level: String = "log_level",
        pub(super) log_path: String = "log_path",
        pub(super) log_requests: bool = "log_requests",
        pub(super) domains: Vec<String> = "domains",
        pub(super) set_key_use: bool = "set_key_use",
        pub(super) allow_insecure_scheme: bool = "allow_insecure_scheme",
        pub(super) insecure_addr: String = "insecure_addr",
        pub(super) listen_socket_path: String = "listen_socket_path",
        pub(super) acme: Option<AcmeBlock> = "acme",
        pub(super) serving_cert_file: Option<ServingCertFileBlock> = "serving_cert_file",
        pub(super) server_api: Option<ServerApiBlock> = "server_api",
        pub(super) workload_api: Option<WorkloadApiBlock> = "workload_api",
        pub(super) file: Option<FileBlock> = "file",
        pub(super) health_checks: Option<HealthBlock> = "health_checks",
        pub(super) experimental: ListenPipeBlock = "experimental",
        pub(super) jwt_issuer: String = "jwt_issuer",
        pub(super) jwks_uri: String = "jwks_uri",
        pub(super) server_path_prefix: String = "server_path_prefix",
    }
}

config_block! {
    pub(super) struct AcmeBlock {
        pub(super) directory_url: String = "directory_url",
        pub(super) email: String = "email",
        pub(super) tos_accepted: bool = "tos_accepted",
        pub(super) cache_dir: Option<String> = "cache_dir",
    }
}

config_block! {
    pub(super) struct ServingCertFileBlock {
        pub(super) cert_file_path: String = "cert_file_path",
        pub(super) key_file_path: String = "key_file_path",
        pub(super) addr: String = "addr",
        pub(super) file_sync_interval: String = "file_sync_interval",
    }
}

config_block! {
    pub(super) struct ServerApiBlock {
        pub(super) address: String = "address",
        pub(super) poll_interval: String = "poll_interval",
        pub(super) experimental: PipeBlock = "experimental",
    }
}

config_block! {
    pub(super) struct WorkloadApiBlock {
        pub(super) socket_path: String = "socket_path",
        pub(super) trust_domain: String = "trust_domain",
        pub(super) poll_interval: String = "poll_interval",
        pub(super) experimental: PipeBlock = "experimental",
    }
}

config_block! {
    pub(super) struct FileBlock {
        pub(super) path: String = "path",
        pub(super) poll_interval: String = "poll_interval",
    }
}

config_block! {
    pub(super) struct HealthBlock {
        pub(super) bind_port: i64 = "bind_port",
        pub(super) live_path: String = "live_path",
        pub(super) ready_path: String = "ready_path",
    }
}

config_block! {
    pub(super) struct ListenPipeBlock {
        pub(super) listen_named_pipe_name: String = "listen_named_pipe_name",
    }
}

config_block! {
    pub(super) struct PipeBlock {
        pub(super) named_pipe_name: String = "named_pipe_name",
    }
}

impl OidcFile {
    /// Keys that do not exist, each section as a warning: upstream passes over them without a word.
    pub(super) fn unknown(&self) -> Vec<String> {
        let of = |section: &str, keys: Option<&UnknownKeys>| {
            let keys = keys.filter(|keys| !keys.is_empty())?;
            Some(format!(
                "unknown configuration is left out of account in {section}: {keys}"
            ))
        };
        let sections = [
            of("the top level", Some(&self.unknown)),
            of("acme", self.acme.as_ref().map(|it| &it.unknown)),
            of(
                "serving_cert_file",
                self.serving_cert_file.as_ref().map(|it| &it.unknown),
            ),
            of("server_api", self.server_api.as_ref().map(|it| &it.unknown)),
            of(
                "workload_api",
                self.workload_api.as_ref().map(|it| &it.unknown),
            ),
            of("file", self.file.as_ref().map(|it| &it.unknown)),
            of(
                "health_checks",
                self.health_checks.as_ref().map(|it| &it.unknown),
            ),
            of("experimental", Some(&self.experimental.unknown)),
        ];
        sections.into_iter().flatten().collect()
    }
}
