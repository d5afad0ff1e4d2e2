//! Logins at Amazon RDS (inventory §7 DataStore sql, aws_mysql and aws_postgres): what a database is sent as the password.

use std::time::{Duration, SystemTime};

use ah_spire_wire::aws::Environment;
use ah_spire_wire::sigv4::{Credentials, Scope, presigned};
use spire_server::store::{AwsLogin, StoreConfig};
use time::PrimitiveDateTime;
use time::macros::format_description;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::schema::refusal;

const REGION: &str = "eu-central-1";

fn keys() -> Credentials {
    Credentials {
        access_key_id: "AKIDEXAMPLE".into(),
        secret_access_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_owned().into(),
        session_token: Some("of/a+session==".to_owned().into()),
    }
}

fn config(kind: &str, connection_string: String) -> StoreConfig {
    StoreConfig {
        database_type: kind.into(),
        aws: Some(AwsLogin::new(Environment::default(), REGION, Some(keys())).unwrap()),
        connection_string,
        ..StoreConfig::default()
    }
}

/// Whether `token` is what AWS signs for the user `spire o` of the server at `port`, now and for 15 minutes.
fn check(token: &str, port: u16) {
    let of = |name: &str| {
        let (_, query) = token.split_once('?').unwrap();
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|pair| pair.0 == name).unwrap().1
    };
    let at = PrimitiveDateTime::parse(
        of("X-Amz-Date"),
        format_description!("[year][month][day]T[hour][minute][second]Z"),
    );
    let at: SystemTime = at.unwrap().assume_utc().into();
    assert!(at.elapsed().unwrap() < Duration::from_mins(5), "{token}");
    assert_eq!(of("X-Amz-Expires"), "900");
    let uri = format!("https://127.0.0.1:{port}/?Action=connect&DBUser=spire%20o");
    let scope = Scope {
        region: REGION,
        service: "rds-db",
    };
    let wanted = presigned(
        &uri.parse().unwrap(),
        &keys(),
        scope,
        Duration::from_mins(15),
        at,
    );
    assert_eq!(format!("https://{token}"), **wanted.as_ref().unwrap());
}

pub(crate) async fn server() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A packet of MySQL's, and its number.
pub(crate) async fn packet(stream: &mut TcpStream) -> (Vec<u8>, u8) {
    let mut head = [0; 4];
    stream.read_exact(&mut head).await.unwrap();
    let [a, b, c, number] = head;
    let mut body = vec![0; u32::from_le_bytes([a, b, c, 0]) as usize];
    stream.read_exact(&mut body).await.unwrap();
    (body, number)
}

pub(crate) async fn send(stream: &mut TcpStream, number: u8, body: &[u8]) {
    let [a, b, c, _] = u32::try_from(body.len()).unwrap().to_le_bytes();
    stream.write_all(&[a, b, c, number]).await.unwrap();
    stream.write_all(body).await.unwrap();
}

/// A server's first packet: protocol 10, without TLS, and who is asked to log in by `plugin` (MySQL Internals, Connection Phase).
pub(crate) async fn hello(stream: &mut TcpStream, plugin: &str) {
    let capabilities: u32 = 0x0020_0000 | 0x0008_0000 | 0x8000 | 0x2000 | 0x0200 | 0x0008;
    let [a, b, c, d] = capabilities.to_le_bytes();
    let hello = [
        &b"\x0a8.0.40\0\x01\0\0\0saltsalt\0"[..],
        &[a, b, 45, 2, 0, c, d, 21],
        &[0; 10],
        b"saltsaltsalt\0",
        plugin.as_bytes(),
        b"\0",
    ];
    send(stream, 0, &hello.concat()).await;
}

#[tokio::test]
async fn mysql_gets_a_signed_token_as_it_is() {
    let (listener, port) = server().await;
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        hello(&mut stream, "mysql_native_password").await;
        let (_, number) = packet(&mut stream).await;
        // As RDS, without the salt that the protocol has here.
        send(&mut stream, number + 1, b"\xfemysql_clear_password\0").await;
        let (password, number) = packet(&mut stream).await;
        let denied = b"\xff\x15\x04#28000Access denied for now";
        send(&mut stream, number + 1, denied).await;
        String::from_utf8(password).unwrap()
    });
    let dsn =
        format!("spire o@tcp(127.0.0.1:{port})/spire?parseTime=true&allowCleartextPasswords=1");
    let refused = refusal(&config("aws_mysql", dsn)).await;
    assert!(refused.contains("Access denied for now"), "{refused}");
    assert!(!refused.contains("X-Amz"), "{refused}");
    check(asked.await.unwrap().strip_suffix('\0').unwrap(), port);
}

#[tokio::test]
async fn postgresql_gets_a_signed_token_as_it_is() {
    let (listener, port) = server().await;
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let startup = stream.read_u32().await.unwrap();
        let mut rest = vec![0; startup as usize - 4];
        stream.read_exact(&mut rest).await.unwrap();
        // AuthenticationCleartextPassword, PasswordMessage, ErrorResponse (PostgreSQL manual, Message Formats).
        stream.write_all(b"R\0\0\0\x08\0\0\0\x03").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'p');
        let length = stream.read_u32().await.unwrap();
        let mut password = vec![0; length as usize - 4];
        stream.read_exact(&mut password).await.unwrap();
        let fields = b"SFATAL\0VFATAL\0C28000\0Mno entry for now\0\0";
        let length = u32::try_from(fields.len() + 4).unwrap().to_be_bytes();
        let error = [&b"E"[..], &length, fields].concat();
        stream.write_all(&error).await.unwrap();
        String::from_utf8(password).unwrap()
    });
    let at = format!("dbname=spire user='spire o' host=127.0.0.1 port={port} sslmode=disable");
    let refused = refusal(&config("aws_postgres", at)).await;
    assert!(refused.contains("no entry for now"), "{refused}");
    check(asked.await.unwrap().strip_suffix('\0').unwrap(), port);
}

#[test]
fn a_connection_string_has_no_password_for_rds() {
    for (kind, text) in [
        ("aws_postgres", "dbname=spire user=u password=hush host=db"),
        ("aws_postgres", "postgres://u:hush@db/spire"),
        ("aws_postgres", "postgres://u@db/spire?password=hush"),
        (
            "aws_mysql",
            "u:hush@tcp(db)/s?parseTime=true&allowCleartextPasswords=1",
        ),
    ] {
        let error = config(kind, text.into())
            .validate()
            .unwrap_err()
            .to_string();
        assert!(error.contains("unexpected password"), "{error}");
        assert!(!error.contains("hush"), "{error}");
    }
    let plain = config("aws_mysql", "u@tcp(db)/s?parseTime=true".into());
    let error = plain.validate().unwrap_err().to_string();
    assert!(error.contains("allowCleartextPasswords=1"), "{error}");
    let mut other = config(
        "mysql",
        "u@tcp(db)/s?parseTime=true&allowCleartextPasswords=1".into(),
    );
    assert!(
        other
            .validate()
            .unwrap_err()
            .to_string()
            .contains("use aws_mysql")
    );
    other.database_type = "aws_mysql".into();
    other.validate().unwrap();
    other.aws = None;
    assert!(other.validate().unwrap_err().to_string().contains("region"));
}
