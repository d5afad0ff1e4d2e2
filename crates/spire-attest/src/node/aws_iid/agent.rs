use ah_spire_wire::aws::{Environment, Imds};

use crate::node::aws_iid::document::Shown;
use crate::node::{AgentHalf, NoChallenge, Payload};
use crate::{AttestError, Builtin};

const AWS: Builtin = Builtin::AwsIid;

/// The agent's settings, under the names of SPIRE's configuration files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AwsIidAgentConfig {
    /// The metadata service; `AWS_EC2_METADATA_SERVICE_ENDPOINT` or `http://169.254.169.254` if empty.
    pub ec2_metadata_endpoint: String,
}

/// The agent's half.
#[derive(Clone, Debug)]
pub struct AwsIidAgent {
    imds: Imds,
}

impl AwsIidAgent {
    /// The half that asks the metadata service for the document each time.
    pub fn configure(
        config: &AwsIidAgentConfig,
        environment: &Environment,
    ) -> Result<Self, AttestError> {
        let endpoint = Some(config.ec2_metadata_endpoint.as_str()).filter(|url| !url.is_empty());
        let imds = Imds::new(environment, endpoint).map_err(|error| {
            AttestError::invalid(
                format!("ec2_metadata_endpoint: {error}"),
                "leave it out on an instance of EC2",
            )
            .of_builtin(AWS)
        })?;
        Ok(Self { imds })
    }

    async fn shown(&self) -> Result<Vec<u8>, String> {
        let of = |part| format!("dynamic/instance-identity/{part}");
        let (document, old, new) = (of("document"), of("signature"), of("rsa2048"));
        let read = self.imds.read([&document, &old, &new].map(String::as_str));
        let text = |bytes: bytes::Bytes, path| {
            String::from_utf8(bytes.to_vec()).map_err(|_| format!("{path} is no text"))
        };
        let [first, second, third] = read.await?;
        let shown = Shown {
            document: text(first, document)?,
            // Old servers know this one alone.
            signature: text(second, old)?,
            rsa2048: text(third, new)?,
        };
        serde_json::to_vec(&shown).map_err(|error| error.to_string())
    }
}

impl AgentHalf for AwsIidAgent {
    type Conversation = NoChallenge;

    fn name(&self) -> &str {
        AWS.name()
    }

    async fn begin(&self) -> Result<(Payload, NoChallenge), AttestError> {
        let shown = Box::pin(self.shown()).await.map_err(|error| {
            AttestError::unavailable(
                format!("unable to retrieve the instance identity document: {error}"),
                "this attestor works on an instance of EC2 whose metadata service is on",
            )
            .of_builtin(AWS)
        })?;
        Ok((Payload::new(shown), NoChallenge::of(AWS)))
    }
}
