//! `aws_iid`: the node is an instance of EC2, and its identity document says so.
//!
//! The payload is the document with its signatures, as the metadata service gave them to the agent. The server verifies
//! the RSA-2048 signature with the certificate that AWS publishes for the document's region, and asks EC2 for the
//! instance: whether it runs, whether its root volume came with it, its tags, groups and roles. If told so, it asks as
//! well whether the account belongs to an organization, and the instance to a cluster of EKS.
//!
//! A document says nothing of the agent that shows it: the first one of an instance is believed, and an instance that has
//! an agent gets no second one (`can_reattest` is false) until it is evicted.
//!
//! Settings, texts and selectors are upstream's. Stricter: a document needs its RSA-2048 signature, and the instance has
//! to be there whatever the checks that are left out.

use ah_spire_wire::aws::Environment;

mod account;
mod agent;
mod document;
mod ec2;
mod membership;
mod server;

pub use account::{EksConfig, OrganizationConfig};
pub use agent::{AwsIidAgent, AwsIidAgentConfig};
pub use server::{AwsIidServer, AwsIidServerConfig};

/// AWS as the server sees it. It is another one in tests alone.
#[derive(Clone, Debug)]
pub struct Amazon {
    /// Where endpoints and credentials may be set.
    pub environment: Environment,
    /// The certificates that identity documents are signed with: a line with the regions that have it before each one in
    /// PEM.
    pub certificates: String,
}

impl Amazon {
    /// AWS, with the endpoints and credentials of this process's environment.
    pub fn of_process() -> Self {
        Self {
            environment: Environment::of_process(),
            certificates: include_str!("aws_iid/regions.pem").into(),
        }
    }
}
