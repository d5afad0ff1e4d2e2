//! `trust_bundle_spiffe_workload_api`: the bundle that another agent of this machine serves.

use std::time::Duration;

use ah_spire_wire::Channel;
use ah_spire_wire::bundle::bundle_from_wire;
use ah_spire_wire::types;
use ah_spire_wire::workload::X509BundlesRequest;
use ah_spire_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use rustls_pki_types::CertificateDer;
use spiffe::TrustDomain;
use tokio::net::TcpStream;
use tonic::Request;
use tonic::metadata::MetadataValue;

use crate::server_client::roots_of;

/// All of it.
const TIMEOUT: Duration = Duration::from_secs(60);

pub(super) async fn roots(
    address: &str,
    domain: &TrustDomain,
) -> Result<Vec<CertificateDer<'static>>, String> {
    tokio::time::timeout(TIMEOUT, Box::pin(ask(address, domain)))
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {}s", TIMEOUT.as_secs())))
}

async fn ask(address: &str, domain: &TrustDomain) -> Result<Vec<CertificateDer<'static>>, String> {
    let connected = match address.split_once(':') {
        Some(("unix", path)) => Channel::unix(path.trim_start_matches("//").as_ref()).await,
        Some(("tcp", place)) => match TcpStream::connect(place.trim_start_matches("//")).await {
            Ok(stream) => Channel::over(stream).await,
            Err(error) => Err(error),
        },
        _ => return Err("write unix:///PATH or tcp://ADDRESS:PORT".into()),
    };
    let channel = connected.map_err(|error| error.to_string())?;
    let mut request = Request::new(X509BundlesRequest {});
    let secured = MetadataValue::from_static("true");
    request.metadata_mut().insert("workload.spiffe.io", secured);
    let told = |status: tonic::Status| status.message().to_owned();
    let mut answers = SpiffeWorkloadApiClient::with_origin(channel, Channel::origin())
        .fetch_x509_bundles(request)
        .await
        .map_err(told)?
        .into_inner();
    let first = answers.message().await.map_err(told)?;
    let mut bundles = first.ok_or("the stream ended")?.bundles;
    let ders = bundles
        .remove(&format!("spiffe://{domain}"))
        .ok_or_else(|| format!("it has no bundle of the trust domain {domain}"))?;
    let wire = types::Bundle {
        trust_domain: domain.to_string(),
        x509_authorities: vec![types::X509Certificate {
            asn1: ders.into(),
            tainted: false,
        }],
        ..types::Bundle::default()
    };
    let bundle = bundle_from_wire(&wire).map_err(|error| error.to_string())?;
    Ok(roots_of(&bundle))
}
