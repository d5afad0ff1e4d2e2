//! What is built in, named in one place.

use std::fmt;

/// The kinds of plugin that this crate has, by the names that configuration files use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PluginKind {
    /// `NodeAttestor`, in the agent's file and in the server's.
    NodeAttestor,
    /// `WorkloadAttestor`, in the agent's file.
    WorkloadAttestor,
}

impl PluginKind {
    /// The name of the block in a configuration file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NodeAttestor => "NodeAttestor",
            Self::WorkloadAttestor => "WorkloadAttestor",
        }
    }
}

impl fmt::Display for PluginKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An attestor of this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Builtin {
    /// `crate::workload::docker`
    Docker,
    /// [`crate::node::join_token`]
    JoinToken,
    /// [`crate::node::aws_iid`]
    AwsIid,
    /// [`crate::node::azure_imds`]
    AzureImds,
    /// [`crate::node::azure_msi`]
    AzureMsi,
    /// [`crate::node::gcp_iit`]
    GcpIit,
    /// [`crate::node::http_challenge`]
    HttpChallenge,
    /// `crate::workload::k8s`
    K8s,
    /// [`crate::node::k8s`], with projected tokens
    K8sPsat,
    /// [`crate::node::k8s`], with plain tokens
    K8sSat,
    /// `crate::workload::slurm`
    Slurm,
    /// [`crate::node::sshpop`]
    SshPop,
    /// `crate::workload::systemd`
    Systemd,
    /// [`crate::node::tpm_devid`]
    TpmDevId,
    /// [`crate::node::x509pop`]
    X509Pop,
    /// `crate::workload::unix`
    Unix,
}

impl Builtin {
    /// All there are.
    pub const ALL: [Self; 16] = [
        Self::Docker,
        Self::AwsIid,
        Self::AzureImds,
        Self::AzureMsi,
        Self::GcpIit,
        Self::HttpChallenge,
        Self::JoinToken,
        Self::K8s,
        Self::K8sPsat,
        Self::K8sSat,
        Self::Slurm,
        Self::SshPop,
        Self::Systemd,
        Self::TpmDevId,
        Self::X509Pop,
        Self::Unix,
    ];

    /// The attestor of `kind` that a configuration file calls `name`; old names count (SR-2).
    pub fn named(kind: PluginKind, name: &str) -> Option<Self> {
        let known = |builtin: &Self| builtin.name() == name || builtin.old_names().contains(&name);
        Self::ALL
            .into_iter()
            .filter(|builtin| builtin.kind() == kind)
            .find(known)
    }

    /// Whether it attests nodes or workloads.
    pub fn kind(self) -> PluginKind {
        match self {
            Self::AwsIid
            | Self::AzureImds
            | Self::AzureMsi
            | Self::GcpIit
            | Self::HttpChallenge
            | Self::JoinToken
            | Self::K8sPsat
            | Self::K8sSat
            | Self::SshPop
            | Self::TpmDevId
            | Self::X509Pop => PluginKind::NodeAttestor,
            Self::Docker | Self::K8s | Self::Slurm | Self::Systemd | Self::Unix => {
                PluginKind::WorkloadAttestor
            }
        }
    }

    /// Its name, which is the attestation type on the wire and the type of its selectors.
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::JoinToken => "join_token",
            Self::AwsIid => "aws_iid",
            Self::AzureImds => "azure_imds",
            Self::AzureMsi => "azure_msi",
            Self::GcpIit => "gcp_iit",
            Self::HttpChallenge => "http_challenge",
            Self::K8s => "k8s",
            Self::K8sPsat => "k8s_psat",
            Self::K8sSat => "k8s_sat",
            Self::Slurm => "slurm",
            Self::SshPop => "sshpop",
            Self::Systemd => "systemd",
            Self::TpmDevId => "tpm_devid",
            Self::X509Pop => "x509pop",
            Self::Unix => "unix",
        }
    }

    /// Names that old documents use for it (SR-2). Never sent.
    pub fn old_names(self) -> &'static [&'static str] {
        match self {
            Self::X509Pop => &["x509_pop"],
            Self::Docker
            | Self::AwsIid
            | Self::AzureImds
            | Self::AzureMsi
            | Self::GcpIit
            | Self::HttpChallenge
            | Self::JoinToken
            | Self::K8s
            | Self::K8sPsat
            | Self::K8sSat
            | Self::Slurm
            | Self::SshPop
            | Self::Systemd
            | Self::TpmDevId
            | Self::Unix => &[],
        }
    }
}

impl fmt::Display for Builtin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_finds_its_attestor_and_no_other_kind() {
        for builtin in Builtin::ALL {
            let other = match builtin.kind() {
                PluginKind::NodeAttestor => PluginKind::WorkloadAttestor,
                PluginKind::WorkloadAttestor => PluginKind::NodeAttestor,
            };
            for name in builtin.old_names().iter().chain([&builtin.name()]) {
                assert_eq!(Builtin::named(builtin.kind(), name), Some(builtin));
                assert_eq!(Builtin::named(other, name), None);
            }
        }
        assert_eq!(Builtin::named(PluginKind::NodeAttestor, ""), None);
        // SR-2
        let old = Builtin::named(PluginKind::NodeAttestor, "x509_pop");
        assert_eq!(old.map(Builtin::name), Some("x509pop"));
    }
}
