//! How an agent without a trust bundle gets one.

use std::path::Path;

use ah_identity_provider::{Code, Explained};
use ah_spire_plugin::agent::{Bootstrap, TrustBundleFormat};
use ah_spire_wire::bundle;
use rustls_pki_types::CertificateDer;
use spiffe::TrustDomain;

use crate::server_client::roots_of;

/// The roots that the server is judged by the first time; `None` where whatever it shows is to be taken.
pub async fn first_roots(
    bootstrap: &Bootstrap,
    domain: &TrustDomain,
) -> Result<Option<Vec<CertificateDer<'static>>>, Explained> {
    match bootstrap {
        Bootstrap::Insecure => {
            tracing::warn!(
                trust_domain = %domain,
                "insecure_bootstrap: the server is NOT verified this first time, and whoever answers is trusted from now on; give the agent a trust bundle in production"
            );
            Ok(None)
        }
        Bootstrap::File { path, format } => of_file(path, *format, domain).map(Some),
        Bootstrap::Url { url, .. } => Err(unsupported("trust_bundle_url", url)),
        Bootstrap::WorkloadApi { address } => {
            Err(unsupported("trust_bundle_spiffe_workload_api", address))
        }
    }
}

fn of_file(
    path: &Path,
    format: TrustBundleFormat,
    domain: &TrustDomain,
) -> Result<Vec<CertificateDer<'static>>, Explained> {
    let shown = path.display();
    let text = std::fs::read(path).map_err(|error| {
        match error.kind() {
            std::io::ErrorKind::NotFound => {
                Explained::new(Code::NoSuchFile, format!("no such file: {shown}"))
            }
            std::io::ErrorKind::PermissionDenied => {
                Explained::new(Code::PermissionDenied, format!("permission denied reading {shown}"))
            }
            _ => Explained::new(Code::Other, format!("cannot read {shown}")).cause(&error),
        }
        .hint("`trust_bundle_path` names the file with the server's bundle: `spire-server bundle show`")
    })?;
    parse(&text, format, domain, &shown.to_string())
}

fn parse(
    text: &[u8],
    format: TrustBundleFormat,
    domain: &TrustDomain,
    source: &str,
) -> Result<Vec<CertificateDer<'static>>, Explained> {
    let (parsed, how) = match format {
        TrustBundleFormat::Pem => (bundle::from_pem(domain, text), "`spire-server bundle show`"),
        TrustBundleFormat::Spiffe => (
            bundle::from_document(domain, text),
            "`spire-server bundle show -format spiffe`",
        ),
    };
    let failed = |cause: &dyn std::fmt::Display| {
        Explained::new(
            Code::Other,
            format!("the trust bundle of {source} cannot be used"),
        )
        .cause(cause)
        .hint(format!(
            "it has to be what {how} prints; `trust_bundle_format` is `pem` or `spiffe`"
        ))
    };
    let roots = roots_of(&parsed.map_err(|error| failed(&error))?);
    if roots.is_empty() {
        return Err(failed(&"it has no X.509 authority"));
    }
    Ok(roots)
}

fn unsupported(key: &str, value: &str) -> Explained {
    Explained::new(Code::Usage, format!("{key} = {value:?} is not supported"))
        .hint("use `trust_bundle_path`, with what `spire-server bundle show` prints")
}
