//! What a server's and an agent's work costs by itself: a loop that signs, a database that commits, a socket that answers.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ah_spire_wire::workload::{X509svidRequest, X509svidResponse};
use ah_spire_wire::{Channel, types};
use clap::{Args, Subcommand};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateSigningRequestDer;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Connection};
use tokio::net::UnixListener;
use tokio_stream::Stream;
use tonic::body::Body;
use tonic::server::{Grpc, ServerStreamingService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::site::{Agent, Programs, Site, entry, key_and_csr, until};
use super::{Figure, Spire, agent, server};
use crate::procfs;
use crate::suite::{Running, SERVER_CORE, built_peer, pinned};

/// Which bare work.
#[derive(Subcommand, Clone, Debug)]
pub(crate) enum Bare {
    /// Verify a request and sign a certificate for it, again and again; prints how many a second of CPU time.
    Sign(Seconds),
    /// Write rows of an entry's size into an SQLite database, one a commit; prints how many a second.
    Write {
        /// Folder for the database.
        #[arg(long)]
        folder: PathBuf,
        #[command(flatten)]
        seconds: Seconds,
    },
    /// Answer every call on a unix socket with the same message, as a Workload API does.
    Answer {
        /// Where to listen.
        #[arg(long)]
        socket: PathBuf,
        /// File with the message, an encoded `X509SVIDResponse`.
        #[arg(long)]
        message: PathBuf,
    },
}

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Seconds {
    /// Length of the measured time in seconds.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
}

impl Bare {
    pub(crate) async fn run(self) -> io::Result<()> {
        let rate = match self {
            Self::Sign(Seconds { seconds }) => sign(seconds)?,
            Self::Write {
                folder,
                seconds: Seconds { seconds },
            } => write(&folder, seconds).await.map_err(io::Error::other)?,
            Self::Answer { socket, message } => return answer(&socket, &message).await,
        };
        println!("{rate}");
        Ok(())
    }
}

/// The figures of bars 11 and 12.
pub(super) fn of_server(spire: &Spire) -> io::Result<Vec<Figure>> {
    let folder = tempfile::Builder::new()
        .prefix("ah-bench-spire-")
        .tempdir()?;
    let seconds = format!("--seconds={}", spire.seconds);
    let mut writing = own()?;
    writing.args(["write", &seconds, "--folder"]);
    writing.arg(folder.path());
    let mut signing = own()?;
    signing.args(["sign", &seconds]);
    let written = printed(&mut writing)?;
    Ok(vec![
        Figure::new(server::WRITTEN_BY_ONE, "/s", written),
        // SQLite has one writer: more clients get no more of it.
        Figure::new(server::WRITTEN_BY_16, "/s", written),
        Figure::new(server::SIGNED, "/s", printed(&mut signing)?),
    ])
}

/// The figure of bar 11 for Go's standard library. The program is built at its first use.
pub(super) fn of_go(spire: &Spire) -> io::Result<Vec<Figure>> {
    let mut signing = pinned(SERVER_CORE, built_peer("sign-go")?);
    signing.env("GOMAXPROCS", "1");
    signing.arg(format!("-seconds={}", spire.seconds));
    Ok(vec![Figure::new(
        server::SIGNED,
        "/s",
        printed(&mut signing)?,
    )])
}

/// The figures of bar 14, with the very message that our agent sends there.
pub(super) async fn of_agent(ours: &Programs, spire: &Spire) -> io::Result<Vec<Figure>> {
    let folder = tempfile::Builder::new()
        .prefix("ah-bench-spire-")
        .tempdir()?;
    let (socket, file) = (
        folder.path().join("bare.sock"),
        folder.path().join("message"),
    );
    std::fs::write(&file, cached(ours).await?.encode_to_vec())?;
    let mut command = own()?;
    command.arg("answer").arg("--socket").arg(&socket);
    command.arg("--message").arg(&file);
    let process = Running::start(&mut command)?;
    until("the bare socket", || async { Channel::unix(&socket).await }).await?;
    agent::fetches(&socket, process.pid(), spire).await
}

/// What our agent sends to a workload with as many SVIDs as are there when bar 14 is measured.
async fn cached(ours: &Programs) -> io::Result<X509svidResponse> {
    let site = Site::start(ours).await?;
    let Agent {
        process,
        socket,
        id,
    } = site.agent().await?;
    let entries = (0..=agent::CHANGES).map(|number| agent::mine(&id, number));
    let entries: Vec<_> = entries.collect();
    let wanted = entries.len();
    site.create(entries).await?;
    let (_channel, first, mut stream) = agent::first(&socket).await?;
    let mut message = first;
    while message.svids.len() < wanted {
        let next = stream.message().await.map_err(io::Error::other)?;
        message = next.ok_or_else(|| io::Error::other("the stream ended"))?;
    }
    drop(process);
    Ok(message)
}

/// This program's bare work on the server's core.
fn own() -> io::Result<Command> {
    let mut command = pinned(SERVER_CORE, std::env::current_exe()?);
    command.arg("bare");
    Ok(command)
}

/// The figure that `command` prints.
fn printed(command: &mut Command) -> io::Result<f64> {
    let output = command.stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    said.trim().parse().map_err(|_| {
        let complaint = String::from_utf8_lossy(&output.stderr);
        io::Error::other(format!("{command:?} printed no figure: {complaint}"))
    })
}

/// Certificates for a request a second of CPU time, of the shape of an X509-SVID.
fn sign(seconds: f64) -> io::Result<f64> {
    let csr = CertificateSigningRequestDer::from(key_and_csr()?.1);
    let issuer = issuer().map_err(io::Error::other)?;
    let pid = std::process::id();
    let before = procfs::cpu_time(pid)?;
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let mut signed = 0_u32;
    while Instant::now() < end {
        certificate(&csr, &issuer).map_err(io::Error::other)?;
        signed += 1;
    }
    let used = procfs::cpu_time(pid)?.saturating_sub(before);
    Ok(f64::from(signed) / used.as_secs_f64())
}

fn issuer() -> Result<Issuer<'static, KeyPair>, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name = subject("SPIFFE");
    Ok(Issuer::new(params, KeyPair::generate()?))
}

fn certificate(
    csr: &CertificateSigningRequestDer<'_>,
    issuer: &Issuer<'_, KeyPair>,
) -> Result<Vec<u8>, rcgen::Error> {
    // Checks the request's signature.
    let mut request = CertificateSigningRequestParams::from_der(csr)?;
    let mut params = CertificateParams::default();
    params.serial_number = Some(rand::random::<[u8; 16]>().to_vec().into());
    params.distinguished_name = subject("SPIRE");
    params.subject_alt_names = vec![SanType::URI("spiffe://example.org/workload/1".try_into()?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::KeyAgreement,
    ];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    request.params = params;
    Ok(request.signed_by(issuer)?.der().to_vec())
}

fn subject(organization: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CountryName, "US");
    name.push(DnType::OrganizationName, organization);
    name
}

/// Rows a second that are on the disk before the next one is written. A row has what the server keeps of an entry with
/// one selector.
async fn write(folder: &Path, seconds: f64) -> Result<f64, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(folder.join("bare.sqlite3"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    let mut db = SqliteConnection::connect_with(&options).await?;
    sqlx::query(
        "CREATE TABLE entries (id INTEGER PRIMARY KEY, created_at TEXT, updated_at TEXT, entry_id TEXT, spiffe_id TEXT,
         parent_id TEXT, ttl INTEGER, revision_number INTEGER, hint TEXT, type TEXT, value TEXT)",
    )
    .execute(&mut db)
    .await?;
    let began = Instant::now();
    let end = began + Duration::from_secs_f64(seconds);
    let parent = types::Spiffeid {
        trust_domain: "example.org".to_owned(),
        path: "/spire/agent/nobody".to_owned(),
    };
    let insert = "INSERT INTO entries (created_at, updated_at, entry_id, spiffe_id, parent_id, ttl, revision_number, hint, type, value)
         VALUES ($1, $1, $2, $3, $4, 0, 0, '', $5, $6)";
    let mut written = 0;
    while Instant::now() < end {
        let row = entry(&parent, 1_000_000 + written);
        let id = row.spiffe_id.unwrap_or_default();
        let mut commit = db.begin().await?;
        let mut query = sqlx::query(AssertSqlSafe(insert))
            .bind("2026-01-01 00:00:00.000000000+00:00")
            .bind(format!("{written:08x}-0000-4000-8000-000000000000"))
            .bind(format!("spiffe://{}{}", id.trust_domain, id.path))
            .bind(format!("spiffe://{}{}", parent.trust_domain, parent.path));
        for selector in row.selectors {
            query = query.bind(selector.r#type).bind(selector.value);
        }
        query.execute(&mut *commit).await?;
        commit.commit().await?;
        written += 1;
    }
    let took = began.elapsed().as_secs_f64();
    db.close().await?;
    Ok(f64::from(written) / took)
}

async fn answer(socket: &Path, message: &Path) -> io::Result<()> {
    let message = X509svidResponse::decode(std::fs::read(message)?.as_slice());
    let message = message.map_err(io::Error::other)?;
    let listener = UnixListener::bind(socket)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let message = message.clone();
        let service = service_fn(move |request: http::Request<Incoming>| {
            let message = message.clone();
            async move {
                let mut answers = Grpc::new(ProstCodec::default());
                let request = request.map(Body::new);
                Ok::<_, Infallible>(answers.server_streaming(Cached(message), request).await)
            }
        });
        tokio::spawn(
            http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service),
        );
    }
}

/// One message, and the stream stays open.
struct Cached(X509svidResponse);

impl ServerStreamingService<X509svidRequest> for Cached {
    type Response = X509svidResponse;
    type ResponseStream = Box<dyn Stream<Item = Result<X509svidResponse, Status>> + Send + Unpin>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _request: Request<X509svidRequest>) -> Self::Future {
        let first = tokio_stream::once(Ok(self.0.clone()));
        let stream = tokio_stream::StreamExt::chain(first, tokio_stream::pending());
        ready(Ok(Response::new(Box::new(stream))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Bar 11: the bare signer signs what the server signs.
    #[test]
    fn a_bare_certificate_has_the_shape_of_an_svid() {
        let csr = CertificateSigningRequestDer::from(key_and_csr().unwrap().1);
        let der = certificate(&csr, &issuer().unwrap()).unwrap();
        let facts = ah_identity_provider::CertificateFacts::from_der(&der).unwrap();
        assert_eq!(facts.uris, ["spiffe://example.org/workload/1"]);
        assert!(!facts.is_ca);

        let mut forged = csr.to_vec();
        *forged.last_mut().unwrap() ^= 1;
        assert!(certificate(&forged.into(), &issuer().unwrap()).is_err());
    }

    // Bar 12: a row is there for each commit that was counted.
    #[tokio::test]
    async fn each_counted_row_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let rate = write(folder.path(), 0.05).await.unwrap();
        let options = SqliteConnectOptions::new().filename(folder.path().join("bare.sqlite3"));
        let mut db = SqliteConnection::connect_with(&options).await.unwrap();
        let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM entries")
            .fetch_one(&mut db)
            .await
            .unwrap();
        assert!(rows > 0 && rate > 0.0);
    }

    // Bar 14: the bare socket says what it was given, to each connection.
    #[tokio::test]
    async fn the_bare_socket_answers_with_its_message() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, file) = (folder.path().join("socket"), folder.path().join("message"));
        let mut message = X509svidResponse::default();
        message
            .federated_bundles
            .insert("spiffe://other.org".to_owned(), vec![1, 2, 3]);
        std::fs::write(&file, message.encode_to_vec()).unwrap();
        let at = socket.clone();
        let server = tokio::spawn(async move { answer(&at, &file).await });
        until("the bare socket", || async { Channel::unix(&socket).await })
            .await
            .unwrap();
        for _ in 0..2 {
            let (_channel, first, _stream) = agent::first(&socket).await.unwrap();
            assert!(first == message);
        }
        server.abort();
    }
}
