//! The dashboard as a browser and as an attacker meet it: who is let in, what is escaped, what ten thousand cost.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use ah_fleet::access_point::Selector;
use ah_fleet::store::{AnyStore, CertificateRecord, Change, Enrollment, HostRecord, Store};
use http::{HeaderMap, Method, StatusCode};
use http_body_util::{BodyExt, Full};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::http::{TOKEN, ask, serve};
use crate::raw::{connect, hello};
use crate::support::{DEADLINE, Site, id};

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

async fn send(
    address: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let mut request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "dash.example:9443");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(bytes::Bytes::copy_from_slice(body.as_bytes())));
    let stream = TcpStream::connect(address).await.unwrap();
    let response = ask(stream, request.unwrap()).await;
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer {
        status: parts.status,
        headers: parts.headers,
        body: String::from_utf8(body.to_vec()).unwrap(),
    }
}

async fn get(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Answer {
    send(address, Method::GET, path, headers, "").await
}

const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");
const OURS: (&str, &str) = ("sec-fetch-site", "same-origin");

async fn sign_in(address: SocketAddr) -> String {
    let form = format!("token={TOKEN}&next=%2Faudit");
    let answer = send(address, Method::POST, "/sign-in", &[FORM, OURS], &form).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER);
    assert_eq!(answer.headers["location"], "/audit");
    let cookie = answer.headers["set-cookie"].to_str().unwrap();
    for part in ["; HttpOnly", "; SameSite=Strict", "; Path=/", "; Max-Age="] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert!(
        !cookie.contains(TOKEN) && !cookie.contains("Domain"),
        "{cookie}"
    );
    cookie.split(';').next().unwrap().to_owned()
}

fn page_token(page: &str) -> &str {
    let start = "<meta name=\"x-ah-page-token\" content=\"";
    let rest = page.split_once(start).unwrap().1;
    rest.split_once('"').unwrap().0
}

const PAGES: [&str; 5] = ["/", "/rejections", "/audit", "/executors/x", "/live"];

// AP-13: the pages are as closed as the REST interface.
#[tokio::test]
async fn ap_13_nobody_sees_a_page_without_the_token() {
    let site = Site::new();
    let access_point = site.start().await;
    let stop = CancellationToken::new();
    let closed = serve(&access_point, None, &stop).await;
    let open = serve(&access_point, Some(TOKEN), &stop).await;
    let bearer = format!("Bearer {TOKEN}");
    for path in PAGES {
        let answer = get(closed, path, &[("authorization", &bearer)]).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{path}");
        assert!(answer.body.contains("--http-token-file"), "{path}");

        let cookie = format!("ah-session-{}={}", open.port(), "0".repeat(64));
        for headers in [
            &[][..],
            &[("cookie", cookie.as_str())],
            &[("authorization", "Bearer wrong-wrong-wrong-wrong")],
        ] {
            let answer = get(open, path, headers).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path}");
            assert!(answer.body.contains("action=\"/sign-in\""), "{path}");
            assert!(!answer.body.contains("x-ah-page-token"), "{path}");
        }
    }
    let answer = get(open, "/", &[("authorization", &bearer)]).await;
    assert_eq!(answer.status, StatusCode::OK);

    // The token opens a session once it is right, and only from a page of the dashboard itself.
    let right = format!("token={TOKEN}");
    for (from, form, status) in [
        (OURS, "token=0123456789abcdef", StatusCode::UNAUTHORIZED),
        (OURS, "", StatusCode::BAD_REQUEST),
        (
            ("sec-fetch-site", "cross-site"),
            &right,
            StatusCode::FORBIDDEN,
        ),
        (
            ("sec-fetch-site", "same-site"),
            &right,
            StatusCode::FORBIDDEN,
        ),
        (
            ("origin", "http://evil.example"),
            &right,
            StatusCode::FORBIDDEN,
        ),
        (("origin", "null"), &right, StatusCode::FORBIDDEN),
        (("accept", "*/*"), &right, StatusCode::FORBIDDEN),
        (
            ("origin", "http://dash.example:9443"),
            &right,
            StatusCode::SEE_OTHER,
        ),
    ] {
        let answer = send(open, Method::POST, "/sign-in", &[FORM, from], form).await;
        assert_eq!(answer.status, status, "{from:?} {form}");
        let opened = answer.headers.contains_key("set-cookie");
        assert_eq!(opened, status == StatusCode::SEE_OTHER, "{from:?} {form}");
    }
    let long = format!("token={}", "x".repeat(5000));
    let answer = send(open, Method::POST, "/sign-in", &[FORM, OURS], &long).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);

    let cookie = sign_in(open).await;
    let other_door = get(closed, "/", &[("cookie", &cookie)]).await;
    assert_eq!(other_door.status, StatusCode::FORBIDDEN);
    for path in &PAGES[..3] {
        let answer = get(open, path, &[("cookie", &cookie)]).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        assert!(!answer.body.contains(TOKEN), "{path}");
    }
    let answer = send(open, Method::POST, "/sign-out", &[("cookie", &cookie)], "").await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    let headers = [("cookie", cookie.as_str()), OURS];
    let answer = send(open, Method::POST, "/sign-out", &headers, "").await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER);
    let answer = get(open, "/", &[("cookie", &cookie)]).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "signed out");
}

// A page of another site can make a signed-in browser send requests. None of them changes anything.
#[tokio::test]
async fn a_change_takes_more_than_the_cookie() {
    let site = Site::new();
    let access_point = site.start().await;
    let stop = CancellationToken::new();
    let address = serve(&access_point, Some(TOKEN), &stop).await;
    let mut connection = connect(&site, &access_point, &site.leaf(1)).await;
    let _call = connection.enroll(hello("one")).await;
    let cookie = sign_in(address).await;
    let page = get(address, "/", &[("cookie", &cookie)]).await.body;
    let token = page_token(&page).to_owned();
    let other = sign_in(address).await;
    let page = get(address, "/", &[("cookie", &other)]).await.body;
    let of_another = page_token(&page).to_owned();
    assert_ne!(token, of_another);

    let path = format!(
        "/api/v1/executors/{}/revoke",
        ah_fleet::access_point::path_segment(&id(1))
    );
    let cookie = ("cookie", cookie.as_str());
    let ours = ("x-ah-page-token", token.as_str());
    let theirs = ("x-ah-page-token", of_another.as_str());
    let refused: [&[(&str, &str)]; 7] = [
        &[cookie],
        &[cookie, OURS],
        &[cookie, ours],
        &[cookie, OURS, theirs],
        &[cookie, ("sec-fetch-site", "cross-site"), ours],
        &[cookie, ("sec-fetch-site", "none"), ours],
        &[cookie, ("origin", "http://dash.example:9444"), ours],
    ];
    for headers in refused {
        let answer = send(address, Method::POST, &path, headers, "").await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{headers:?}");
        assert!(
            answer.body.contains("\"permission_denied\""),
            "{}",
            answer.body
        );
    }
    let answer = send(address, Method::POST, &path, &[OURS, ours], "").await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "no cookie");
    assert_eq!(access_point.live().await, 1);

    let answer = send(address, Method::POST, &path, &[cookie, OURS, ours], "").await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    let page = get(address, "/", &[cookie]).await.body;
    assert!(
        page.contains("data-act=\"reinstate\""),
        "the effect is on the next page"
    );
    access_point.audited("revoked").await;
}

// What a peer says of itself is text, wherever it turns up.
#[tokio::test]
async fn markup_of_a_peer_is_text() {
    let site = Site::new();
    let access_point = site.start().await;
    let stop = CancellationToken::new();
    let address = serve(&access_point, Some(TOKEN), &stop).await;
    let evil = "\"><script>alert(1)</script><img src=x onerror='alert(2)'>";
    let mut hello = hello("one");
    hello.name = format!("n{evil}");
    hello.version = format!("v{evil}");
    hello.labels.insert("k<b>".into(), format!("l{evil}"));
    hello.host = Some(ah_fleet::proto::HostFacts {
        hostname: format!("h{evil}"),
        os: format!("o{evil}"),
        arch: "a".into(),
        kernel: format!("k{evil}"),
        ..Default::default()
    });
    let mut connection = connect(&site, &access_point, &site.leaf(1)).await;
    let _call = connection.enroll(hello.clone()).await;
    // A refusal of the same, and an operator's own words.
    let mut second = connect(&site, &access_point, &site.leaf(1)).await;
    // A client believes itself done before the access point has looked at its certificate.
    drop(second.call().await);
    let who = Selector(id(1));
    access_point.operator.revoke(&who, evil).await.unwrap();
    second.greet(hello).await.ended().await;
    access_point.audited("rejected").await;
    access_point.audited("revoked").await;

    let cookie = sign_in(address).await;
    let one = format!(
        "/executors/{}",
        ah_fleet::access_point::path_segment(&id(1))
    );
    let nobody = format!("/executors/{}", ah_fleet::access_point::path_segment(evil));
    let searched = format!("/?q={}", ah_fleet::access_point::path_segment(evil));
    let asked = format!("/audit?q={}", ah_fleet::access_point::path_segment(evil));
    let refused = format!("/?{}=1", ah_fleet::access_point::path_segment(evil));
    for (path, status, shown) in [
        ("/", 200, 4),
        (searched.as_str(), 200, 1),
        ("/rejections", 200, 1),
        ("/audit", 200, 1),
        (&asked, 200, 1),
        (&one, 200, 6),
        (&nobody, 404, 1),
        (&refused, 400, 1),
        ("/?page=minus", 400, 0),
        ("/?ends=never", 400, 0),
        ("/audit?event=%3Cscript%3E", 400, 1),
    ] {
        let answer = get(address, path, &[("cookie", &cookie)]).await;
        assert_eq!(answer.status.as_u16(), status, "{path}");
        let page = answer.body;
        let texts = page.matches("&lt;script&gt;").count();
        assert!(texts >= shown, "{path} shows it {texts} times: {page}");
        assert_eq!(
            page.matches("<script").count(),
            1,
            "{path}: ours alone: {page}"
        );
        assert!(
            !page.contains("<b>") && !page.contains("<img src=x"),
            "{path}: {page}"
        );
        assert!(
            !page.contains(" style=") && !page.contains(" onclick="),
            "{path}"
        );
        let policy = answer.headers["content-security-policy"].to_str().unwrap();
        assert!(
            policy.starts_with("default-src 'none'; script-src 'self'"),
            "{policy}"
        );
        assert!(
            !policy.contains("unsafe") && !policy.contains("http"),
            "{policy}"
        );
        for (header, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
        ] {
            assert_eq!(answer.headers[header], value, "{path}");
        }
    }
}

// Nothing comes from anywhere else, and what a page names is there.
#[tokio::test]
async fn a_page_is_made_of_what_is_in_the_binary() {
    let site = Site::new();
    let access_point = site.start().await;
    let stop = CancellationToken::new();
    let address = serve(&access_point, Some(TOKEN), &stop).await;
    let page = get(address, "/", &[]).await.body;
    let named: Vec<&str> = page
        .split(['"'])
        .filter(|text| text.starts_with("/assets/"))
        .collect();
    assert_eq!(named.len(), 3, "{page}");
    for path in named {
        let answer = get(address, path, &[]).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        let kept = answer.headers["cache-control"].to_str().unwrap();
        assert!(kept.contains("immutable"), "{kept}");
        assert!(!answer.body.contains("https://"), "{path}");
        let other = path.replacen("/assets/", "/assets/0", 1);
        assert_eq!(
            get(address, &other, &[]).await.status,
            StatusCode::NOT_FOUND
        );
    }
    assert!(
        !page.contains("http://") && !page.contains("https://"),
        "{page}"
    );
}

fn enrolled(number: u32) -> Change {
    let name = format!("worker-{number:05}");
    Change::Enrolled(Box::new(Enrollment {
        id: id(number).into(),
        labels: [("zone".to_owned(), format!("z{}", number % 10))].into(),
        host: HostRecord {
            hostname: format!("{name}.internal"),
            ..HostRecord::default()
        },
        name,
        provider: None,
        version: "1".into(),
        certificate: CertificateRecord {
            serial: format!("{number:016x}"),
            sha256: format!("{number:064x}"),
            not_after: (SystemTime::now() + Duration::from_secs(3600)).into(),
        },
        at: SystemTime::now().into(),
    }))
}

// Ten thousand executors: a page holds fifty, and a storm of events comes to two beats a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_executors_are_searched_and_paged_on_this_side() {
    let site = Site::new();
    let changes: Vec<Change> = (0..10_000).map(enrolled).collect();
    let store = AnyStore::open(&site.database).await.unwrap();
    for batch in changes.chunks(2_000) {
        store.apply(batch).await.unwrap();
    }
    drop(store);
    let access_point = site.start().await;
    let stop = CancellationToken::new();
    let address = serve(&access_point, Some(TOKEN), &stop).await;
    let cookie = sign_in(address).await;
    let cookie = [("cookie", cookie.as_str())];
    let rows = async |path: &str| {
        let began = Instant::now();
        let page = get(address, path, &cookie).await;
        println!("{path}: {:?}, {} bytes", began.elapsed(), page.body.len());
        assert_eq!(page.status, StatusCode::OK, "{path}");
        assert!(
            page.body.len() < 200_000,
            "{path}: {} bytes",
            page.body.len()
        );
        let ids = page.body.split("<tr data-id=\"").skip(1);
        let ids: Vec<String> = ids
            .map(|row| row.split_once('"').unwrap().0.to_owned())
            .collect();
        (ids, page.body)
    };
    let (first, page) = rows("/").await;
    assert_eq!(first.len(), 50);
    assert_eq!(first[0], id(0));
    assert!(page.contains("1–50 of 10,000"), "{page}");
    let (last, _) = rows("/?page=200").await;
    assert_eq!(last.last(), Some(&id(9_999)));
    let (beyond, _) = rows("/?page=18446744073709551615").await;
    assert_eq!(beyond, last);
    let (found, page) = rows("/?q=ZONE%3Dz7%20worker-0123&sort=ends&desc=true").await;
    assert_eq!(found, [id(1_237)], "{page}");
    assert!(page.contains("1–1 of 1 (10,000 in all)"), "{page}");
    assert_eq!(rows("/?state=enrolled").await.0.len(), 0);

    // A watcher's view of a storm.
    let request = http::Request::get("/live").header(cookie[0].0, cookie[0].1);
    let stream = TcpStream::connect(address).await.unwrap();
    let live = ask(stream, request.body(Full::default()).unwrap()).await;
    assert_eq!(live.headers()["content-type"], "text/event-stream");
    let began = Instant::now();
    let mut live = live.into_body();
    let reading = tokio::spawn(async move {
        let mut told = String::new();
        while let Some(Ok(frame)) = live.frame().await {
            told.push_str(str::from_utf8(frame.data_ref().unwrap()).unwrap());
        }
        (told, began.elapsed())
    });
    // By serial number, so that nobody is looked up: 400 events as fast as they come.
    let operator = &access_point.operator;
    let storm = (0..400_u64).map(async |number| {
        let serial = Selector(format!("0x{:016x}", number + (1 << 40)));
        operator.revoke(&serial, "storm").await.unwrap();
    });
    futures_util::future::join_all(storm).await;
    access_point.stopped().await;
    let (told, took) = tokio::time::timeout(DEADLINE, reading)
        .await
        .unwrap()
        .unwrap();
    let beats = told.matches("data: ").count();
    let most = 2 * usize::try_from(took.as_millis()).unwrap() / 1000 + 2;
    assert!((1..=most).contains(&beats), "{beats} beats in {took:?}");
}
