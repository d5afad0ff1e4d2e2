//! `spire.api.server.debug.v1.Debug`

use std::sync::Arc;

use ah_spire_wire::server::debug::debug_server::Debug as Service;
use ah_spire_wire::server::debug::get_info_response::Cert;
use ah_spire_wire::server::debug::{GetInfoRequest, GetInfoResponse};
use ah_spire_wire::spiffe_id_to_wire;
use tonic::{Request, Response, Status};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::X509Name;

use super::{Core, count, internal};
use crate::ids;
use crate::store::{AgentFilter, EntryFilter, Store};

pub(super) struct Debugger<S>(pub(super) Arc<Core<S>>);

#[tonic::async_trait]
impl<S: Store> Service for Debugger<S> {
    async fn get_info(
        &self,
        _request: Request<GetInfoRequest>,
    ) -> Result<Response<GetInfoResponse>, Status> {
        let store = &self.0.store;
        let agents = store.count_agents(&AgentFilter::default()).await;
        let agents = agents.map_err(|error| internal("failed to count agents", error))?;
        let entries = store.count_entries(&EntryFilter::default()).await;
        let entries = entries.map_err(|error| internal("failed to count entries", error))?;
        let bundles = store.count_bundles().await;
        let bundles = bundles.map_err(|error| internal("failed to count bundles", error))?;
        let own = store.bundle(&self.0.trust_domain).await;
        let own = own.map_err(|error| internal("failed to fetch trust domain bundle", error))?;
        let own = own.ok_or_else(|| Status::not_found("trust domain bundle not found"))?;
        let chain = self.0.own_chain.borrow().clone();
        let roots = own.x509.iter().map(|ca| ca.der.as_slice());
        let uptime = self.0.clock.now().duration_since(self.0.started);
        Ok(Response::new(GetInfoResponse {
            svid_chain: told(&chain, roots)
                .map_err(|why| internal("failed verification against bundle", why))?,
            uptime: count(uptime.map_or(0, |uptime| uptime.as_secs())),
            agents_count: count(agents),
            federated_bundles_count: count(bundles),
            entries_count: count(entries),
        }))
    }
}

/// The chain with the root that it ends in.
fn told<'a>(
    chain: &[Vec<u8>],
    mut roots: impl Iterator<Item = &'a [u8]>,
) -> Result<Vec<Cert>, String> {
    let mut told = Vec::with_capacity(chain.len() + 1);
    let mut issuer = Vec::new();
    for der in chain {
        let cert = read(der)?;
        issuer = cert.issuer().as_raw().to_vec();
        told.push(one(&cert));
    }
    let root = roots.find_map(|der| {
        let root = read(der).ok()?;
        (root.subject().as_raw() == issuer).then(|| one(&root))
    });
    told.extend(root);
    Ok(told)
}

fn read(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    X509Certificate::from_der(der)
        .map(|(_, cert)| cert)
        .map_err(|error| error.to_string())
}

fn one(cert: &X509Certificate<'_>) -> Cert {
    let uri = cert
        .subject_alternative_name()
        .ok()
        .flatten()
        .and_then(|names| {
            names
                .value
                .general_names
                .iter()
                .find_map(|name| match name {
                    x509_parser::extensions::GeneralName::URI(uri) => ids::parse(uri).ok(),
                    _ => None,
                })
        });
    Cert {
        id: uri.as_ref().map(spiffe_id_to_wire),
        expires_at: cert.validity().not_after.timestamp(),
        subject: name(cert.subject()),
    }
}

/// As RFC 4514 §2.1 writes it: the last element first.
fn name(name: &X509Name<'_>) -> String {
    let elements = name.iter_attributes().map(|attribute| {
        let oid = attribute.attr_type().to_id_string();
        let key = match oid.as_str() {
            "2.5.4.3" => "CN",
            "2.5.4.5" => "SERIALNUMBER",
            "2.5.4.6" => "C",
            "2.5.4.7" => "L",
            "2.5.4.8" => "ST",
            "2.5.4.9" => "STREET",
            "2.5.4.10" => "O",
            "2.5.4.11" => "OU",
            "2.5.4.17" => "POSTALCODE",
            other => other,
        };
        format!("{key}={}", escaped(attribute.as_str().unwrap_or_default()))
    });
    let mut elements: Vec<String> = elements.collect();
    elements.reverse();
    elements.join(",")
}

fn escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let last = value.chars().count().saturating_sub(1);
    for (at, character) in value.chars().enumerate() {
        let escape = match character {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => true,
            '#' => at == 0,
            ' ' => at == 0 || at == last,
            _ => false,
        };
        if escape {
            out.push('\\');
        }
        out.push(character);
    }
    out
}
