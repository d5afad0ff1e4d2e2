//! A handshake with an authority that is not active yet: by what it signs, on both sides, judged by the bundle as
//! agents get it.

use std::sync::Arc;
use std::time::Duration;

use ah_identity_provider::{Clock, PrivateKey, TrustBundles};
use ah_spire_wire::model::Bundle;
use ah_tls::{HandshakeFault, OwnKey, ServerTrust, SpiffeClient, Trust};
use rustls_pki_types::CertificateDer;
use spiffe::SpiffeId;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::authority::X509Authority;
use super::server_svid;
use super::sign::{Authorities, Profile};
use super::{Signer as _, X509SvidRequest};
use crate::endpoints::{ClientTrust, Configs};
use crate::keys::{KeyType, LocalKey, SigningKey as _};

/// Nothing in it waits for anybody else.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a handshake's messages have room in, in bytes.
const BUFFER: usize = 64 * 1024;

/// Shakes hands as a server and as an agent that have an SVID of `authority`, over the configurations that serve agents.
pub(super) async fn handshake(
    profile: &Profile,
    clock: &Arc<dyn Clock>,
    authority: Arc<X509Authority>,
    bundle: &Bundle,
) -> Result<(), String> {
    let signer = Authorities::new(profile.clone(), clock.clone());
    signer.set_x509(Some(authority));
    let domain = &profile.trust_domain;
    let id = |path: &str| SpiffeId::new(format!("spiffe://{domain}{path}"));
    let roots = bundle.x509.iter();
    let roots = roots.map(|ca| CertificateDer::from(ca.der.clone()));
    let bundles = TrustBundles {
        unscoped: Vec::new(),
        domains: [(domain.clone(), roots.collect())].into(),
    };

    let (server, _) = server_svid::make(&signer).map_err(|error| error.to_string())?;
    let key =
        LocalKey::generate("rehearsal", KeyType::EcP256).map_err(|error| error.to_string())?;
    let client = signer.sign_agent_svid(X509SvidRequest {
        spiffe_id: id("/spire/agent/rehearsal").map_err(|error| error.to_string())?,
        spki: key.spki().to_vec(),
        dns_names: Vec::new(),
        ttl: None,
    });
    let chain = client.map_err(|error| error.to_string())?.chain;
    let chain = chain.into_iter().map(CertificateDer::from).collect();
    let mut pkcs8 = key.to_pkcs8().map_err(|error| error.to_string())?;
    let key = OwnKey::from(PrivateKey::pkcs8(std::mem::take(&mut *pkcs8)));

    let client = SpiffeClient::new(
        id("/spire/server").map_err(|error| error.to_string())?,
        ServerTrust::Roots(Arc::new(Trust::new(&bundles))),
        Some((chain, &key)),
        false,
        clock.clone(),
    )
    .map_err(|error| error.to_string())?;
    let configs = Configs::new(
        watch::channel(Some(Arc::new(server))).1,
        watch::channel(Arc::new(bundles)).1,
        ClientTrust {
            trust_domain: domain.clone(),
            admin_ids: Default::default(),
        },
        clock.clone(),
        false,
    );
    let config = configs
        .current()
        .ok_or("the server's SVID cannot be used for TLS")?;

    let (ours, theirs) = tokio::io::duplex(BUFFER);
    let both = async {
        tokio::join!(
            client.handshake(theirs),
            TlsAcceptor::from(config).accept(ours)
        )
    };
    let (client, server) = tokio::time::timeout(PATIENCE, both)
        .await
        .map_err(|_| format!("no end within {}s", PATIENCE.as_secs()))?;
    if let Err(fault) = client {
        return Err(match fault {
            HandshakeFault::Refused(why) => format!("the agent refuses the server: {why}"),
            HandshakeFault::Ended(error) => format!("the agent's side: {error}"),
        });
    }
    match server {
        Ok(stream) if stream.get_ref().1.peer_certificates().is_some() => Ok(()),
        Ok(_) => Err("the agent showed no SVID".into()),
        Err(error) => Err(format!("the server refuses the agent: {error}")),
    }
}
