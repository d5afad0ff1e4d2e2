//! Knocks at an access point without enrolling: whether it takes us, and what time it has there (`doctor`).

use std::time::{Duration, SystemTime};

use ah_identity_provider::{Code, Explained};
use ah_tls::{ClientConfigs, PeerIdentity, Trace, connect_traced};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use tokio::time::Instant;
use tonic::body::Body;

use super::Remote;
use super::dial::{lost, not_ours, ours, speak_http2};

/// What an attempt met.
#[derive(Debug)]
pub struct Probe {
    /// How far it came.
    pub trace: Trace,
    /// The access point, once it was verified.
    pub server: Option<PeerIdentity>,
    /// The access point's clock less ours in whole seconds, once it answered. To about a second.
    pub clock_skew: Option<i64>,
    /// Whether an access point answered that lets us in. Enrolling may still fail, as for a duplicate.
    pub outcome: Result<(), Explained>,
}

/// Connects to `remote` as an executor does, and asks one question that is no enrollment.
///
/// With TLS 1.3 a client knows that it was admitted from the first answer only.
pub async fn probe(remote: &Remote, configs: &ClientConfigs, timeout: Duration) -> Probe {
    let deadline = Instant::now() + timeout;
    let mut trace = Trace::default();
    let connected = connect_traced(&remote.host, remote.port, configs, timeout, &mut trace).await;
    let mut probe = Probe {
        trace,
        server: None,
        clock_skew: None,
        outcome: Ok(()),
    };
    let connected = match connected {
        Ok(connected) => connected,
        Err(explained) => {
            probe.outcome = Err(explained);
            return probe;
        }
    };
    probe.server = Some(connected.server.clone());
    let fate = connected.fate.clone();
    let asked = ask(connected, remote);
    match tokio::time::timeout_at(deadline, asked).await {
        Ok(Ok(skew)) => probe.clock_skew = skew,
        Ok(Err(explained)) => probe.outcome = Err(fate.explain().unwrap_or(explained)),
        Err(_) => {
            let silent = || not_ours(remote, "it accepted the connection and answered nothing");
            probe.outcome = Err(fate.explain().unwrap_or_else(silent));
        }
    }
    probe
}

/// The access point's clock less ours, from an answer that only an access point gives.
async fn ask(connected: ah_tls::Connected, remote: &Remote) -> Result<Option<i64>, Explained> {
    let (mut requests, _connection) = speak_http2(connected.stream, remote).await?;
    let request = http::Request::get(format!("https://{remote}/"))
        .body(Body::empty())
        .map_err(|error| {
            Explained::new(Code::Usage, format!("{remote} is not an address")).cause(error)
        })?;
    let answer = requests
        .send_request(request)
        .await
        .map_err(|error| lost(remote, &error.to_string()))?;
    let now = SystemTime::now();
    // A question that the service does not know is answered all the same.
    ours(&answer, remote)?;
    let date = answer.headers().get(http::header::DATE);
    let date = date.and_then(|date| OffsetDateTime::parse(date.to_str().ok()?, &Rfc2822).ok());
    Ok(date.map(|date| (date - OffsetDateTime::from(now)).whole_seconds()))
}
