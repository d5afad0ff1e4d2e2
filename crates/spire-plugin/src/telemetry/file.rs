//! How `telemetry { }` and `health_checks { }` are written.

use spiffe::SpiffeId;

use super::{HealthConfig, M3, Prometheus, PrometheusTls, TelemetryConfig};
use crate::check::{nonempty, or, port};
use crate::config_block;
use crate::error::{ConfigError, UnknownSections};

config_block! {
    pub(crate) struct TelemetryBlock {
        prometheus: Option<PrometheusBlock> = "Prometheus",
        dog_statsd: Vec<AddressBlock> = "DogStatsd",
        statsd: Vec<AddressBlock> = "Statsd",
        m3: Vec<M3Block> = "M3",
        in_memory: Option<InMemoryBlock> = "InMem",
        metric_prefix: String = "MetricPrefix",
        trust_domain_label: Option<bool> = "EnableTrustDomainLabel",
        hostname_label: Option<bool> = "EnableHostnameLabel",
        allowed_prefixes: Vec<String> = "AllowedPrefixes",
        blocked_prefixes: Vec<String> = "BlockedPrefixes",
        allowed_labels: Vec<String> = "AllowedLabels",
        blocked_labels: Vec<String> = "BlockedLabels",
    }
}

config_block! {
    struct PrometheusBlock {
        host: String = "host",
        port: i64 = "port",
        tls: Option<TlsBlock> = "tls",
    }
}

config_block! {
    struct TlsBlock {
        cert_file: String = "cert_file",
        key_file: String = "key_file",
        client_ca_file: String = "client_ca_file",
        use_spire_svid: bool = "use_spire_svid",
        authorized_spiffe_ids: Vec<String> = "authorized_spiffe_ids",
    }
}

config_block! {
    struct AddressBlock {
        address: String = "address",
    }
}

config_block! {
    struct M3Block {
        address: String = "address",
        env: String = "env",
    }
}

config_block! {
    struct InMemoryBlock {}
}

config_block! {
    pub(crate) struct HealthBlock {
        listener_enabled: bool = "listener_enabled",
        bind_address: String = "bind_address",
        bind_port: String = "bind_port",
        live_path: String = "live_path",
        ready_path: String = "ready_path",
    }
}

impl TelemetryBlock {
    /// Unknown keys of `telemetry` itself and of `tls` pass, as upstream lets them.
    pub(crate) fn look_for_unknown(&self, sections: &mut UnknownSections) {
        if let Some(prometheus) = &self.prometheus {
            sections.look("telemetry.Prometheus", &prometheus.unknown);
        }
        for sink in &self.dog_statsd {
            sections.look("telemetry.DogStatsd", &sink.unknown);
        }
        for sink in &self.statsd {
            sections.look("telemetry.Statsd", &sink.unknown);
        }
        for sink in &self.m3 {
            sections.look("telemetry.M3", &sink.unknown);
        }
        if let Some(in_memory) = &self.in_memory {
            sections.look("telemetry.InMem", &in_memory.unknown);
        }
    }

    pub(crate) fn into_config(self) -> Result<TelemetryConfig, ConfigError> {
        let addresses =
            |sinks: Vec<AddressBlock>| sinks.into_iter().map(|sink| sink.address).collect();
        Ok(TelemetryConfig {
            prometheus: self
                .prometheus
                .map(PrometheusBlock::into_config)
                .transpose()?,
            dog_statsd: addresses(self.dog_statsd),
            statsd: addresses(self.statsd),
            m3: self
                .m3
                .into_iter()
                .map(|sink| M3 {
                    address: sink.address,
                    environment: sink.env,
                })
                .collect(),
            in_memory: self.in_memory.is_some(),
            metric_prefix: nonempty(self.metric_prefix),
            trust_domain_label: self.trust_domain_label.unwrap_or(false),
            hostname_label: self.hostname_label.unwrap_or(true),
            allowed_prefixes: self.allowed_prefixes,
            blocked_prefixes: self.blocked_prefixes,
            allowed_labels: self.allowed_labels,
            blocked_labels: self.blocked_labels,
        })
    }
}

impl PrometheusBlock {
    fn into_config(self) -> Result<Prometheus, ConfigError> {
        Ok(Prometheus {
            host: or(self.host, "localhost"),
            port: port("telemetry.Prometheus.port", self.port)?,
            tls: self.tls.map(TlsBlock::into_config).transpose()?,
        })
    }
}

impl TlsBlock {
    fn into_config(self) -> Result<PrometheusTls, ConfigError> {
        let path = |text: String| nonempty(text).map(Into::into);
        let parse = |text: &String| {
            SpiffeId::new(text).map_err(|why| {
                ConfigError::Rule(format!(
                    "telemetry.Prometheus.tls: invalid authorized SPIFFE ID {text:?}: {why}"
                ))
            })
        };
        Ok(PrometheusTls {
            cert_file: path(self.cert_file),
            key_file: path(self.key_file),
            client_ca_file: path(self.client_ca_file),
            use_spire_svid: self.use_spire_svid,
            authorized_spiffe_ids: { self.authorized_spiffe_ids.iter() }
                .map(parse)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl HealthBlock {
    pub(crate) fn into_config(self) -> HealthConfig {
        let host = self.bind_address.trim_matches(['[', ']']).to_owned();
        HealthConfig {
            enabled: self.listener_enabled,
            host: or(host, "localhost"),
            port: or(self.bind_port, "80"),
            live_path: or(self.live_path, "/live"),
            ready_path: or(self.ready_path, "/ready"),
        }
    }
}
