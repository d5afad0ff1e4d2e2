//! `trust_bundle_url`: one GET, over HTTPS with the machine's roots, or over HTTP to a unix socket.

use std::path::Path;
use std::time::Duration;

use ah_spire_wire::download::{Answer, dial, get as ask, host_of};
use ah_tls::WebClient;
use bytes::Bytes;
use http::StatusCode;
use tokio::net::UnixStream;
use url::Url;

/// All of it.
const TIMEOUT: Duration = Duration::from_secs(30);

const AGENT: &str = "spire-agent";

pub(super) async fn get(url: &str, unix_socket: Option<&Path>) -> Result<Bytes, String> {
    let url = Url::parse(url).map_err(|error| error.to_string())?;
    let whole = Box::pin(async {
        match unix_socket {
            Some(path) => {
                let stream = UnixStream::connect(path)
                    .await
                    .map_err(|error| format!("{}: {error}", path.display()))?;
                ask(&url, AGENT, stream).await
            }
            None => https(&url).await,
        }
    });
    let answer = tokio::time::timeout(TIMEOUT, whole)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {}s", TIMEOUT.as_secs())))?;
    if answer.status.is_redirection() {
        let to = answer.location.as_deref().unwrap_or("another place");
        return Err(format!(
            "it redirects to {to}: name that in trust_bundle_url"
        ));
    }
    if answer.status != StatusCode::OK {
        return Err(format!("the answer is {}", answer.status));
    }
    Ok(answer.body)
}

async fn https(url: &Url) -> Result<Answer, String> {
    let host = host_of(url)?;
    let tcp = dial(url).await?;
    let web = tokio::task::spawn_blocking(WebClient::new);
    let web = web.await.map_err(|error| error.to_string())??;
    let stream = web.connect(host, tcp).await;
    ask(
        url,
        AGENT,
        stream.map_err(|fault| format!("{host}: TLS: {fault}"))?,
    )
    .await
}
