//! What collectors read from their sockets.

mod compact;

use std::time::Duration;

use ah_spire_plugin::telemetry::M3;
use spiffe::TrustDomain;
use tokio::net::{UdpSocket, UnixDatagram};
use tokio::task::JoinHandle;

use super::*;
use crate::metrics::{Metrics, Program};

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(60);

async fn collector() -> (UdpSocket, String) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap().to_string();
    (socket, address)
}

fn config() -> TelemetryConfig {
    TelemetryConfig {
        trust_domain_label: true,
        ..TelemetryConfig::default()
    }
}

fn server(config: &TelemetryConfig) -> (Metrics, Sinks) {
    let trust_domain = TrustDomain::new("example.org").unwrap();
    Metrics::new(config, Program::Server, &trust_domain).unwrap()
}

fn refused(config: &TelemetryConfig) -> String {
    let trust_domain = TrustDomain::new("example.org").unwrap();
    let fault = Metrics::new(config, Program::Agent, &trust_domain).unwrap_err();
    assert!(fault.hint.is_some());
    fault.text
}

/// Sinks that run until they are told to stop.
struct Run(CancellationToken, JoinHandle<()>);

impl Run {
    fn start(sinks: Sinks) -> Self {
        let stop = CancellationToken::new();
        Self(stop.clone(), tokio::spawn(sinks.run(stop)))
    }

    async fn stop(self) {
        self.0.cancel();
        tokio::time::timeout(PATIENCE, self.1)
            .await
            .unwrap()
            .unwrap();
    }
}

async fn datagram(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 65_536];
    let received = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await;
    buffer.truncate(received.expect("a datagram comes").unwrap());
    buffer
}

/// Lines until there are as many as are wanted.
async fn lines(socket: &UdpSocket, wanted: usize) -> Vec<String> {
    let mut lines = Vec::new();
    while lines.len() < wanted {
        let text = String::from_utf8(datagram(socket).await).unwrap();
        lines.extend(text.lines().map(str::to_owned));
    }
    lines
}

/// One of each sort.
fn count_all(metrics: &Metrics) {
    metrics
        .gauge(
            &["manager", "x509_ca", "rotate", "ttl"],
            &[("trust_domain_id", "example.org")],
        )
        .set(86399.4375);
    metrics.gauge(&["uptime"], &[]).set(1_795_443_906.0);
    metrics.counter(&["ca", "a b:c"], &[("empty", "")]).add(3);
    metrics.summary(&["selectors"], &[]).observe(4.0);
    metrics
        .timer(&["took"], &[("status", "OK")])
        .observe(0.8670009);
    metrics.point(&["plugins", "point"], 1.5);
}

fn host() -> String {
    gethostname::gethostname().into_string().unwrap()
}

#[tokio::test]
async fn statsd_is_told_lines_with_labels_as_parts_of_the_name() {
    // Inventory §10: Statsd
    let (socket, address) = collector().await;
    let (metrics, sinks) = server(&TelemetryConfig {
        statsd: vec![address],
        hostname_label: true,
        ..config()
    });
    count_all(&metrics);
    let run = Run::start(sinks);
    let host = host();
    let expected = [
        format!(
            "spire_server.manager.x509_ca.rotate.ttl.example_org.example_org.{host}:86399.437500|g"
        ),
        format!("spire_server.uptime.example_org.{host}:1795443906.000000|g"),
        format!("spire_server.ca.a_b_c..example_org.{host}:3.000000|c"),
        format!("spire_server.selectors.example_org.{host}:4.000000|ms"),
        format!("spire_server.took.OK.example_org.{host}:0.867001|ms"),
        "spire_server.plugins.point:1.500000|kv".to_owned(),
    ];
    let text = String::from_utf8(datagram(&socket).await).unwrap();
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    assert!(text.ends_with('\n'));
    run.stop().await;
}

#[tokio::test]
async fn datadogs_agent_is_told_labels_as_tags() {
    // Inventory §10: DogStatsd
    let (socket, address) = collector().await;
    let (metrics, sinks) = server(&TelemetryConfig {
        dog_statsd: vec![address],
        hostname_label: true,
        metric_prefix: Some("mine".to_owned()),
        ..config()
    });
    count_all(&metrics);
    let run = Run::start(sinks);
    let host = host();
    let tags = format!("trust_domain:example_org,host:{host}");
    let expected = [
        format!("mine.manager.x509_ca.rotate.ttl:86399.4375|g|#trust_domain_id:example_org,{tags}"),
        format!("mine.uptime:1795443906|g|#{tags}"),
        format!("mine.ca.a_b_c:3|c|#empty,{tags}"),
        format!("mine.selectors:4.000000|ms|#{tags}"),
        format!("mine.took:0.867001|ms|#status:OK,{tags}"),
    ];
    let text = String::from_utf8(datagram(&socket).await).unwrap();
    assert_eq!(text.split('\n').collect::<Vec<_>>(), expected);
    run.stop().await;
}

#[test]
fn a_container_is_found_by_its_entity() {
    // Inventory §10: DogStatsd
    let name = Name {
        kind: crate::metrics::series::Kind::Counter,
        parts: vec!["a".into(), "b".into()],
        labels: Vec::new(),
    };
    let event = Event {
        name: Arc::new(name),
        value: 1.0,
    };
    let line = |entity: Option<&str>| {
        let entity = entity.map(str::to_owned);
        Dialect::Datadog { entity }.line(&event).unwrap()
    };
    assert_eq!(line(Some("pod-1")), "a.b:1|c|#dd.internal.entity_id:pod-1");
    assert_eq!(line(None), "a.b:1|c");
}

#[tokio::test]
async fn datadogs_agent_is_reached_by_its_socket_as_well() {
    // Inventory §10: DogStatsd
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("dsd.socket");
    let socket = UnixDatagram::bind(&path).unwrap();
    let (metrics, sinks) = server(&TelemetryConfig {
        dog_statsd: vec![format!("unix://{}", path.display())],
        ..TelemetryConfig::default()
    });
    metrics.counter(&["a"], &[]).increment();
    let run = Run::start(sinks);
    let mut buffer = [0; 2000];
    let received = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await;
    assert_eq!(&buffer[..received.unwrap().unwrap()], b"spire_server.a:1|c");
    run.stop().await;
}

#[tokio::test]
async fn m3_is_told_what_changed_since_the_last_second() {
    // Inventory §10: M3
    let (socket, address) = collector().await;
    let (metrics, sinks) = server(&TelemetryConfig {
        m3: vec![M3 {
            address,
            environment: "prod".into(),
        }],
        metric_prefix: Some("mine".into()),
        ..config()
    });
    count_all(&metrics);
    metrics.timer(&["took"], &[("status", "OK")]).observe(11.0);
    let run = Run::start(sinks);
    let message = compact::read(&datagram(&socket).await);
    assert_eq!(message.sequence, 1);
    // The service is the program, whatever prefix metrics have.
    assert_eq!(message.common, "service=spire_server env=prod");
    assert_eq!(
        message.metrics,
        [
            "manager_x509_ca_rotate_ttl gauge 86399.4375 trust_domain_id=example_org trust_domain=example_org",
            "uptime gauge 1795443906 trust_domain=example_org",
            "ca_a b:c counter 3 empty= trust_domain=example_org",
            "selectors counter 1 trust_domain=example_org bucketid=0002 bucket=1.000000-10.000000",
            "took counter 1 status=OK trust_domain=example_org bucketid=0000 bucket=-infinity-0",
            "took counter 1 status=OK trust_domain=example_org bucketid=0002 bucket=10ms-25ms",
        ]
    );
    // What did not change is not told again; what is counted later is, also at the end.
    metrics.counter(&["ca", "a b:c"], &[("empty", "")]).add(2);
    metrics.gauge(&["uptime"], &[]).set(1_795_443_906.0);
    run.stop().await;
    let message = compact::read(&datagram(&socket).await);
    assert_eq!(message.sequence, 2);
    assert_eq!(
        message.metrics,
        [
            "uptime gauge 1795443906 trust_domain=example_org",
            "ca_a b:c counter 2 empty= trust_domain=example_org",
        ]
    );
}

#[tokio::test]
async fn a_batch_for_m3_fits_a_datagram() {
    // Inventory §10: M3
    let (socket, address) = collector().await;
    let (metrics, sinks) = server(&TelemetryConfig {
        m3: vec![M3 {
            address,
            environment: "prod".into(),
        }],
        ..config()
    });
    let long = "x".repeat(100);
    for number in 0..500 {
        metrics
            .counter(&[&long, &number.to_string()], &[])
            .increment();
    }
    let run = Run::start(sinks);
    let mut told = 0;
    let mut datagrams = 0;
    while told < 500 {
        let bytes = datagram(&socket).await;
        assert!(bytes.len() <= 32_768, "{}", bytes.len());
        told += compact::read(&bytes).metrics.len();
        datagrams += 1;
    }
    assert_eq!((told, datagrams), (500, 3));
    run.stop().await;
}

#[tokio::test]
async fn prefixes_of_m3_have_the_type_in_them() {
    // Inventory §10: AllowedPrefixes, BlockedPrefixes. Upstream puts the type into M3's names before it filters them.
    let ((statsd, plain), (m3, address)) = (collector().await, collector().await);
    let (metrics, sinks) = server(&TelemetryConfig {
        statsd: vec![plain],
        m3: vec![M3 {
            address,
            environment: "prod".into(),
        }],
        blocked_prefixes: vec!["spire_server.counter.a".into(), "spire_server.b".into()],
        ..TelemetryConfig::default()
    });
    metrics.counter(&["a"], &[]).increment();
    metrics.counter(&["b"], &[]).increment();
    let run = Run::start(sinks);
    assert_eq!(lines(&statsd, 1).await, ["spire_server.a:1.000000|c"]);
    assert_eq!(compact::read(&datagram(&m3).await).metrics, ["b counter 1"]);
    run.stop().await;
}

#[tokio::test]
async fn a_datagram_is_no_longer_than_a_network_takes_in_one() {
    // Inventory §10: Statsd, DogStatsd
    let ((plain, plain_address), (dog, dog_address)) = (collector().await, collector().await);
    let (metrics, sinks) = server(&TelemetryConfig {
        statsd: vec![plain_address],
        dog_statsd: vec![dog_address],
        ..TelemetryConfig::default()
    });
    let counter = metrics.counter(&["a"], &[]);
    let run = Run::start(sinks);
    for _ in 0..1000 {
        counter.increment();
    }
    for (socket, most, line) in [
        (&plain, 1400, "spire_server.a:1.000000|c"),
        (&dog, 1432, "spire_server.a:1|c"),
    ] {
        let mut counted = 0;
        let mut longest = 0;
        while counted < 1000 {
            let bytes = datagram(socket).await;
            let text = String::from_utf8(bytes.clone()).unwrap();
            assert!(text.lines().all(|it| it == line), "{text}");
            counted += text.lines().count();
            longest = longest.max(bytes.len());
        }
        assert_eq!(counted, 1000);
        assert!((most - 30..=most).contains(&longest), "{longest}");
    }
    run.stop().await;
}

#[tokio::test]
async fn a_sink_that_takes_nothing_holds_up_nobody() {
    // Inventory §10: nobody listens at one, one has no such name, and one is not run.
    let (socket, address) = collector().await;
    let (gone, gone_address) = collector().await;
    drop(gone);
    let (metrics, sinks) = server(&TelemetryConfig {
        statsd: vec![gone_address, "no-such-host.invalid:8125".into(), address],
        ..TelemetryConfig::default()
    });
    let counter = metrics.counter(&["a"], &[]);
    // More than all queues take: the rest is dropped at once.
    for _ in 0..QUEUE + 1000 {
        counter.increment();
    }
    let run = Run::start(sinks);
    let told = lines(&socket, QUEUE).await;
    assert_eq!(told.len(), QUEUE);
    metrics.counter(&["later"], &[]).increment();
    assert_eq!(lines(&socket, 1).await, ["spire_server.later:1.000000|c"]);
    run.stop().await;
}

#[tokio::test]
async fn a_collector_that_comes_back_is_told_again() {
    // Inventory §10
    let (socket, address) = collector().await;
    drop(socket);
    let (metrics, sinks) = server(&TelemetryConfig {
        statsd: vec![address.clone()],
        ..TelemetryConfig::default()
    });
    let counter = metrics.counter(&["a"], &[]);
    let run = Run::start(sinks);
    counter.increment();
    let socket = UdpSocket::bind(address).await.unwrap();
    let told = tokio::time::timeout(PATIENCE, async {
        loop {
            counter.increment();
            tokio::select! {
                bytes = datagram(&socket) => return bytes,
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
            }
        }
    });
    assert!(
        told.await
            .unwrap()
            .starts_with(b"spire_server.a:1.000000|c\n")
    );
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_time_since_the_start_is_told_every_ten_seconds() {
    // Inventory §10.1: uptime_in_ms
    let (sender, mut receiver) = mpsc::channel(QUEUE);
    let (metrics, _) = server(&TelemetryConfig {
        in_memory: true,
        ..TelemetryConfig::default()
    });
    let registry = Arc::into_inner(metrics.0.unwrap()).unwrap();
    let registry = Arc::new(Registry {
        queues: vec![Queue(sender)],
        ..registry
    });
    let metrics = Metrics(Some(registry.clone()));
    metrics.started("1", &TrustDomain::new("example.org").unwrap());
    let run = Run::start(Sinks(Some((registry, Vec::new(), Vec::new()))));
    let mut told = async || receiver.recv().await.unwrap().name.parts.join(".");
    assert_eq!(told().await, "spire_server.started");
    let begin = tokio::time::Instant::now();
    for _ in 0..3 {
        assert_eq!(told().await, "spire_server.uptime_in_ms");
    }
    assert_eq!(begin.elapsed().as_secs(), 20);
    run.stop().await;
}

#[test]
fn settings_that_cannot_be_are_refused_by_name() {
    // Inventory §10
    let config = TelemetryConfig {
        statsd: vec!["localhost".into()],
        ..TelemetryConfig::default()
    };
    let text = "telemetry.Statsd: address \"localhost\" is not HOST:PORT";
    assert_eq!(refused(&config), text);
    let m3 = |address: &str, environment: &str| TelemetryConfig {
        m3: vec![M3 {
            address: address.into(),
            environment: environment.into(),
        }],
        ..TelemetryConfig::default()
    };
    assert_eq!(
        refused(&m3("localhost:9052", "")),
        "telemetry.M3: env must be set"
    );
    let text = "telemetry.M3: address \"\" is not HOST:PORT";
    assert_eq!(refused(&m3("", "prod")), text);
}
