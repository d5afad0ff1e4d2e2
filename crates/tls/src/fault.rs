//! Why a certificate is refused, told to people and to TLS.

use std::fmt;
use std::time::SystemTime;

use ah_identity_provider::{CertificateFacts, Code, Explained};
use rustls::{AlertDescription, CertificateError};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::SvidFault;

/// A certificate that did not pass verification or policy.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{explained}")]
pub struct VerifyError {
    explained: Explained,
    certificate: Option<Box<CertificateFacts>>,
    alert: AlertDescription,
    concern: Concern,
}

/// What a certificate was refused for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Concern {
    /// No path to a trusted root (ER-5, ER-22).
    Chain,
    /// The time of now is outside of its validity (ER-4).
    Dates,
    /// It is another's: DNS name, IP address or SPIFFE ID (ER-12).
    Name,
    /// Rules of the SPIFFE standards.
    Svid,
    /// Rules or revocations of the access point (ER-7, ER-21).
    Policy,
    /// Anything else that the chain breaks.
    Form,
}

impl VerifyError {
    pub(crate) fn new(fault: &Fault, judged: Judged<'_>, leaf: Option<&CertificateFacts>) -> Self {
        Self {
            explained: match judged {
                Judged::Executor { rules } => fault.of_executor(leaf, rules),
                Judged::AccessPoint => fault.of_access_point(),
                Judged::Server => fault.of_server(),
            },
            certificate: leaf.cloned().map(Box::new),
            alert: fault.alert(),
            concern: fault.concern(),
        }
    }

    /// What it was refused for.
    pub fn concern(&self) -> Concern {
        self.concern
    }

    /// The row of the error table.
    pub fn code(&self) -> Code {
        self.explained.code
    }

    /// What to tell on the side that refuses.
    pub fn explained(&self) -> &Explained {
        &self.explained
    }

    /// What the refused leaf says, where it could be read.
    pub fn certificate(&self) -> Option<&CertificateFacts> {
        self.certificate.as_deref()
    }

    /// The TLS alert that tells the peer.
    pub fn alert(&self) -> AlertDescription {
        self.alert
    }

    /// The error that makes rustls send [`VerifyError::alert`].
    pub(crate) fn to_rustls(&self) -> rustls::Error {
        rustls::Error::InvalidCertificate(match self.alert {
            AlertDescription::UnknownCA => CertificateError::UnknownIssuer,
            AlertDescription::CertificateExpired => CertificateError::Expired,
            AlertDescription::CertificateRevoked => CertificateError::Revoked,
            AlertDescription::AccessDenied => CertificateError::ApplicationVerificationFailure,
            _ => CertificateError::BadEncoding,
        })
    }
}

/// Whose certificate was judged.
#[derive(Clone, Copy)]
pub(crate) enum Judged<'a> {
    /// By the access point, under these rules.
    Executor { rules: &'a [String] },
    /// By an executor.
    AccessPoint,
    /// By a client of a SPIFFE server, which adds what to do.
    Server,
}

/// What is wrong with a certificate, whoever's it is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fault {
    Malformed(String),
    UnknownAuthority(String),
    NoLocalIssuer(String),
    Dates(Dates),
    Svid(Vec<SvidFault>),
    NoRuleMatches,
    NoUsableName,
    Revoked,
    ServerId { expected: String, got: String },
    Name { expected: String, sans: Vec<String> },
    Refused(String),
}

/// A certificate that is not valid at a time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Dates {
    pub(crate) subject: String,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    pub(crate) now: SystemTime,
}

impl Dates {
    /// ER-4: whose, both dates and our clock.
    pub(crate) fn causes(&self, whose: &str) -> [String; 2] {
        let state = if self.now < self.not_before {
            "is not yet valid"
        } else {
            "has expired"
        };
        [
            format!("{whose} `{}` {state}", self.subject),
            format!(
                "valid from {} to {}, our clock says {}",
                rfc3339(self.not_before),
                rfc3339(self.not_after),
                rfc3339(self.now)
            ),
        ]
    }
}

pub(crate) const EXPIRED: &str = "certificate has expired or is not yet valid";
pub(crate) const NO_LOCAL_ISSUER: &str = "unable to get local issuer certificate";
pub(crate) const UNKNOWN_AUTHORITY: &str = "x509: certificate signed by unknown authority";
pub(crate) const VERIFY_FAILED: &str = "tls handshake failed: certificate verify failed";
pub(crate) const REJECTED: &str = "client certificate rejected";
const CLOCKS: &str = "compare both clocks (`date -u`, `timedatectl status`) and the dates (`openssl x509 -noout -dates`), then renew the certificate";

impl Fault {
    fn alert(&self) -> AlertDescription {
        match self {
            Self::UnknownAuthority(_) | Self::NoLocalIssuer(_) => AlertDescription::UnknownCA,
            Self::Dates(_) => AlertDescription::CertificateExpired,
            Self::Revoked => AlertDescription::CertificateRevoked,
            Self::NoRuleMatches | Self::NoUsableName => AlertDescription::AccessDenied,
            _ => AlertDescription::BadCertificate,
        }
    }

    fn concern(&self) -> Concern {
        match self {
            Self::UnknownAuthority(_) | Self::NoLocalIssuer(_) => Concern::Chain,
            Self::Dates(_) => Concern::Dates,
            Self::ServerId { .. } | Self::Name { .. } => Concern::Name,
            Self::Svid(_) => Concern::Svid,
            Self::NoRuleMatches | Self::NoUsableName | Self::Revoked => Concern::Policy,
            Self::Malformed(_) | Self::Refused(_) => Concern::Form,
        }
    }

    fn of_executor(&self, leaf: Option<&CertificateFacts>, rules: &[String]) -> Explained {
        let rejected = |code, reason: &str| Explained::new(code, format!("{REJECTED}: {reason}"));
        match self {
            Self::UnknownAuthority(cause) | Self::NoLocalIssuer(cause) => rejected(
                Code::ClientUnknownAuthority,
                "certificate signed by unknown authority",
            )
            .cause(cause)
            .hint("let the access point trust the executor's CA (`ah agent access-point --ca …`), and let the executor send its intermediates"),
            Self::Dates(dates) => {
                let [whose, when] = dates.causes("the executor's certificate");
                rejected(Code::ClientExpired, EXPIRED)
                    .cause(whose)
                    .cause(when)
                    .hint(CLOCKS)
            }
            Self::Revoked => rejected(Code::ClientRevoked, "certificate revoked")
                .hint("`ah agent fleet reinstate` lifts it"),
            Self::NoRuleMatches => {
                let mut explained = san_mismatch(leaf);
                if !rules.is_empty() {
                    explained = explained.cause(format!("the rules are {}", rules.join(", ")));
                }
                explained.hint("give the executor a certificate that a rule matches, or change --executor-san-uri-prefix, --executor-san-dns or --executor-san-ip")
            }
            Self::NoUsableName => san_mismatch(leaf)
                .cause("no SAN names one executor")
                .hint("give the certificate a URI, DNS or IP SAN of its own; a wildcard names nobody"),
            Self::Malformed(reason) | Self::Refused(reason) => {
                rejected(Code::VerifyFailed, reason)
                    .hint("look at it with `openssl x509 -noout -text` and issue it again")
            }
            Self::Svid(faults) => rejected(Code::VerifyFailed, "not a valid X509-SVID")
                .cause(list(faults))
                .hint("let the issuer follow the SPIFFE X509-SVID standard"),
            Self::ServerId { .. } | Self::Name { .. } => {
                rejected(Code::VerifyFailed, "wrong name")
            }
        }
    }

    fn of_access_point(&self) -> Explained {
        let failed = || Explained::new(Code::VerifyFailed, VERIFY_FAILED);
        match self {
            Self::UnknownAuthority(cause) => {
                Explained::new(Code::UnknownAuthority, UNKNOWN_AUTHORITY)
                    .cause(cause)
                    .hint("let the executor trust the access point's CA: `ah agent enroll --ca /path/to/access-point-ca.pem …`")
            }
            Self::NoLocalIssuer(cause) => Explained::new(Code::NoLocalIssuer, NO_LOCAL_ISSUER)
                .cause(cause)
                .hint("put the intermediates after the leaf in the access point's --cert, or give the whole chain here: `cat intermediate-ca.pem root-ca.pem > ca-chain.pem`, `--ca ca-chain.pem`; if that issuer is the root itself, trust it with --ca"),
            Self::Dates(dates) => {
                let [whose, when] = dates.causes("the access point's certificate");
                Explained::new(Code::ExpiredOrNotYetValid, EXPIRED)
                    .cause(whose)
                    .cause(when)
                    .hint(CLOCKS)
            }
            Self::ServerId { expected, got } => Explained::new(
                Code::ServerIdMismatch,
                format!("server SPIFFE ID mismatch: expected {expected}, got {got}"),
            )
            .hint("check --expected-server-id, the trust domains of both sides, and the access point's registration entry"),
            Self::Name { expected, sans } => failed()
                .cause(format!("the access point's certificate is not for `{expected}`"))
                .cause(sans_cause("its", sans))
                .hint("dial a name that the certificate holds, issue one with this name as SAN, or name the access point by SPIFFE ID with --expected-server-id"),
            Self::Svid(faults) => failed()
                .cause(format!("not a valid X509-SVID: {}", list(faults)))
                .hint("let the issuer of the access point's certificate follow the SPIFFE X509-SVID standard"),
            Self::Malformed(reason) | Self::Refused(reason) => failed()
                .cause(reason)
                .hint("compare with `openssl verify -CAfile ca.pem server-cert.pem`"),
            Self::NoRuleMatches | Self::NoUsableName => {
                failed().cause("no SAN names this access point")
            }
            Self::Revoked => failed().cause("certificate revoked"),
        }
    }
}

impl Fault {
    fn of_server(&self) -> Explained {
        let told = match self {
            Self::Dates(dates) => {
                let [whose, when] = dates.causes("the server's certificate");
                Explained::new(Code::ExpiredOrNotYetValid, EXPIRED)
                    .cause(whose)
                    .cause(when)
            }
            _ => self.of_access_point(),
        };
        Explained { hint: None, ..told }
    }
}

fn san_mismatch(leaf: Option<&CertificateFacts>) -> Explained {
    let sans = leaf.map(CertificateFacts::sans).unwrap_or_default();
    Explained::new(Code::SanMismatch, crate::Refusal::NoRuleMatches.to_string())
        .cause(sans_cause("the executor's", &sans))
}

pub(crate) fn sans_cause(whose: &str, sans: &[String]) -> String {
    if sans.is_empty() {
        return format!("{whose} certificate has no SAN");
    }
    format!("{whose} SANs are {}", sans.join(", "))
}

fn list(faults: &[SvidFault]) -> impl fmt::Display {
    let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

/// UTC, to the second.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time);
    let whole = time.replace_nanosecond(0).unwrap_or(time);
    whole
        .format(&Rfc3339)
        .unwrap_or_else(|_| whole.unix_timestamp().to_string())
}
