use ah_spire_wire::azure::{self, Azure};
use ah_spire_wire::sigv4::percent_encoded;

use crate::node::azure::{Instance, METADATA_VERSION};
use crate::node::azure_imds::{Attested, Hints, Shown};
use crate::node::{AgentHalf, Conversation, Payload};
use crate::{AttestError, Builtin};

const IMDS: Builtin = Builtin::AzureImds;

/// The agent's settings, under the names of SPIRE's configuration files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AzureImdsAgentConfig {
    /// The domain of the tenant that the machine belongs to. Required.
    pub tenant_domain: String,
}

/// The agent's half.
#[derive(Clone, Debug)]
pub struct AzureImdsAgent {
    azure: Azure,
    tenant_domain: String,
}

impl AzureImdsAgent {
    /// The half that asks the metadata service for a document each time.
    pub fn configure(config: AzureImdsAgentConfig, azure: Azure) -> Result<Self, AttestError> {
        if config.tenant_domain.is_empty() {
            return Err(AttestError::invalid(
                "tenant_domain is required",
                "name the tenant by its domain, such as \"example.onmicrosoft.com\"",
            )
            .of_builtin(IMDS));
        }
        Ok(Self {
            azure,
            tenant_domain: config.tenant_domain,
        })
    }
}

impl AgentHalf for AzureImdsAgent {
    type Conversation = AzureImdsConversation;

    fn name(&self) -> &str {
        IMDS.name()
    }

    async fn begin(&self) -> Result<(Payload, AzureImdsConversation), AttestError> {
        // It opens the conversation; servers do not look at it.
        let payload = Payload::new(b"non_empty_payload".to_vec());
        Ok((payload, AzureImdsConversation(self.clone())))
    }
}

/// Lets the metadata service attest the server's nonce.
#[derive(Debug)]
pub struct AzureImdsConversation(AzureImdsAgent);

impl AzureImdsConversation {
    async fn shown(&self, nonce: &str) -> Result<Vec<u8>, String> {
        let azure = &self.0.azure;
        let path = format!(
            "/metadata/attested/document?api-version={METADATA_VERSION}&nonce={}",
            percent_encoded(nonce)
        );
        let document: Attested = azure::metadata(azure, &path)
            .await
            .map_err(|error| format!("unable to fetch attested document: {error}"))?;
        for (value, what) in [
            (&document.encoding, "encoding"),
            (&document.signature, "signature"),
        ] {
            if value.is_empty() {
                return Err(format!(
                    "unable to fetch attested document: response missing {what}"
                ));
            }
        }
        let own = Instance::own(azure)
            .await
            .map_err(|error| format!("unable to fetch compute metadata: {error}"))?;
        let scale_set = Some(own.compute.vm_scale_set_name).filter(|name| !name.is_empty());
        let shown = Shown {
            document,
            metadata: Hints {
                agent_domain: self.0.tenant_domain.clone(),
                vmss_name: scale_set,
            },
        };
        serde_json::to_vec(&shown).map_err(|error| error.to_string())
    }
}

impl Conversation for AzureImdsConversation {
    async fn answer(&mut self, challenge: &[u8]) -> Result<Vec<u8>, AttestError> {
        let nonce = std::str::from_utf8(challenge)
            .ok()
            .filter(|nonce| !nonce.is_empty());
        let nonce = nonce.ok_or_else(|| {
            AttestError::internal(
                "the server's challenge is no nonce",
                "check that the address is that of a SPIRE server which has the azure_imds attestor",
            )
            .of_builtin(IMDS)
        })?;
        Box::pin(self.shown(nonce)).await.map_err(|error| {
            AttestError::unavailable(error, "this attestor works on a virtual machine of Azure")
                .of_builtin(IMDS)
        })
    }
}
