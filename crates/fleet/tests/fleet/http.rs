//! The HTTP side as its callers see it (AP-13, AP-14).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;

use ah_fleet::access_point::http::{Token, openapi};
use ah_fleet::access_point::{AdminSocket, serve_http};
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::raw::{connect, hello};
use crate::support::{DEADLINE, Running, Site};

pub(crate) const TOKEN: &str = "correct-horse-battery";

struct Request<'a> {
    method: Method,
    path: &'a str,
    authorization: Option<&'a str>,
    body: Option<&'a str>,
}

fn fetch(path: &str) -> Request<'_> {
    Request {
        method: Method::GET,
        path,
        authorization: None,
        body: None,
    }
}

async fn send<S>(stream: S, request: Request<'_>) -> http::Response<Incoming>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let mut built = http::Request::builder()
        .method(request.method)
        .uri(request.path)
        .header("host", "access-point");
    if let Some(authorization) = request.authorization {
        built = built.header("authorization", authorization);
    }
    if request.body.is_some() {
        built = built.header("content-type", "application/json");
    }
    let body = bytes::Bytes::copy_from_slice(request.body.unwrap_or_default().as_bytes());
    ask(stream, built.body(Full::new(body)).unwrap()).await
}

/// One request on a connection of its own.
pub(crate) async fn ask<S>(
    stream: S,
    request: http::Request<Full<bytes::Bytes>>,
) -> http::Response<Incoming>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut requests, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    requests.send_request(request).await.unwrap()
}

async fn tcp(address: SocketAddr, request: Request<'_>) -> (StatusCode, Value) {
    read(send(TcpStream::connect(address).await.unwrap(), request).await).await
}

async fn read(response: http::Response<Incoming>) -> (StatusCode, Value) {
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let value = serde_json::from_slice(&body)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned()));
    (status, value)
}

pub(crate) async fn serve(
    access_point: &Running,
    token: Option<&str>,
    stop: &CancellationToken,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let token = token.map(|token| watch::channel(Token::new(token).unwrap()).1);
    tokio::spawn(serve_http(
        listener,
        access_point.operator.clone(),
        token,
        stop.clone(),
    ));
    address
}

// AP-13: without a token nothing but health, metrics (on loopback) and the description is open on TCP.
#[tokio::test]
async fn ap_13_who_may_do_what_by_which_door() {
    let site = Site::new();
    let access_point = site.start().await;
    let stop = CancellationToken::new();
    let closed = serve(&access_point, None, &stop).await;
    let open = serve(&access_point, Some(TOKEN), &stop).await;
    for address in [closed, open] {
        for path in ["/healthz", "/readyz", "/metrics", "/openapi.json"] {
            assert_eq!(tcp(address, fetch(path)).await.0, StatusCode::OK, "{path}");
        }
    }
    let rest = [
        (Method::GET, "/api/v1/executors"),
        (Method::GET, "/api/v1/executors/x"),
        (Method::POST, "/api/v1/executors/x/revoke"),
        (Method::POST, "/api/v1/executors/x/reinstate"),
        (Method::POST, "/api/v1/executors/x/disconnect"),
        (Method::GET, "/api/v1/events"),
    ];
    let right = format!("Bearer {TOKEN}");
    let lower = format!("bearer {TOKEN}");
    let longer = format!("Bearer {TOKEN}x");
    for (method, path) in rest {
        let request = |authorization| Request {
            method: method.clone(),
            path,
            authorization,
            body: None,
        };
        for shown in [None, Some(right.as_str())] {
            let (status, answer) = tcp(closed, request(shown)).await;
            assert_eq!(
                (status, &answer["code"]),
                (StatusCode::FORBIDDEN, &"permission_denied".into()),
                "{path}"
            );
        }
        for shown in [
            None,
            Some("Bearer"),
            Some("Bearer "),
            Some("Basic eDp5"),
            Some(longer.as_str()),
            Some(TOKEN),
        ] {
            let (status, answer) = tcp(open, request(shown)).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{path} {shown:?}");
            assert!(
                answer["hint"]
                    .as_str()
                    .unwrap()
                    .contains("Authorization: Bearer")
            );
        }
        let stream = TcpStream::connect(open).await.unwrap();
        let refused = send(stream, request(None)).await;
        assert_eq!(refused.headers()["www-authenticate"], "Bearer");
        for shown in [&right, &lower] {
            let stream = TcpStream::connect(open).await.unwrap();
            let status = send(stream, request(Some(shown.as_str()))).await.status();
            assert!(!matches!(status.as_u16(), 401 | 403), "{path} {status}");
        }
    }
}

#[test]
fn tokens_are_one_long_word() {
    for text in [
        "",
        "short",
        "has a blank in the middle",
        "tab\tin the middle of it",
    ] {
        assert!(Token::new(text).is_err(), "{text}");
    }
    assert!(Token::new("0123456789abcdef\n").is_ok());
}

// AP-14
#[tokio::test]
async fn ap_14_the_admin_socket_is_its_owners_and_answers_in_json() {
    let site = Site::new();
    let access_point = site.start().await;
    let path = site.path("admin.sock");
    let socket = AdminSocket::bind(&path).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let leftovers = std::fs::read_dir(site.path("")).unwrap();
    let hidden = leftovers.filter(|entry| {
        entry
            .as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with('.')
    });
    assert_eq!(hidden.count(), 0, "what it was made in is gone");
    assert!(AdminSocket::bind(&path).is_err_and(|error| error.text.contains("running already")));
    let stop = CancellationToken::new();
    let serving = tokio::spawn(socket.serve(access_point.operator.clone(), stop.clone()));

    let mut calls = Vec::new();
    for number in [1, 2] {
        let mut connection = connect(&site, &access_point, &site.leaf(number)).await;
        let call = connection.enroll(hello("one")).await;
        calls.push((connection, call));
    }
    let ask = async |method: Method, request_path: &str, body: Option<&str>| {
        let stream = UnixStream::connect(&path).await.unwrap();
        let request = Request {
            method,
            path: request_path,
            authorization: None,
            body,
        };
        read(send(stream, request).await).await
    };
    let encoded = "spiffe%3A%2F%2Fexample.org%2Fah%2Fagent%2F1";
    let post = Method::POST;
    let get = Method::GET;
    for (method, path, body, status) in [
        (&get, "/api/v1/executors".to_owned(), None, 200),
        (
            &get,
            "/api/v1/executors?live=true&labels=zone%3Da".to_owned(),
            None,
            200,
        ),
        (&get, "/api/v1/executors?live=perhaps".to_owned(), None, 400),
        (&get, "/api/v1/executors?colour=red".to_owned(), None, 400),
        (&get, "/api/v1/events?colour=red".to_owned(), None, 400),
        (&get, format!("/api/v1/executors/{encoded}"), None, 200),
        (&get, "/api/v1/executors/raw".to_owned(), None, 409),
        (&get, "/api/v1/executors/nobody".to_owned(), None, 404),
        (
            &post,
            format!("/api/v1/executors/{encoded}/reinstate"),
            None,
            409,
        ),
        (
            &post,
            format!("/api/v1/executors/{encoded}/revoke"),
            Some("{\"reson\":\"x\"}"),
            422,
        ),
        (
            &post,
            format!("/api/v1/executors/{encoded}/revoke"),
            Some("not json"),
            400,
        ),
        (
            &post,
            format!("/api/v1/executors/{encoded}/revoke"),
            Some("{\"reason\":\"lost\"}"),
            200,
        ),
        (
            &post,
            format!("/api/v1/executors/{encoded}/reinstate"),
            None,
            200,
        ),
        (
            &post,
            "/api/v1/executors/nobody/disconnect".to_owned(),
            None,
            404,
        ),
    ] {
        let (answered, value) = ask(method.clone(), &path, body).await;
        assert_eq!(answered.as_u16(), status, "{path} {value}");
        if status >= 400 {
            assert!(
                value["code"].is_string() && value["text"].is_string(),
                "{path} {value}"
            );
        }
    }
    stop.cancel();
    tokio::time::timeout(DEADLINE, serving)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(!path.exists());
}

// Everything that the document points at is in it, and what the interface answers is described.
#[tokio::test]
async fn the_openapi_document_is_whole() {
    let document: Value = serde_json::from_str(&openapi()).unwrap();
    let mut references = BTreeSet::new();
    collect(&document, &mut references);
    assert!(!references.is_empty());
    for reference in &references {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(
            document.pointer(pointer).is_some(),
            "{reference} leads nowhere"
        );
    }
    let schemas = document["components"]["schemas"].as_object().unwrap();
    for name in [
        "ExecutorView",
        "LiveView",
        "Listing",
        "FleetEvent",
        "RevocationTarget",
        "CertificateRecord",
        "HostRecord",
        "HistoryEntry",
        "Revocation",
        "Error",
    ] {
        assert!(schemas.contains_key(name), "{name}");
    }
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 10, "{:?}", paths.keys());
    for (path, operations) in paths {
        for (method, operation) in operations.as_object().unwrap() {
            let answers = operation["responses"].as_object().unwrap();
            assert!(answers.contains_key("200"), "{method} {path}");
        }
    }
    let parameters = document.pointer("/paths/~1api~1v1~1events/get/parameters/0/name");
    assert_eq!(parameters.unwrap(), "labels");
}

fn collect(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get("$ref") {
                into.insert(reference.clone());
            }
            fields.values().for_each(|value| collect(value, into));
        }
        Value::Array(items) => items.iter().for_each(|value| collect(value, into)),
        _ => {}
    }
}

// FL-1: those who watch hear of everything, filtered by labels, until the access point has stopped.
#[tokio::test]
async fn fl_1_watchers_are_told_and_let_go() {
    let site = Site::new();
    let access_point = site.start().await;
    let path = site.path("admin.sock");
    let socket = AdminSocket::bind(&path).unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(socket.serve(access_point.operator.clone(), stop.clone()));
    let watch = async |query: &str| {
        let stream = UnixStream::connect(&path).await.unwrap();
        let response = send(stream, fetch(&format!("/api/v1/events{query}"))).await;
        assert_eq!(response.status(), StatusCode::OK);
        response
    };
    let all = tokio::spawn(watched(watch("").await));
    let some = tokio::spawn(watched(watch("?labels=zone%3Da").await));

    let mut near = hello("one");
    near.labels.insert("zone".into(), "a".into());
    let mut first = connect(&site, &access_point, &site.leaf(1)).await;
    let _one = first.enroll(near.clone()).await;
    let mut moved = connect(&site, &access_point, &site.leaf(1)).await;
    let mut held = moved.enroll(near).await;
    let mut second = connect(&site, &access_point, &site.leaf(2)).await;
    let two = second.enroll(hello("two")).await;
    let by_id = ah_fleet::access_point::Selector(crate::support::id(1));
    access_point.operator.revoke(&by_id, "lost").await.unwrap();
    held.ended().await;
    moved.greet(hello("one")).await.ended().await;
    access_point.operator.reinstate(&by_id).await.unwrap();
    two.goodbye();
    access_point.wait_live(0).await;
    access_point.stopped().await;

    let told = |events: Vec<Value>| {
        let pairs = events.iter().map(|event| {
            let id = event["id"]
                .as_str()
                .unwrap()
                .rsplit('/')
                .next()
                .unwrap()
                .to_owned();
            format!("{} {id}", event["event"].as_str().unwrap())
        });
        pairs.collect::<Vec<_>>()
    };
    let all = told(tokio::time::timeout(DEADLINE, all).await.unwrap().unwrap());
    let some = told(tokio::time::timeout(DEADLINE, some).await.unwrap().unwrap());
    let near = [
        "enrolled 1",
        "rotated 1",
        "revoked 1",
        "disconnected 1",
        "reinstated 1",
    ];
    assert_eq!(some, near);
    for event in near
        .iter()
        .chain(&["enrolled 2", "disconnected 2", "rejected 1"])
    {
        assert!(all.iter().any(|told| told == event), "{event} of {all:?}");
    }
    stop.cancel();
    tokio::time::timeout(DEADLINE, serving)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

// AP-19: half a request does not hold up the end.
#[tokio::test]
async fn ap_19_half_a_request_does_not_hold_up_the_end() {
    let site = Site::new();
    let access_point = site.start().await;
    let stop = CancellationToken::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(serve_http(
        listener,
        access_point.operator.clone(),
        None,
        stop.clone(),
    ));
    let mut half = TcpStream::connect(address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut half, b"GET /healthz HT")
        .await
        .unwrap();
    assert_eq!(tcp(address, fetch("/healthz")).await.0, StatusCode::OK);
    stop.cancel();
    tokio::time::timeout(DEADLINE, serving)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

/// All that was told until the end.
async fn watched(response: http::Response<Incoming>) -> Vec<Value> {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(body.to_vec()).unwrap();
    let events = text.lines().map(|line| serde_json::from_str(line).unwrap());
    events.collect()
}
