//! TLS alerts and errors, told as rows of the error table, on both sides.

use std::error::Error as StdError;
use std::io;

use ah_identity_provider::{CertificateFacts, Code, Explained, Identity};
use rustls::{AlertDescription, Error};

use crate::fault::{EXPIRED, REJECTED, VERIFY_FAILED, sans_cause};

/// The row an executor reports when the access point answered with this alert.
///
/// ```
/// use ah_identity_provider::Code;
/// use ah_tls::code_of_alert;
/// use rustls::AlertDescription as Alert;
///
/// let table = [
///     (Alert::CertificateRequired, Code::ClientCertificateRequired), // ER-20
///     (Alert::UnknownCA, Code::ClientUnknownAuthority),              // ER-21
///     (Alert::CertificateExpired, Code::ClientExpired),              // ER-21
///     (Alert::CertificateRevoked, Code::ClientRevoked),              // ER-21
///     (Alert::AccessDenied, Code::SanMismatch),                      // ER-7
///     (Alert::BadCertificate, Code::VerifyFailed),                   // ER-21, other reasons
///     (Alert::NoApplicationProtocol, Code::Other),                   // ER-24
///     (Alert::ProtocolVersion, Code::Other),
/// ];
/// for (alert, code) in table {
///     assert_eq!(code_of_alert(alert), code, "{alert:?}");
/// }
/// ```
pub fn code_of_alert(alert: AlertDescription) -> Code {
    match alert {
        AlertDescription::CertificateRequired => Code::ClientCertificateRequired,
        AlertDescription::UnknownCA => Code::ClientUnknownAuthority,
        AlertDescription::CertificateExpired => Code::ClientExpired,
        AlertDescription::CertificateRevoked => Code::ClientRevoked,
        AlertDescription::AccessDenied => Code::SanMismatch,
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::DecryptError => Code::VerifyFailed,
        _ => Code::Other,
    }
}

/// What an executor with the certificate `own` tells when an error of its connection to `access_point`
/// (`host:port`) came from TLS. Looks into nested errors; `None` when there is no TLS error among them.
pub fn explain_io(
    error: &(dyn StdError + 'static),
    own: &Identity,
    access_point: &str,
) -> Option<Explained> {
    find_tls(error).map(|error| explain_tls(error, own.leaf(), access_point))
}

/// The rustls error inside an error, if any.
pub(crate) fn find_tls<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<Error>() {
            return Some(tls);
        }
        // The source of an io::Error is the source of what it holds: look at what it holds first.
        let held = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        next = match held {
            Some(held) => Some(held),
            None => error.source(),
        };
    }
    None
}

/// An executor's TLS error, its own or the access point's alert.
pub(crate) fn explain_tls(error: &Error, own: &CertificateFacts, access_point: &str) -> Explained {
    match error {
        Error::AlertReceived(alert) => explain_alert(*alert, own, access_point),
        Error::InvalidMessage(_) => failed(access_point)
            .cause(format!("the answer is not TLS: {error}"))
            .hint("check that host and port are the access point's (4433 by default), and that no proxy answers in its place"),
        Error::PeerIncompatible(reason) => failed(access_point)
            .cause(format!("the peer does not speak our TLS: {reason:?}"))
            .hint("TLS 1.3 is required: check that host and port are the access point's, and that no proxy ends TLS on the way"),
        Error::NoApplicationProtocol => no_alpn(access_point),
        Error::InvalidCertificate(reason) => Explained::new(Code::VerifyFailed, VERIFY_FAILED)
            .cause(format!("the access point's certificate or its signature: {reason}")),
        other => failed(access_point).cause(other),
    }
}

fn explain_alert(alert: AlertDescription, own: &CertificateFacts, access_point: &str) -> Explained {
    let code = code_of_alert(alert);
    let rejected = |reason: &str| {
        Explained::new(code, format!("{REJECTED}: {reason}")).cause(format!(
            "the access point {access_point} refused our certificate `{}` with the alert {alert:?}",
            own.subject
        ))
    };
    match code {
        Code::ClientCertificateRequired => Explained::new(code, "client certificate required")
            .cause(format!("the access point {access_point} got no certificate from us"))
            .hint("check that an identity is configured: `ah agent enroll --identity files --cert cert.pem --key key.pem --ca ca.pem …`"),
        Code::ClientUnknownAuthority => rejected("certificate signed by unknown authority")
            .cause(format!("it was issued by `{}`", own.issuer))
            .hint("let the access point trust the executor's CA (`ah agent access-point --ca /path/to/executor-ca.pem …`), or use one CA for both"),
        Code::ClientExpired => rejected(EXPIRED)
            .cause(format!(
                "it is valid from {} to {}",
                crate::fault::rfc3339(own.not_before),
                crate::fault::rfc3339(own.not_after)
            ))
            .hint("renew the certificate, and compare the clocks of both machines (`date -u`, `timedatectl status`)"),
        Code::ClientRevoked => rejected("certificate revoked")
            .hint("ask the operator of the access point: `ah agent fleet show`, `ah agent fleet reinstate`"),
        Code::SanMismatch => {
            Explained::new(code, crate::Refusal::NoRuleMatches.to_string())
                .cause(sans_cause("our", &own.sans()))
                .hint("get a certificate whose SAN the access point expects, or change its --executor-san-uri-prefix, --executor-san-dns or --executor-san-ip")
        }
        Code::VerifyFailed => rejected("certificate verify failed")
            .hint("the access point's log names the rule that it breaks"),
        _ if alert == AlertDescription::NoApplicationProtocol => no_alpn(access_point),
        _ => failed(access_point)
            .cause(format!("the peer answered with the TLS alert {alert:?}"))
            .hint("check that host and port are the access point's; its log says why"),
    }
}

/// ER-24 for a peer that speaks TLS but not HTTP/2.
pub(crate) fn no_alpn(access_point: &str) -> Explained {
    failed(access_point)
        .cause("the peer does not offer HTTP/2 (ALPN `h2`)")
        .hint("check that host and port are the access point's (4433 by default), and that no proxy answers in its place")
}

/// What the access point tells of a TLS error that was no verdict on a certificate.
pub(crate) fn explain_accept(error: &Error) -> Explained {
    match error {
        Error::NoCertificatesPresented => Explained::new(
            Code::ClientCertificateRequired,
            "client certificate required",
        )
        .cause("the peer presented none")
        .hint("executors need an identity: `ah agent enroll --identity …`"),
        Error::AlertReceived(alert) => Explained::new(Code::Other, "tls handshake failed")
            .cause(format!("the peer refused us with the TLS alert {alert:?}"))
            .hint("the peer's log says why; most often it does not trust the access point's CA"),
        Error::InvalidMessage(_) => Explained::new(Code::Other, "tls handshake failed")
            .cause(format!("the peer does not speak TLS: {error}")),
        Error::PeerIncompatible(reason) => Explained::new(Code::Other, "tls handshake failed")
            .cause(format!("the peer does not speak our TLS: {reason:?}"))
            .hint("TLS 1.3 with ALPN `h2` is required"),
        Error::NoApplicationProtocol => Explained::new(Code::Other, "tls handshake failed")
            .cause("the peer does not offer HTTP/2 (ALPN `h2`)"),
        Error::InvalidCertificate(reason) => Explained::new(
            Code::VerifyFailed,
            format!("{REJECTED}: the signature of its key does not verify"),
        )
        .cause(format!("{reason:?}")),
        other => Explained::new(Code::Other, "tls handshake failed").cause(other),
    }
}

fn failed(access_point: &str) -> Explained {
    Explained::new(
        Code::Other,
        format!("tls handshake with {access_point} failed"),
    )
}
