//! Judges our own identity with the checks its peers will make, before it is put to use.

use std::time::SystemTime;

use ah_identity_provider::{Code, Explained, Identity, Vet};
use webpki::KeyUsage;

use crate::SvidFault;
use crate::configs::certified_key;
use crate::fault::{EXPIRED, Fault, NO_LOCAL_ISSUER};
use crate::verify::{Leaf, Trust};

/// On which side of the connection an identity is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Presented to executors.
    AccessPoint,
    /// Presented to access points.
    Executor,
}

/// The vetting of this process's own identity: key and leaf belong together (ER-6), the dates hold (ER-4),
/// and peers will be able to verify the chain.
#[derive(Clone, Copy, Debug)]
pub struct IdentityVet {
    role: Role,
    strict_svid: bool,
}

impl IdentityVet {
    /// Vets for `role`. With `strict_svid`, `I` rows of an own SVID are refused as peers would.
    pub fn new(role: Role, strict_svid: bool) -> Self {
        Self { role, strict_svid }
    }
}

/// What there is to say of an identity that can be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Examined {
    /// What the SPIFFE standards ask of its issuer and it lacks (`I` rows).
    pub issuer_faults: Vec<SvidFault>,
    /// Why the chain does not end in a root of its own bundle, where it does not. The peer may trust another.
    pub unanchored: Option<String>,
}

impl IdentityVet {
    /// As [`Vet::vet`], and gives what is noteworthy instead of logging it.
    pub fn examine(&self, candidate: &Identity, now: SystemTime) -> Result<Examined, Explained> {
        certified_key(candidate)?;
        let leaf = Leaf::read(candidate.chain()).map_err(|fault| own(fault, candidate))?;
        let trust = Trust::new(candidate.bundles());
        let usage = match self.role {
            Role::AccessPoint => KeyUsage::server_auth(),
            Role::Executor => KeyUsage::client_auth(),
        };
        match leaf.verify(&trust, usage, self.strict_svid, now) {
            Ok(verified) => Ok(Examined {
                issuer_faults: verified.issuer_faults,
                unanchored: None,
            }),
            // Our root may be one that the peer trusts and we do not, as with two CAs (ER-21's hint).
            // What is ours to know is whether the chain hangs together and is valid now.
            Err(Fault::NoLocalIssuer(cause) | Fault::UnknownAuthority(cause)) => {
                leaf.check_alone(now)
                    .map_err(|fault| own(fault, candidate))?;
                Ok(Examined {
                    issuer_faults: Vec::new(),
                    unanchored: Some(cause),
                })
            }
            Err(fault) => Err(own(fault, candidate)),
        }
    }
}

impl Vet for IdentityVet {
    fn vet(&self, candidate: &Identity, now: SystemTime) -> Result<(), Explained> {
        let examined = self.examine(candidate, now)?;
        for fault in &examined.issuer_faults {
            tracing::warn!(%fault, "the issuer of our certificate does not follow the SPIFFE standard");
        }
        if let Some(cause) = examined.unanchored {
            tracing::warn!(
                cause,
                "the own certificate does not chain to a root of the own bundle; the peer must trust another root"
            );
        }
        Ok(())
    }
}

fn own(fault: Fault, identity: &Identity) -> Explained {
    let unusable = |cause: String| {
        Explained::new(Code::VerifyFailed, "peers would refuse our certificate")
            .cause(format!("certificate `{}`", identity.leaf().subject))
            .cause(cause)
            .hint("look at it with `openssl x509 -noout -text` and issue it again")
    };
    match fault {
        Fault::Dates(dates) => {
            let [whose, when] = dates.causes("our certificate");
            Explained::new(Code::ExpiredOrNotYetValid, EXPIRED)
                .cause(whose)
                .cause(when)
                .hint("renew the certificate, and check the clock with `date -u` and `timedatectl status`")
        }
        Fault::NoLocalIssuer(cause) => Explained::new(Code::NoLocalIssuer, NO_LOCAL_ISSUER)
            .cause(cause)
            .hint("put the intermediates after the leaf in --cert"),
        Fault::Svid(faults) => {
            let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
            unusable(format!("not a valid X509-SVID: {}", texts.join("; ")))
        }
        Fault::Malformed(cause) | Fault::Refused(cause) | Fault::UnknownAuthority(cause) => {
            unusable(cause)
        }
        other => unusable(format!("{other:?}")),
    }
}
