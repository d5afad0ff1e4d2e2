//! `experimental.broker { }`

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;

use spiffe::SpiffeId;

use super::file::{BrokerBlock, BrokerEntryBlock, ReferenceTypeBlock};
use super::resolve::apart;
use super::{Broker, BrokerConfig, ReferenceType};
use crate::error::ConfigError;

pub(super) fn from(
    block: BrokerBlock,
    workload_socket: Option<&Path>,
) -> Result<BrokerConfig, ConfigError> {
    if block.socket_path.is_empty() && block.bind_address.is_empty() {
        return ConfigError::rule(
            "experimental.broker requires socket_path, bind_address, or both",
        );
    }
    let socket = match block.socket_path.as_str() {
        "" => None,
        path => Some(apart(
            "experimental.broker.socket_path",
            path,
            workload_socket,
        )?),
    };
    let bind_address = match block.bind_address.as_str() {
        "" => None,
        address => Some(resolved(address)?),
    };
    let mut brokers: Vec<Broker> = Vec::with_capacity(block.brokers.len());
    for (index, entry) in block.brokers.into_iter().enumerate() {
        let broker = broker(index, entry)?;
        if brokers.iter().any(|other| other.id == broker.id) {
            return ConfigError::rule(format!(
                "experimental.broker.brokers[{}].id: given twice",
                broker.id
            ));
        }
        brokers.push(broker);
    }
    Ok(BrokerConfig {
        socket,
        bind_address,
        brokers,
    })
}

/// `host:port`; without a host, every address of this machine.
fn resolved(address: &str) -> Result<SocketAddr, ConfigError> {
    let full = if address.starts_with(':') {
        format!("[::]{address}")
    } else {
        address.to_owned()
    };
    let found = full.to_socket_addrs().map(|mut addresses| addresses.next());
    match found {
        Ok(Some(address)) => Ok(address),
        Ok(None) => ConfigError::rule(format!(
            "experimental.broker.bind_address {address:?} has no IP address"
        )),
        Err(why) => ConfigError::rule(format!(
            "invalid experimental.broker.bind_address {address:?}: {why}"
        )),
    }
}

fn broker(index: usize, entry: BrokerEntryBlock) -> Result<Broker, ConfigError> {
    if entry.id.is_empty() {
        return ConfigError::rule(format!(
            "experimental.broker.brokers[{index}].id: must be specified"
        ));
    }
    let key = format!("experimental.broker.brokers[{}]", entry.id);
    let id =
        SpiffeId::new(&entry.id).map_err(|why| ConfigError::Rule(format!("{key}.id: {why}")))?;
    let types = entry.allowed_reference_types;
    let key = format!("{key}.allowed_reference_types");
    if types.is_empty() {
        return ConfigError::rule(format!("{key}: must list at least one"));
    }
    if types.len() > 1 && types.iter().any(|kind| kind.type_url == "*") {
        return ConfigError::rule(format!("{key}: \"*\" must be the only one"));
    }
    let allowed_reference_types = types
        .into_iter()
        .enumerate()
        .map(|(index, kind)| reference(&key, index, kind));
    Ok(Broker {
        id,
        allowed_reference_types: allowed_reference_types.collect::<Result<_, _>>()?,
    })
}

fn reference(
    key: &str,
    index: usize,
    block: ReferenceTypeBlock,
) -> Result<ReferenceType, ConfigError> {
    if block.type_url.is_empty() {
        return ConfigError::rule(format!("{key}[{index}].type_url: must be specified"));
    }
    Ok(ReferenceType {
        type_url: block.type_url,
        allow_over_tcp: block.allow_over_tcp,
    })
}
