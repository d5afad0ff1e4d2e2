use ah_spire_wire::azure::{self, Azure};
use ah_spire_wire::sigv4::percent_encoded;
use serde::Deserialize;
use serde_json::json;

use crate::node::azure_msi::DEFAULT_RESOURCE;
use crate::node::{AgentHalf, NoChallenge, Payload, Secret};
use crate::{AttestError, Builtin};

const MSI: Builtin = Builtin::AzureMsi;

/// The agent's settings, under the names of SPIRE's configuration files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AzureMsiAgentConfig {
    /// Who the token is for; `https://management.azure.com/` if empty.
    pub resource_id: String,
}

/// The agent's half.
#[derive(Clone, Debug)]
pub struct AzureMsiAgent {
    azure: Azure,
    resource: String,
}

impl AzureMsiAgent {
    /// The half that asks the metadata service for a token each time.
    pub fn configure(config: AzureMsiAgentConfig, azure: Azure) -> Self {
        let resource = match config.resource_id.as_str() {
            "" => DEFAULT_RESOURCE.to_owned(),
            _ => config.resource_id,
        };
        Self { azure, resource }
    }

    async fn token(&self) -> Result<Secret, String> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Answer {
            access_token: Secret,
        }
        let path = format!(
            "/metadata/identity/oauth2/token?api-version=2018-02-01&resource={}",
            percent_encoded(&self.resource)
        );
        let answer: Answer = azure::metadata(&self.azure, &path).await?;
        if answer.access_token.0.is_empty() {
            return Err("response missing access token".into());
        }
        Ok(answer.access_token)
    }
}

impl AgentHalf for AzureMsiAgent {
    type Conversation = NoChallenge;

    fn name(&self) -> &str {
        MSI.name()
    }

    async fn begin(&self) -> Result<(Payload, NoChallenge), AttestError> {
        let token = Box::pin(self.token()).await.map_err(|error| {
            AttestError::unavailable(
                format!("unable to fetch token: {error}"),
                "this attestor works on a virtual machine of Azure with a managed identity; resource_id has to be known \
                 to Azure",
            )
            .of_builtin(MSI)
        })?;
        let payload = json!({"token": *token.0}).to_string();
        Ok((Payload::new(payload.into_bytes()), NoChallenge::of(MSI)))
    }
}
