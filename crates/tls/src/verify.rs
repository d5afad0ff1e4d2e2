//! Verification of a peer's chain: path, SPIFFE rules, name, policy.

use std::cell::RefCell;
use std::sync::LazyLock;
use std::time::SystemTime;

use ah_identity_provider::CertificateFacts;
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use spiffe::SpiffeId;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::fault::{Dates, Fault, Judged};
use crate::signatures;
use crate::svid::{claims_spiffe, leaf_faults, missing_id, signer_faults};
use crate::trust::{Anchors, time};
use crate::uri_constraints::UriConstraints;
use crate::{PeerIdentity, PeerName, Policy, Refusal, Severity, SvidFault};

pub use crate::fault::VerifyError;
pub use crate::trust::Trust;

/// The signatures we accept, on certificates and in handshakes.
pub(crate) static ALGORITHMS: LazyLock<WebPkiSupportedAlgorithms> =
    LazyLock::new(|| aws_lc_rs::default_provider().signature_verification_algorithms);

/// Whom an executor expects at the other end (EN-5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpectedServer {
    /// This SPIFFE ID; DNS names are not looked at.
    SpiffeId(SpiffeId),
    /// A certificate with this DNS name or IP address among its SANs.
    Name(ServerName<'static>),
}

/// Judges an executor's `chain` (leaf first) as the access point does at the time `now`.
pub fn verify_executor(
    chain: &[CertificateDer<'_>],
    trust: &Trust,
    policy: &Policy,
    now: SystemTime,
) -> Result<PeerIdentity, VerifyError> {
    let refuse = |fault: &Fault, leaf: Option<&CertificateFacts>| {
        let rules: Vec<String> = policy.rules.iter().collect();
        VerifyError::new(fault, Judged::Executor { rules: &rules }, leaf)
    };
    let leaf = Leaf::read(chain).map_err(|fault| refuse(&fault, None))?;
    let verified = leaf
        .verify(trust, KeyUsage::client_auth(), policy.strict_svid, now)
        .map_err(|fault| refuse(&fault, Some(&leaf.facts)))?;
    let name = policy
        .admit(&leaf.facts, verified.id.as_ref())
        .map_err(|refusal| refuse(&refusal.into_fault(policy), Some(&leaf.facts)))?;
    Ok(leaf.into_peer(name, verified))
}

/// Judges the access point's `chain` (leaf first) as an executor does at the time `now`.
pub fn verify_access_point(
    chain: &[CertificateDer<'_>],
    trust: &Trust,
    expected: &ExpectedServer,
    strict_svid: bool,
    now: SystemTime,
) -> Result<PeerIdentity, VerifyError> {
    let refuse = |fault: &Fault, leaf| VerifyError::new(fault, Judged::AccessPoint, leaf);
    let leaf = Leaf::read(chain).map_err(|fault| refuse(&fault, None))?;
    let verified = leaf
        .verify(trust, KeyUsage::server_auth(), strict_svid, now)
        .map_err(|fault| refuse(&fault, Some(&leaf.facts)))?;
    let name = leaf
        .is_expected(expected, verified.id.as_ref())
        .map_err(|fault| refuse(&fault, Some(&leaf.facts)))?;
    Ok(leaf.into_peer(name, verified))
}

/// Judges the `chain` (leaf first) of the SPIFFE server `expected` at the time `now`. Also right for an SVID that
/// somebody else will present: both directions of TLS are allowed to an X509-SVID.
pub fn verify_spiffe_server(
    chain: &[CertificateDer<'_>],
    trust: &Trust,
    expected: &SpiffeId,
    now: SystemTime,
) -> Result<PeerIdentity, VerifyError> {
    let refuse = |fault: &Fault, leaf| VerifyError::new(fault, Judged::Server, leaf);
    let leaf = Leaf::read(chain).map_err(|fault| refuse(&fault, None))?;
    let expected = ExpectedServer::SpiffeId(expected.clone());
    // The name first: somebody else's certificate is better told by its name than by its issuer.
    let judged = leaf.svid().and_then(|(id, _)| {
        let name = leaf.is_expected(&expected, id.as_ref())?;
        let verified = leaf.verify(trust, KeyUsage::server_auth(), false, now)?;
        Ok((name, verified))
    });
    let (name, verified) = judged.map_err(|fault| refuse(&fault, Some(&leaf.facts)))?;
    Ok(leaf.into_peer(name, verified))
}

/// As [`verify_spiffe_server`], without a path: who issued it is not known yet.
pub(crate) fn verify_first_use(
    chain: &[CertificateDer<'_>],
    expected: &SpiffeId,
) -> Result<PeerIdentity, VerifyError> {
    let refuse = |fault: &Fault, leaf| VerifyError::new(fault, Judged::Server, leaf);
    let leaf = Leaf::read(chain).map_err(|fault| refuse(&fault, None))?;
    let expected = ExpectedServer::SpiffeId(expected.clone());
    let judged = leaf
        .svid()
        .and_then(|(id, faults)| Ok((leaf.is_expected(&expected, id.as_ref())?, id, faults)));
    let (name, id, issuer_faults) = judged.map_err(|fault| refuse(&fault, Some(&leaf.facts)))?;
    let not_after = leaf.facts.not_after;
    let verified = Verified {
        id,
        issuer_faults,
        not_after,
    };
    Ok(leaf.into_peer(name, verified))
}

/// The path alone, for an access point whose name was verified before.
pub(crate) fn retrust_access_point(
    chain: &[CertificateDer<'_>],
    trust: &Trust,
    now: SystemTime,
) -> Result<(), VerifyError> {
    let refuse = |fault: &Fault, leaf| VerifyError::new(fault, Judged::AccessPoint, leaf);
    let leaf = Leaf::read(chain).map_err(|fault| refuse(&fault, None))?;
    leaf.verify(trust, KeyUsage::server_auth(), false, now)
        .map(|_| ())
        .map_err(|fault| refuse(&fault, Some(&leaf.facts)))
}

/// Policy alone, for a certificate that was verified before.
pub(crate) fn readmit(
    leaf: &CertificateFacts,
    id: Option<&SpiffeId>,
    issuer_faults: &[SvidFault],
    policy: &Policy,
) -> Result<(), VerifyError> {
    let verdict = if policy.strict_svid && !issuer_faults.is_empty() {
        Err(Fault::Svid(issuer_faults.to_vec()))
    } else {
        policy
            .admit(leaf, id)
            .map(|_| ())
            .map_err(|refusal| refusal.into_fault(policy))
    };
    verdict.map_err(|fault| {
        let rules: Vec<String> = policy.rules.iter().collect();
        VerifyError::new(&fault, Judged::Executor { rules: &rules }, Some(leaf))
    })
}

impl Refusal {
    fn into_fault(self, policy: &Policy) -> Fault {
        match self {
            Self::Revoked => Fault::Revoked,
            Self::NoRuleMatches if policy.rules.is_empty() => Fault::NoUsableName,
            Self::NoRuleMatches => Fault::NoRuleMatches,
        }
    }
}

/// A presented chain whose leaf was read.
pub(crate) struct Leaf<'a> {
    chain: &'a [CertificateDer<'a>],
    der: &'a CertificateDer<'a>,
    cert: X509Certificate<'a>,
    pub(crate) facts: CertificateFacts,
}

/// What a chain that passed has to say besides.
pub(crate) struct Verified {
    pub(crate) id: Option<SpiffeId>,
    pub(crate) issuer_faults: Vec<SvidFault>,
    not_after: SystemTime,
}

impl<'a> Leaf<'a> {
    pub(crate) fn read(chain: &'a [CertificateDer<'a>]) -> Result<Self, Fault> {
        let der = chain
            .first()
            .ok_or_else(|| Fault::Malformed("there is no certificate".into()))?;
        let (rest, cert) =
            X509Certificate::from_der(der).map_err(|error| Fault::Malformed(error.to_string()))?;
        if !rest.is_empty() {
            return Err(Fault::Malformed("bytes follow the certificate".into()));
        }
        let facts = CertificateFacts::from_parsed(&cert, der)
            .map_err(|error| Fault::Malformed(error.to_string()))?;
        Ok(Self {
            chain,
            der,
            cert,
            facts,
        })
    }

    /// Path and SPIFFE rules; no name, no policy.
    pub(crate) fn verify(
        &self,
        trust: &Trust,
        usage: KeyUsage,
        strict_svid: bool,
        now: SystemTime,
    ) -> Result<Verified, Fault> {
        let (id, mut faults) = self.svid()?;
        let anchors = trust.anchors(id.as_ref());
        if let (Some(id), true) = (&id, anchors.is_empty()) {
            return Err(Fault::UnknownAuthority(format!(
                "there is no trust bundle for the trust domain `{}`",
                id.trust_domain()
            )));
        }
        let path = self.path(anchors, trust, id.as_ref(), usage, now)?;
        faults.extend(path.issuer_faults);
        if strict_svid && !faults.is_empty() {
            return Err(Fault::Svid(faults));
        }
        Ok(Verified {
            id,
            issuer_faults: faults,
            not_after: path.not_after,
        })
    }

    /// The SPIFFE ID, and the `I` rows that the leaf breaks. A broken `V` row is a fault.
    fn svid(&self) -> Result<(Option<SpiffeId>, Vec<SvidFault>), Fault> {
        if !self.facts.uris.iter().any(|uri| claims_spiffe(uri)) {
            return Ok((None, Vec::new()));
        }
        let (id, faults) = leaf_faults(&self.cert);
        let issuer_faults = refuse_validator_rows(faults)?;
        Ok((id, issuer_faults))
    }

    fn path(
        &self,
        anchors: &Anchors,
        trust: &Trust,
        id: Option<&SpiffeId>,
        usage: KeyUsage,
        now: SystemTime,
    ) -> Result<Path, Fault> {
        let since_epoch = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_err(|_| Fault::Refused("our clock says a time before 1970".into()))?;
        let leaf = EndEntityCert::try_from(self.der).map_err(|e| self.webpki_fault(&e, now))?;
        // webpki tries every path; the last word on a path that it finds is ours.
        let verdict = RefCell::new(None);
        let judge = |path: &webpki::VerifiedPath<'_>| {
            let judged = self.judge(path, anchors, id, now);
            let answer = match &judged {
                Ok(_) => Ok(()),
                Err(_) => Err(webpki::Error::UnknownIssuer),
            };
            *verdict.borrow_mut() = Some(judged);
            answer
        };
        let found = leaf.verify_for_usage(
            signatures::algorithms(),
            anchors.for_webpki(),
            self.chain.get(1..).unwrap_or_default(),
            UnixTime::since_unix_epoch(since_epoch),
            usage,
            None,
            Some(&judge),
        );
        match (found, verdict.into_inner()) {
            (Ok(_), Some(judged)) => judged,
            (Err(_), Some(Err(fault))) => Err(fault),
            (
                Err(webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey),
                _,
            ) => Err(self.unknown_issuer(anchors, trust)),
            (Err(webpki::Error::NameConstraintViolation), _) => {
                Err(self.outside_constraints(anchors, id))
            }
            (Err(error), _) => Err(self.webpki_fault(&error, now)),
            (Ok(_), None) => Err(Fault::Refused("the path was not judged".into())),
        }
    }

    /// What webpki does not look at: key usage of signers, the root's own limits, URI constraints.
    fn judge(
        &self,
        path: &webpki::VerifiedPath<'_>,
        anchors: &Anchors,
        id: Option<&SpiffeId>,
        now: SystemTime,
    ) -> Result<Path, Fault> {
        let mut not_after = self.facts.not_after;
        let mut faults = Vec::new();
        let mut intermediates = 0;
        for signer in path.intermediate_certificates() {
            let der = signer.der();
            let (_, signer) = X509Certificate::from_der(&der)
                .map_err(|error| Fault::Malformed(error.to_string()))?;
            // RFC 5280 §6.1.4 (l): a self-issued certificate does not count.
            if signer.subject().as_raw() != signer.issuer().as_raw() {
                intermediates += 1;
            }
            not_after = not_after.min(time(signer.validity().not_after.timestamp()));
            faults.extend(signer_faults(&signer));
            if let Some(id) = id {
                faults.extend(UriConstraints::of(&signer).fault(id));
            }
        }
        let root = anchors
            .root(path.anchor())
            .ok_or_else(|| Fault::Refused("the path ends in no known root".into()))?;
        root.check(intermediates, now)?;
        not_after = not_after.min(root.not_after());
        if id.is_none() {
            // RFC 5280 §6.1.4 (n) holds for every chain, the rest of the rows for SVIDs alone.
            faults.retain(|fault| fault.row == "SV-30");
        } else {
            faults.extend(root.svid_faults.iter().cloned());
            faults.extend(id.and_then(|id| root.constraints.fault(id)));
        }
        Ok(Path {
            not_after,
            issuer_faults: refuse_validator_rows(faults)?,
        })
    }

    /// SV-35. webpki takes any URI for a violation as soon as a signer constrains URIs, so an ID inside
    /// such constraints is refused too: too strict, never too lax.
    fn outside_constraints(&self, anchors: &Anchors, id: Option<&SpiffeId>) -> Fault {
        let Some(id) = id else {
            return Fault::Refused("a name is outside the name constraints of a signer".into());
        };
        let sent = self.chain.iter().skip(1).filter_map(|der| {
            let (_, signer) = X509Certificate::from_der(der).ok()?;
            UriConstraints::of(&signer).fault(id)
        });
        let faults: Vec<SvidFault> = sent.chain(anchors.outside(id)).collect();
        if faults.is_empty() {
            return Fault::Refused(
                "a signer sets name constraints that leave no room for its SANs; constraints on URIs are not supported".into(),
            );
        }
        Fault::Svid(faults)
    }

    /// What can be said of a chain without trusting its root: each certificate is valid now and names the
    /// next as its issuer.
    pub(crate) fn check_alone(&self, now: SystemTime) -> Result<(), Fault> {
        let mut certs = Vec::with_capacity(self.chain.len());
        for der in self.chain {
            let (_, cert) = X509Certificate::from_der(der)
                .map_err(|error| Fault::Malformed(error.to_string()))?;
            certs.push(cert);
        }
        let dates = self.dates(now);
        if now < dates.not_before || now > dates.not_after {
            return Err(Fault::Dates(dates));
        }
        for (child, parent) in certs.iter().zip(certs.iter().skip(1)) {
            if child.issuer().as_raw() != parent.subject().as_raw() {
                return Err(Fault::NoLocalIssuer(format!(
                    "`{}` was issued by `{}`, but `{}` follows it in the chain",
                    child.subject(),
                    child.issuer(),
                    parent.subject()
                )));
            }
        }
        Ok(())
    }

    fn is_expected(
        &self,
        expected: &ExpectedServer,
        id: Option<&SpiffeId>,
    ) -> Result<PeerName, Fault> {
        match (expected, id) {
            (ExpectedServer::SpiffeId(expected), Some(id)) if expected == id => {
                Ok(PeerName::Spiffe(id.clone()))
            }
            (ExpectedServer::SpiffeId(expected), got) => Err(Fault::ServerId {
                expected: expected.to_string(),
                got: match got {
                    Some(id) => id.to_string(),
                    None => format!("none: {}", missing_id(&self.facts.uris)),
                },
            }),
            (ExpectedServer::Name(name), id) => {
                let mismatch = || Fault::Name {
                    expected: name.to_str().into_owned(),
                    sans: self.facts.sans(),
                };
                let leaf = EndEntityCert::try_from(self.der).map_err(|_| mismatch())?;
                leaf.verify_is_valid_for_subject_name(name)
                    .map_err(|_| mismatch())?;
                Ok(match (id, name) {
                    (Some(id), _) => PeerName::Spiffe(id.clone()),
                    (None, ServerName::IpAddress(ip)) => PeerName::Ip(std::net::IpAddr::from(*ip)),
                    (None, name) => PeerName::Dns(name.to_str().to_ascii_lowercase()),
                })
            }
        }
    }

    fn into_peer(self, name: PeerName, verified: Verified) -> PeerIdentity {
        let chain = self
            .chain
            .iter()
            .map(|der| der.clone().into_owned())
            .collect();
        PeerIdentity::new(
            name,
            self.facts,
            chain,
            verified.not_after,
            verified.issuer_faults,
        )
    }

    /// ER-5 or ER-22: how far the chain reaches, and whether it ends in a root.
    fn unknown_issuer(&self, anchors: &Anchors, trust: &Trust) -> Fault {
        let mut certs: Vec<X509Certificate<'_>> = self
            .chain
            .iter()
            .filter_map(|der| Some(X509Certificate::from_der(der).ok()?.1))
            .collect();
        if certs.len() != self.chain.len() {
            return Fault::Malformed("an intermediate is not an X.509 certificate".into());
        }
        let mut last = certs.remove(0);
        let self_signed =
            |cert: &X509Certificate<'_>| cert.issuer().as_raw() == cert.subject().as_raw();
        while !self_signed(&last)
            && let Some(next) = certs
                .iter()
                .position(|cert| cert.subject().as_raw() == last.issuer().as_raw())
        {
            last = certs.swap_remove(next);
        }
        let (subject, issuer) = (last.subject(), last.issuer());
        if self_signed(&last) {
            return Fault::UnknownAuthority(format!(
                "the chain ends in the root `{subject}`, which is not trusted here"
            ));
        }
        if trust.knows(issuer.as_raw()) {
            return Fault::UnknownAuthority(format!(
                "`{subject}` says it was issued by `{issuer}`; a trusted root has that name, but not the key that signed, or speaks for another trust domain"
            ));
        }
        let sent = self.chain.len();
        let roots = anchors.len();
        Fault::NoLocalIssuer(format!(
            "`{subject}`, the last of {sent} in the chain, was issued by `{issuer}`, which is not among the {roots} trusted here"
        ))
    }

    fn webpki_fault(&self, error: &webpki::Error, now: SystemTime) -> Fault {
        use webpki::Error as E;
        match error {
            E::CertExpired { .. } | E::CertNotValidYet { .. } => Fault::Dates(self.dates(now)),
            E::CaUsedAsEndEntity => {
                Fault::Refused("the leaf is a CA certificate (basicConstraints cA is true)".into())
            }
            E::EndEntityUsedAsCa => {
                Fault::Refused("a certificate in the chain signs and is no CA".into())
            }
            E::PathLenConstraintViolated => {
                Fault::Refused("more intermediates than a pathLen in the chain allows".into())
            }
            E::UnsupportedCriticalExtension => {
                Fault::Refused("a critical extension is not understood".into())
            }
            E::RequiredEkuNotFoundContext(_) => Fault::Refused(
                "an extended key usage in the chain does not allow this side of TLS".into(),
            ),
            other => Fault::Refused(format!("the chain is not valid: {other}")),
        }
    }

    /// The first certificate of the chain that is not valid now; the leaf when all are.
    fn dates(&self, now: SystemTime) -> Dates {
        let dates = |der: &CertificateDer<'_>| {
            let (_, cert) = X509Certificate::from_der(der).ok()?;
            Some(Dates {
                subject: cert.subject().to_string(),
                not_before: time(cert.validity().not_before.timestamp()),
                not_after: time(cert.validity().not_after.timestamp()),
                now,
            })
        };
        self.chain
            .iter()
            .filter_map(dates)
            .find(|dates| now < dates.not_before || now > dates.not_after)
            .unwrap_or(Dates {
                subject: self.facts.subject.clone(),
                not_before: self.facts.not_before,
                not_after: self.facts.not_after,
                now,
            })
    }
}

struct Path {
    not_after: SystemTime,
    issuer_faults: Vec<SvidFault>,
}

/// The `I` rows, unless a `V` row is broken.
fn refuse_validator_rows(faults: Vec<SvidFault>) -> Result<Vec<SvidFault>, Fault> {
    if faults
        .iter()
        .any(|fault| fault.severity == Severity::Validator)
    {
        return Err(Fault::Svid(faults));
    }
    Ok(faults)
}
