//! Nodes that have certificates.

use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use ah_spire_attest::AttestError;
use ah_spire_attest::node::x509pop::{Authorities, X509PopServer, X509PopServerConfig};
use ah_spire_attest::node::{Challenge, Claim, ServerHalf};
use ah_spire_wire::server::agent::{
    AttestAgentRequest, AttestAgentResponse, attest_agent_request, attest_agent_response,
};
use rustls_pki_types::CertificateDer;
use spiffe::TrustDomain;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

use super::{DOMAIN, Fake};

type Answer = Result<AttestAgentResponse, Status>;

impl Fake {
    /// Has a node prove the key of a certificate of `node_roots`.
    pub(super) fn attest_node(
        &self,
        payload: Vec<u8>,
        csr: Vec<u8>,
        requests: Streaming<AttestAgentRequest>,
    ) -> Response<ReceiverStream<Answer>> {
        let (answers, receiver) = mpsc::channel(2);
        let fake = self.clone();
        tokio::spawn(async move {
            let config = X509PopServerConfig {
                ca_bundle_path: fake.state().node_roots.clone().unwrap(),
                ..X509PopServerConfig::default()
            };
            let domain = TrustDomain::new(DOMAIN).unwrap();
            let half = X509PopServer::configure(config, domain, Nobody).await;
            let claim = Claim {
                payload: &payload,
                client_ip: None,
                now: SystemTime::now(),
            };
            let mut node = Node {
                answers: answers.clone(),
                requests,
            };
            let answer = match half.unwrap().attest(claim, &mut node).await {
                Ok(attested) => {
                    let id = attested.id.to_string();
                    Ok(respond(attest_agent_response::Step::Result(
                        attest_agent_response::Result {
                            svid: Some(fake.issue(&csr, &id, Duration::from_secs(3600))),
                            reattestable: attested.can_reattest,
                        },
                    )))
                }
                Err(error) => Err(Status::permission_denied(error.to_string())),
            };
            let _ = answers.send(answer).await;
        });
        Response::new(ReceiverStream::new(receiver))
    }
}

fn respond(step: attest_agent_response::Step) -> AttestAgentResponse {
    AttestAgentResponse { step: Some(step) }
}

/// The way back to the node.
struct Node {
    answers: mpsc::Sender<Answer>,
    requests: Streaming<AttestAgentRequest>,
}

impl Challenge for Node {
    async fn challenge(&mut self, challenge: Vec<u8>) -> Result<Vec<u8>, AttestError> {
        let step = attest_agent_response::Step::Challenge(challenge);
        self.answers.send(Ok(respond(step))).await.unwrap();
        let request = self.requests.message().await.unwrap().unwrap();
        let Some(attest_agent_request::Step::ChallengeResponse(answer)) = request.step else {
            panic!("the node does not answer");
        };
        Ok(answer)
    }
}

/// Not asked in mode `external_pki`.
struct Nobody;

impl Authorities for Nobody {
    type Error = Infallible;

    async fn x509_authorities(&self) -> Result<Vec<CertificateDer<'static>>, Infallible> {
        Ok(Vec::new())
    }
}
