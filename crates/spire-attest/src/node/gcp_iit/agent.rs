use ah_spire_wire::http_client::HttpClient;
use bytes::Bytes;
use http::{Request, StatusCode};

use crate::node::gcp_iit::AUDIENCE;
use crate::node::{AgentHalf, NoChallenge, Payload};
use crate::{AttestError, Builtin};

/// The agent's settings, under the names of SPIRE's configuration files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcpIitAgentConfig {
    /// The metadata server; `metadata.google.internal` if empty.
    pub identity_token_host: String,
    /// The service account of the token; `default` if empty.
    pub service_account: String,
}

/// The agent's half.
#[derive(Clone, Debug)]
pub struct GcpIitAgent {
    url: String,
}

impl GcpIitAgent {
    /// The half that asks the metadata server for a token each time.
    pub fn configure(config: &GcpIitAgentConfig) -> Result<Self, AttestError> {
        let or = |given: &str, default: &str| match given {
            "" => default.to_owned(),
            given => given.to_owned(),
        };
        let host = or(&config.identity_token_host, "metadata.google.internal");
        let account = or(&config.service_account, "default");
        let url = format!(
            "http://{host}/computeMetadata/v1/instance/service-accounts/{account}/identity?audience={AUDIENCE}&format=full"
        );
        if let Err(error) = url.parse::<http::Uri>() {
            return Err(AttestError::invalid(
                format!("identity_token_host {host:?} and service_account {account:?} make no URL: {error}"),
                "leave both out on an instance of Compute Engine",
            )
            .of_builtin(Builtin::GcpIit));
        }
        Ok(Self { url })
    }

    async fn token(&self) -> Result<Bytes, String> {
        let request = Request::get(&self.url)
            .header("Metadata-Flavor", "Google")
            .body(Bytes::new());
        let request = request.map_err(|error| error.to_string())?;
        let answer = HttpClient::plain()?.send(request).await?;
        if answer.status() != StatusCode::OK {
            return Err(format!(
                "unexpected status code: {}",
                answer.status().as_u16()
            ));
        }
        Ok(answer.into_body())
    }
}

impl AgentHalf for GcpIitAgent {
    type Conversation = NoChallenge;

    fn name(&self) -> &str {
        Builtin::GcpIit.name()
    }

    async fn begin(&self) -> Result<(Payload, NoChallenge), AttestError> {
        let token = self.token().await.map_err(|error| {
            AttestError::unavailable(
                format!("unable to retrieve valid identity token: {error}"),
                "this attestor works on an instance of Compute Engine with a service account",
            )
            .of_builtin(Builtin::GcpIit)
        })?;
        let payload = Payload::new(token.to_vec());
        Ok((payload, NoChallenge::of(Builtin::GcpIit)))
    }
}
