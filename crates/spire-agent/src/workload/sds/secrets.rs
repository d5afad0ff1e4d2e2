//! Secrets by their names.

use std::collections::BTreeSet;

use ah_spire_plugin::agent::SdsConfig;
use ah_spire_wire::bundle::{pem, pem_block, to_pem};
use ah_spire_wire::model::Bundle;
use bytes::Bytes;
use tonic::Status;
use zeroize::Zeroizing;

use crate::bundles::id_of;
use crate::identities::{WorkloadUpdate, X509Identity};
use crate::wire::{Fields, framed};

const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const VALIDATOR_CONFIG: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";

/// As Envoy calls its validator.
const VALIDATOR: &str = "envoy.tls.cert_validator.spiffe";

/// What an Envoy wants.
pub(super) struct Wanted {
    /// Empty for everything that the workload is entitled to.
    pub(super) names: BTreeSet<String>,
    /// Repeated in the answer.
    pub(super) type_url: String,
    /// It knows bundles apart.
    pub(super) validates_spiffe: bool,
}

impl Wanted {
    /// The secrets of `update`, each a `Secret` in an `Any`: of our own trust domain's bundle, of the federated ones, of
    /// the identities in the order of their age.
    ///
    /// # Errors
    /// `InvalidArgument` when the workload is not entitled to one of the names; `Internal` when the name that stands for
    /// all bundles is wanted by an Envoy that does not know them apart.
    pub(super) fn secrets(
        &self,
        config: &SdsConfig,
        update: &WorkloadUpdate,
    ) -> Result<Vec<Fields>, Status> {
        let all = self.names.is_empty();
        let mut left: BTreeSet<&str> = self.names.iter().map(String::as_str).collect();
        let mut secrets = Vec::new();
        let own = &*update.bundle;
        let own_id = id_of(&own.trust_domain);
        if all || left.remove(own_id.as_str()) {
            secrets.push(self.bundles(&own_id, &[own]));
        }
        if left.remove(config.default_bundle_name.as_str()) {
            secrets.push(self.bundles(&config.default_bundle_name, &[own]));
        }
        if left.remove(config.default_all_bundles_name.as_str()) {
            if !self.validates_spiffe {
                return Err(Status::internal(format!(
                    "{:?} is all bundles, which only Envoy's SPIFFE validator knows apart: it takes Envoy 1.18, and \
                     disable_spiffe_cert_validation set neither for the agent nor in the Envoy's metadata",
                    config.default_all_bundles_name
                )));
            }
            let mut bundles = vec![own];
            bundles.extend(update.federated.values().map(|bundle| &**bundle));
            bundles.sort_by(|a, b| a.trust_domain.as_ref().cmp(b.trust_domain.as_ref()));
            secrets.push(self.bundles(&config.default_all_bundles_name, &bundles));
        }
        for (domain, bundle) in &update.federated {
            let id = id_of(domain);
            if all || left.remove(id.as_str()) {
                secrets.push(self.bundles(&id, &[bundle]));
            }
        }
        for (at, identity) in update.identities.iter().enumerate() {
            let id = identity.entry.spiffe_id.to_string();
            if all || left.remove(id.as_str()) {
                secrets.push(certificate(&id, identity));
            }
            if at == 0 && left.remove(config.default_svid_name.as_str()) {
                secrets.push(certificate(&config.default_svid_name, identity));
            }
        }
        if left.is_empty() {
            return Ok(secrets);
        }
        let names: Vec<_> = left.iter().map(|name| format!("{name:?}")).collect();
        Err(Status::invalid_argument(format!(
            "workload is not authorized for the requested identities [{}]",
            names.join(" ")
        )))
    }

    /// `DiscoveryResponse`, of a stream with its version and nonce.
    pub(super) fn response(&self, secrets: &[Fields], of: Option<(u64, &str)>) -> Bytes {
        let (version, nonce) = match of {
            Some((version, nonce)) => (version.to_string(), nonce),
            None => (String::new(), ""),
        };
        let mut fields = vec![(1, version.as_bytes())];
        fields.extend(secrets.iter().map(|secret| (2, secret.bytes())));
        fields.extend([(4, self.type_url.as_bytes()), (5, nonce.as_bytes())]);
        framed(Fields::without_empty(&fields).bytes())
    }

    /// What peers are verified with. More than one bundle takes a validator that knows them apart.
    fn bundles(&self, name: &str, bundles: &[&Bundle]) -> Fields {
        const TRUSTED_CA: u8 = 1;
        const CUSTOM_VALIDATOR_CONFIG: u8 = 12;
        let context = if self.validates_spiffe {
            let domains: Vec<_> = bundles
                .iter()
                .map(|bundle| {
                    let name = bundle.trust_domain.as_ref().as_bytes();
                    Fields::of(&[(1, name), (2, data_source(&to_pem(bundle)).bytes())])
                })
                .collect();
            let domains: Vec<_> = domains.iter().map(|domain| (1, domain.bytes())).collect();
            let config = any(VALIDATOR_CONFIG, &Fields::of(&domains));
            let validator = Fields::of(&[(1, VALIDATOR.as_bytes()), (2, config.bytes())]);
            Fields::of(&[(CUSTOM_VALIDATOR_CONFIG, validator.bytes())])
        } else {
            let pem: String = bundles.iter().map(|bundle| to_pem(bundle)).collect();
            Fields::of(&[(TRUSTED_CA, data_source(&pem).bytes())])
        };
        const VALIDATION_CONTEXT: u8 = 4;
        secret(name, VALIDATION_CONTEXT, &context)
    }
}

/// Chain and key.
fn certificate(name: &str, identity: &X509Identity) -> Fields {
    const TLS_CERTIFICATE: u8 = 2;
    let chain: String = identity.chain.iter().map(|der| pem(der)).collect();
    let key = Zeroizing::new(pem_block("PRIVATE KEY", &identity.key));
    let (chain, key) = (data_source(&chain), data_source(&key));
    let certificate = Fields::of(&[(1, chain.bytes()), (2, key.bytes())]);
    secret(name, TLS_CERTIFICATE, &certificate)
}

fn secret(name: &str, kind: u8, content: &Fields) -> Fields {
    any(
        SECRET,
        &Fields::of(&[(1, name.as_bytes()), (kind, content.bytes())]),
    )
}

/// `inline_bytes`, also when there are none: without the field Envoy would verify nothing.
fn data_source(pem: &str) -> Fields {
    Fields::of(&[(2, pem.as_bytes())])
}

fn any(type_url: &str, message: &Fields) -> Fields {
    Fields::of(&[(1, type_url.as_bytes()), (2, message.bytes())])
}
