//! How an agent without a trust bundle gets one.

mod download;
mod workload_api;

use std::path::Path;

use ah_identity_provider::{Code, Explained};
use ah_spire_plugin::agent::{Bootstrap, TrustBundleFormat};
use ah_spire_wire::bundle;
use rustls_pki_types::CertificateDer;
use spiffe::TrustDomain;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use url::Url;

use crate::data::{BootstrapState, REBOOTSTRAP};
use crate::server_client::{ServerAddress, roots_of};

/// Who asks for a trust bundle, and how often: a helper behind `trust_bundle_unix_socket` is told.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    /// `trust_domain`
    pub domain: &'a TrustDomain,
    /// `server_address`, `server_port`
    pub server: &'a ServerAddress,
    /// How far the bootstrap is.
    pub state: BootstrapState,
}

/// The roots that the server is judged by the first time; `None` where whatever it shows is to be taken.
pub async fn first_roots(
    bootstrap: &Bootstrap,
    asking: Asking<'_>,
) -> Result<Option<Vec<CertificateDer<'static>>>, Explained> {
    let domain = asking.domain;
    match bootstrap {
        Bootstrap::Insecure => {
            tracing::warn!(
                trust_domain = %domain,
                "insecure_bootstrap: the server is NOT verified this first time, and whoever answers is trusted from now on; give the agent a trust bundle in production"
            );
            Ok(None)
        }
        Bootstrap::File { path, format } => of_file(path, *format, domain).map(Some),
        Bootstrap::Url {
            url,
            unix_socket,
            format,
        } => {
            let url = match unix_socket {
                Some(_) => with_facts(url, asking),
                None => url.clone(),
            };
            let text = download::get(&url, unix_socket.as_deref())
                .await
                .map_err(|cause| {
                    Explained::new(
                        Code::Unavailable,
                        format!("cannot fetch the trust bundle from {url}"),
                    )
                    .cause(cause)
                    .hint("check `trust_bundle_url` with `curl`, from this machine")
                })?;
            parse(&text, *format, domain, &url).map(Some)
        }
        Bootstrap::WorkloadApi { address } => {
            let roots = workload_api::roots(address, domain).await.map_err(|cause| {
                Explained::new(
                    Code::WorkloadApi,
                    format!("cannot fetch the trust bundle from the Workload API {address}"),
                )
                .cause(cause)
                .hint("`trust_bundle_spiffe_workload_api` names the socket of an agent that serves this node")
            })?;
            Ok(Some(roots))
        }
    }
}

/// The query that upstream adds.
fn with_facts(text: &str, asking: Asking<'_>) -> String {
    let Ok(mut url) = Url::parse(text) else {
        return text.to_owned();
    };
    let mode = match asking.state.use_ {
        REBOOTSTRAP => "rebootstrap",
        _ => "bootstrap",
    };
    let since = asking.state.since.unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let since = since.replace_nanosecond(0).unwrap_or(since);
    url.query_pairs_mut()
        .append_pair("spire-attest-mode", mode)
        .append_pair(
            "spire-connection-attempts",
            &asking.state.attempts.to_string(),
        )
        .append_pair(
            "spire-attest-start-time",
            &since.format(&Rfc3339).unwrap_or_default(),
        )
        .append_pair("spire-server-address", &asking.server.host)
        .append_pair("spire-server-port", &asking.server.port.to_string())
        .append_pair("spiffe-trust-domain", asking.domain.as_ref());
    url.into()
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

#[cfg(test)]
mod tests {
    use ah_testkit::ca::TestCa;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    fn asking<'a>(domain: &'a TrustDomain, server: &'a ServerAddress) -> Asking<'a> {
        Asking {
            domain,
            server,
            state: BootstrapState {
                use_: REBOOTSTRAP,
                since: Some(OffsetDateTime::UNIX_EPOCH),
                attempts: 3,
            },
        }
    }

    #[tokio::test]
    async fn a_helper_behind_a_unix_socket_is_told_who_asks() {
        let directory = tempfile::tempdir().unwrap();
        let ca = TestCa::new("example.org");
        let socket = directory.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let body = ca.pem();
        let helper = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(request[..length].to_vec()).unwrap()
        });
        let domain = TrustDomain::new("example.org").unwrap();
        let server = ServerAddress::new("server", 8081);
        let bootstrap = Bootstrap::Url {
            url: "http://helper/bundle?x=1".into(),
            unix_socket: Some(socket),
            format: TrustBundleFormat::Pem,
        };
        let roots = first_roots(&bootstrap, asking(&domain, &server)).await;
        assert_eq!(roots.unwrap().unwrap(), [ca.root_der().clone()]);
        let request = helper.await.unwrap();
        assert!(
            request.starts_with(
                "GET /bundle?x=1&spire-attest-mode=rebootstrap&spire-connection-attempts=3&spire-attest-start-time=1970-01-01T00%3A00%3A00Z&spire-server-address=server&spire-server-port=8081&spiffe-trust-domain=example.org HTTP/1.1\r\n"
            ),
            "{request}"
        );
    }

    /// Answers the requests on a unix socket in turn; returns what was asked.
    async fn answering(
        socket: &Path,
        answers: Vec<String>,
    ) -> tokio::task::JoinHandle<Vec<String>> {
        let listener = UnixListener::bind(socket).unwrap();
        tokio::spawn(async move {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
                let request = String::from_utf8(request[..length].to_vec()).unwrap();
                asked.push(request.lines().next().unwrap().to_owned());
            }
            asked
        })
    }

    fn elsewhere(status: u16, location: &str) -> String {
        format!("HTTP/1.1 {status} x\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n")
    }

    // Inventory 1.1: trust_bundle_url, as upstream's client goes after it.
    #[tokio::test]
    async fn redirects_are_followed_nine_times() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let found = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned();
        let mut answers: Vec<_> = [301, 302, 303, 307, 308]
            .map(|status| elsewhere(status, "../b?x=1"))
            .into();
        answers.push(elsewhere(302, "http://other/c"));
        answers.push(found.clone());
        let asked = answering(&socket, answers).await;
        let got = download::get("http://helper/a/a", Some(&socket)).await;
        assert_eq!(got.unwrap(), "ok");
        let asked = asked.await.unwrap();
        assert_eq!(asked[0], "GET /a/a HTTP/1.1");
        assert_eq!(asked[1], "GET /b?x=1 HTTP/1.1");
        assert_eq!(asked[6], "GET /c HTTP/1.1");

        std::fs::remove_file(&socket).unwrap();
        let asked = answering(&socket, vec![elsewhere(302, "/"); 10]).await;
        let error = download::get("http://helper/", Some(&socket)).await;
        assert_eq!(error.unwrap_err(), "it redirects more than 9 times");
        assert_eq!(asked.await.unwrap().len(), 10);

        for (answer, told) in [
            (
                "HTTP/1.1 302 x\r\nContent-Length: 0\r\n\r\n".to_owned(),
                "without a Location",
            ),
            (
                "HTTP/1.1 304 x\r\nLocation: /b\r\n\r\n".to_owned(),
                "the answer is 304",
            ),
            (elsewhere(302, "ftp://other/"), "which is not https"),
        ] {
            std::fs::remove_file(&socket).unwrap();
            let asked = answering(&socket, vec![answer]).await;
            let error = download::get("http://helper/", Some(&socket)).await;
            let error = error.unwrap_err();
            assert!(error.contains(told), "{error}");
            asked.await.unwrap();
        }
    }

    // ER-9
    #[tokio::test]
    async fn what_is_wrong_with_a_bundle_file_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bundle");
        let domain = TrustDomain::new("example.org").unwrap();
        let server = ServerAddress::new("server", 8081);
        let ask = async |format| {
            let bootstrap = Bootstrap::File {
                path: path.clone(),
                format,
            };
            first_roots(&bootstrap, asking(&domain, &server)).await
        };
        let missing = ask(TrustBundleFormat::Pem).await.unwrap_err();
        assert!(missing.text.starts_with("no such file: "), "{missing}");
        std::fs::write(&path, "{}").unwrap();
        for format in [TrustBundleFormat::Pem, TrustBundleFormat::Spiffe] {
            let error = ask(format).await.unwrap_err().report();
            assert!(error.contains("trust_bundle_format"), "{error}");
        }
    }
}
