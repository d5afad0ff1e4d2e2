use super::*;

fn server(text: &str) -> Result<String, String> {
    let parsed = text.parse::<RemoteServer>();
    parsed.map(|s| s.to_string()).map_err(|e| e.to_string())
}

// EN-1
#[test]
fn a_remote_server_is_https_host_and_port() {
    for (text, expected) in [
        ("https://127.0.0.1:4433", "127.0.0.1:4433"),
        (
            "https://Access-Point.Example.com",
            "access-point.example.com:4433",
        ),
        ("https://[::1]:9", "[::1]:9"),
        ("https://[::1]", "[::1]:4433"),
        ("HTTPS://a.b.:1/", "a.b:1"),
    ] {
        assert_eq!(server(text).unwrap(), expected);
    }
    for (text, part) in [
        (
            "http://a:4433",
            "only https is spoken; write https://a:4433",
        ),
        ("a:4433", "the scheme is missing; write https://a:4433"),
        ("https://u:p@a:4433", "user name"),
        ("https://a:4433/x", "path"),
        ("https://a?x", "path or query"),
        ("https://a:0", "not a port"),
        ("https://a:65536", "not a port"),
        ("https://::1:4433", "not a host and port"),
        ("https://[::1", "not a host and port"),
        ("https://", "neither"),
        ("https://192.168.1.300", "neither"),
        ("https://-a", "neither"),
    ] {
        let error = server(text).unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
}

// EN-9, AP-16
#[test]
fn durations_have_units() {
    assert_eq!(duration("500ms").unwrap(), Duration::from_millis(500));
    assert_eq!(duration("1m").unwrap(), Duration::from_secs(60));
    assert!(duration("10").unwrap_err().to_string().contains("10s, 1m"));
    for bad in ["", "0s", "2days", "-1s", "ten", "1e999s"] {
        assert!(duration(bad).is_err(), "{bad}");
    }
}

// AP-1
#[test]
fn a_listen_address_without_port_is_answered_with_the_right_one() {
    let hint = |text| listen_address(text).unwrap_err().hint.unwrap();
    assert_eq!(hint("0.0.0.0"), "write 0.0.0.0:4433");
    assert_eq!(hint("::1"), "write [::1]:4433");
    assert!(hint(":4433").contains("0.0.0.0:4433"));
    assert!(hint("localhost:1").contains("127.0.0.1:1"));
    assert!(hint("https://0.0.0.0:1").ends_with("0.0.0.0:1"));
    assert!(listen_address("[::]:0").is_ok());
}

// EN-8
#[test]
fn labels_keep_the_limits_of_the_protocol() {
    let label: Label = "a=b=c".parse().unwrap();
    assert_eq!((label.key.as_str(), label.value.as_str()), ("a", "b=c"));
    assert!("a=".parse::<Label>().is_ok());
    let long = |k: usize, v: usize| format!("{}={}", "k".repeat(k), "v".repeat(v));
    assert!(long(63, 255).parse::<Label>().is_ok());
    for bad in [&long(64, 1), &long(1, 256), "=x", "x", "a=\n"] {
        assert!(bad.parse::<Label>().is_err(), "{bad}");
    }
}

// AP-11: secrets do not show.
#[test]
fn a_database_url_shows_no_password() {
    for text in [
        "postgres://ah:hunter2@db:5432/fleet",
        "postgresql://ah@db/fleet?password=hunter2",
        "postgres://ah:hun@ter2@db/fleet",
    ] {
        let url: DbUrl = text.parse().unwrap();
        assert!(matches!(&url, DbUrl::Postgres(whole) if whole == text));
        let shown = format!("{url} {url:?}");
        assert!(!shown.contains("ter2"), "{shown}");
        assert!(shown.contains("ah@db"), "{shown}");
    }
    let url: DbUrl = "sqlite:///var/x.db".parse().unwrap();
    assert_eq!(url, DbUrl::Sqlite("/var/x.db".into()));
    for bad in ["", "sqlite:", "sqlite::memory:", "mysql://x", "postgres://"] {
        assert!(bad.parse::<DbUrl>().is_err(), "{bad}");
    }
}

// EN-11
#[test]
fn every_name_has_a_status_socket_that_can_be_bound() {
    let run = Path::new("/run/ah");
    let name = |text: &str| text.parse::<Name>().unwrap();
    assert_eq!(
        default_status_socket(run, &name("worker-1")),
        Path::new("/run/ah/executor-worker-1.sock")
    );
    assert_eq!(
        default_status_socket(run, &name("../a b")),
        Path::new("/run/ah/executor-..%2Fa%20b.sock")
    );
    let one = default_status_socket(run, &name(&"x".repeat(253)));
    let other = default_status_socket(run, &name(&"x".repeat(252)));
    assert!(one.as_os_str().len() <= MAX_SOCKET_PATH);
    assert_ne!(one, other);
    assert!("".parse::<Name>().is_err() && "x".repeat(254).parse::<Name>().is_err());
}
