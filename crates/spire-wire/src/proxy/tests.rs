use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

fn proxies(variables: &[(&str, &str)]) -> Result<Proxies, String> {
    Proxies::read(|name| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    })
}

#[test]
fn what_is_excepted_goes_without_the_proxy() {
    // Inventory section 11: upstream's transport reads the environment as Go's net/http does.
    let never = " example.org,.below.test, *.star.test ,port.test:8443,10.1.0.0/16,10.2.0.3,10.2.0.4:444,[fd00::1]:443,fd00::2,fd01::/16,münchen.test,,:99";
    let proxies = proxies(&[("HTTPS_PROXY", "proxy.test:3128"), ("NO_PROXY", never)]).unwrap();
    let direct = |host: &str, port| proxies.towards(host, port).is_none();
    for (host, port) in [
        ("localhost", 443),
        ("127.0.0.1", 443),
        ("127.9.9.9", 443),
        ("::1", 443),
        ("example.org", 443),
        ("EXAMPLE.org", 8443),
        ("a.b.example.org", 443),
        ("a.below.test", 443),
        ("a.star.test", 443),
        ("port.test", 8443),
        ("a.port.test", 8443),
        ("10.1.255.1", 443),
        ("::ffff:10.1.255.1", 443),
        ("10.2.0.3", 1),
        ("10.2.0.4", 444),
        ("fd00::1", 443),
        ("fd00:0::2", 443),
        ("fd01:ff::1", 443),
        ("xn--mnchen-3ya.test", 443),
    ] {
        assert!(direct(host, port), "{host}:{port} goes through the proxy");
    }
    for (host, port) in [
        ("example.com", 443),
        ("anexample.org", 443),
        ("below.test", 443),
        ("star.test", 443),
        ("port.test", 443),
        ("10.2.0.5", 443),
        ("10.2.0.4", 443),
        ("11.1.0.0", 443),
        ("fd00::1", 444),
        ("fd02::1", 443),
        ("localhost.example.com", 443),
    ] {
        assert!(!direct(host, port), "{host}:{port} goes without the proxy");
    }
    let all = self::proxies(&[("https_proxy", "http://p.test"), ("no_proxy", "a,*")]).unwrap();
    assert!(all.towards("example.com", 443).is_none());
    let none = self::proxies(&[("HTTP_PROXY", "http://p.test"), ("HTTPS_PROXY", "")]).unwrap();
    assert!(none.towards("example.com", 443).is_none());
}

#[test]
fn a_proxy_is_named_as_go_reads_it() {
    let read = |text: &str| proxies(&[("HTTPS_PROXY", text)]).map(|it| it.https.unwrap());
    for (text, host, port, authorization) in [
        ("proxy.test:3128", "proxy.test", 3128, None),
        ("localhost:3128", "localhost", 3128, None),
        ("http://proxy.test", "proxy.test", 80, None),
        ("[fd00::1]:8080", "fd00::1", 8080, None),
        (
            "http://u:p%40%zz@proxy.test:1",
            "proxy.test",
            1,
            // u:p@%zz
            Some("Basic dTpwQCV6eg=="),
        ),
        ("http://u@proxy.test:1", "proxy.test", 1, Some("Basic dTo=")),
    ] {
        let proxy = read(text).unwrap();
        assert_eq!((proxy.host.as_str(), proxy.port), (host, port), "{text}");
        let shown = proxy.authorization.as_ref().map(|it| it.to_str().unwrap());
        assert_eq!(shown, authorization, "{text}");
    }
    for text in [
        "http://u:secret@proxy.test:99999",
        "socks5://u:secret@p.test:1",
        "https://p.test",
    ] {
        let why = read(text).err().unwrap();
        assert!(
            why.starts_with("HTTPS_PROXY") && why.contains("http://HOST:PORT"),
            "{why}"
        );
        assert!(!why.contains("secret"), "{why}");
    }
    let held = proxies(&[("HTTPS_PROXY", "http://u:secret@p.test")]).unwrap();
    assert!(!format!("{held:?}").contains("secret"));
}

/// Answers one CONNECT with `answer`, then echoes. What it was asked comes out.
async fn proxy(answer: &'static str) -> (String, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            asked.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        let (mut from, mut to) = stream.split();
        // The client ends it, well or not.
        let _ = tokio::io::copy(&mut from, &mut to).await;
        String::from_utf8(asked).unwrap()
    });
    (address.to_string(), asked)
}

#[tokio::test]
async fn a_tunnel_is_a_connection() {
    let (address, asked) = proxy("HTTP/1.1 200 Connection established\r\n\r\n").await;
    let url = format!("http://user:pass@{address}");
    let proxies = proxies(&[("HTTPS_PROXY", &url)]).unwrap();
    // The proxy alone knows the name.
    let mut tunnel = proxies.connect("bundle.invalid", 8443).await.unwrap();
    tunnel.write_all(b"hello").await.unwrap();
    let mut echo = [0; 5];
    tunnel.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"hello");
    drop(tunnel);
    let asked = asked.await.unwrap().to_lowercase();
    assert!(
        asked.starts_with("connect bundle.invalid:8443 http/1.1\r\n"),
        "{asked}"
    );
    assert!(
        asked.contains("\r\nhost: bundle.invalid:8443\r\n"),
        "{asked}"
    );
    let basic = "\r\nproxy-authorization: basic dxnlcjpwyxnz\r\n";
    assert!(asked.contains(basic), "{asked}");
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named() {
    let refusal = "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n";
    let (address, _asked) = proxy(refusal).await;
    let proxies = proxies(&[("HTTPS_PROXY", &address)]).unwrap();
    let why = proxies.connect("fd00::1", 443).await.err().unwrap();
    let expected = "no way to [fd00::1]:443: 407 Proxy Authentication Required";
    assert_eq!(why, format!("HTTPS_PROXY {address}: {expected}"));
    let (address, _asked) = proxy("HTTP/1.1 200 OK\r\n\r\nSSH-2.0").await;
    let proxies = self::proxies(&[("HTTPS_PROXY", &address)]).unwrap();
    let why = proxies.connect("bundle.invalid", 443).await.err().unwrap();
    assert!(
        why.ends_with("it speaks for bundle.invalid:443 before it is asked"),
        "{why}"
    );
}
