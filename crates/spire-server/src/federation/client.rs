//! Asks a bundle endpoint (SPIFFE Federation §5.2).

use std::sync::Arc;
use std::time::Duration;

use ::url::Url;
use ah_identity_provider::{CertificateFacts, Clock, TrustBundles};
use ah_spire_wire::bundle::from_document;
use ah_spire_wire::download::{Answer, dial, get, host_of};
use ah_spire_wire::model::Bundle;
use ah_tls::{HandshakeFault, ServerTrust, SpiffeClient, Trust, WebClient};
use bytes::Bytes;
use http::StatusCode;
use rustls_pki_types::CertificateDer;
use spiffe::{SpiffeId, TrustDomain};

use super::url::{endpoint_url, redirected};

/// From the first connection to the end of the document.
const TIMEOUT: Duration = Duration::from_secs(30);

const MOST_REDIRECTS: usize = 10;

const AGENT: &str = "spire-server";

/// How much of an answer that is no document is told, in characters.
const TOLD: usize = 200;

/// What is asked of whom.
pub(super) struct Question<'a> {
    pub(super) domain: &'a TrustDomain,
    pub(super) url: &'a str,
    pub(super) proof: &'a Proof,
    /// `experimental.require_pq_kem`
    pub(super) post_quantum_only: bool,
}

/// How an endpoint is to prove itself.
pub(super) enum Proof {
    /// `https_web`
    Web,
    /// `https_spiffe`: with this ID, and the roots of its trust domain as they are stored (SV-56).
    Spiffe {
        id: SpiffeId,
        bundle: Bundle,
        clock: Arc<dyn Clock>,
    },
}

/// The bundle of a trust domain as its endpoint serves it.
pub(super) async fn fetch(question: Question<'_>) -> Result<Bundle, String> {
    let Question { domain, url, .. } = question;
    let within = tokio::time::timeout(TIMEOUT, Box::pin(document(&question))).await;
    let document = within
        .unwrap_or_else(|_| Err(format!("no answer within {}s", TIMEOUT.as_secs())))
        .map_err(|why| format!("failed to fetch bundle: {url}: {why}"))?;
    let bundle = from_document(domain, &document);
    let bundle = bundle.map_err(|error| format!("failed to decode bundle: {url}: {error}"))?;
    is_of(&bundle, domain).map_err(|why| format!("unusable bundle: {url}: {why}"))?;
    Ok(bundle)
}

async fn document(question: &Question<'_>) -> Result<Bytes, String> {
    let checked = endpoint_url(question.url)?;
    let mut url = Url::parse(&checked).map_err(|error| error.to_string())?;
    for _ in 0..=MOST_REDIRECTS {
        let answer = ask(&url, question).await?;
        match (answer.status, answer.location) {
            (StatusCode::OK, _) => return Ok(answer.body),
            (
                StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT,
                Some(location),
            ) => url = redirected(&url, &location)?,
            (status, _) => {
                let said = String::from_utf8_lossy(&answer.body);
                let said: String = said.trim().chars().take(TOLD).collect();
                return Err(format!(
                    "unexpected status {} fetching bundle: {said:?}",
                    status.as_u16()
                ));
            }
        }
    }
    Err(format!("it redirects more than {MOST_REDIRECTS} times"))
}

/// Each connection is proved, those that a redirect leads to as well.
async fn ask(url: &Url, question: &Question<'_>) -> Result<Answer, String> {
    let host = host_of(url)?;
    let post_quantum_only = question.post_quantum_only;
    match question.proof {
        Proof::Web => {
            // From files, and each time: they may be newer ones.
            let web = tokio::task::spawn_blocking(move || WebClient::new(post_quantum_only));
            let web = web.await.map_err(|error| error.to_string())??;
            let stream = web.connect(host, dial(url).await?).await;
            let stream = stream.map_err(|fault| match &fault.spiffe_id {
                None => format!("{host}: TLS: {fault}"),
                Some(id) => format!(
                    "failed to authenticate bundle endpoint using web authentication but the server certificate contains SPIFFE ID \"{id}\": maybe use https_spiffe instead of https_web: {fault}"
                ),
            })?;
            get(url, AGENT, stream).await
        }
        Proof::Spiffe { id, bundle, clock } => {
            let roots = bundle.x509.iter();
            let roots = roots.map(|ca| CertificateDer::from(ca.der.clone()));
            let trust = Trust::new(&TrustBundles {
                unscoped: Vec::new(),
                domains: [(id.trust_domain().clone(), roots.collect())].into(),
            });
            let trust = ServerTrust::Roots(Arc::new(trust));
            let client =
                SpiffeClient::new(id.clone(), trust, None, post_quantum_only, clock.clone())
                    .map_err(|error| error.to_string())?
                    .of_host(host)?;
            let stream = client.handshake(dial(url).await?).await;
            let (stream, _) = stream.map_err(|fault| match fault {
                HandshakeFault::Ended(error) => format!("{host}: TLS: {error}"),
                HandshakeFault::Refused(refused) => {
                    let why = refused.explained();
                    let causes = why.causes.join("; ");
                    format!(
                        "{host}: failed to verify the endpoint: {}: {causes}",
                        why.text
                    )
                }
            })?;
            get(url, AGENT, stream).await
        }
    }
}

/// A document does not name its trust domain, but its CA certificates may: one of another domain is somebody else's
/// bundle (SV-52).
fn is_of(bundle: &Bundle, domain: &TrustDomain) -> Result<(), String> {
    for (at, ca) in bundle.x509.iter().enumerate() {
        let facts = CertificateFacts::from_der(&ca.der)
            .map_err(|error| format!("x509-svid entry {at}: {error}"))?;
        let ids = facts.uris.iter().filter_map(|uri| SpiffeId::new(uri).ok());
        for id in ids {
            if id.trust_domain() != domain {
                return Err(format!(
                    "the CA certificate of x509-svid entry {at} is of {id}, not of the trust domain {domain}"
                ));
            }
        }
    }
    Ok(())
}
