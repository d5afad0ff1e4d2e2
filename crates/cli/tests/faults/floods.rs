//! Peers that take and give nothing, descriptors that run out, clients that will not wait.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ah_fleet::executor::{Event, Once};
use ah_testkit::process::{AccessPoint, eventually};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::crowd::{executor, fixed_configs, runtime, visit};
use crate::site::{Site, alone, metric, need, open_files, raise_open_files, resident_kib};

/// What a bad peer does with its connection.
#[derive(Clone, Copy)]
enum Nuisance {
    Silent,
    /// A handshake record at one byte a second.
    Dribble,
    Garbage,
}

/// A ClientHello of 512 bytes, of which not all may ever come.
fn client_hello() -> Vec<u8> {
    [[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc].as_slice(), &[0; 508]].concat()
}

/// Connects from one of many loopback addresses, so that ports last, and misbehaves until it is cut; then
/// it comes back.
async fn misbehave(number: usize, to: SocketAddr, nuisance: Nuisance, connected: Arc<AtomicUsize>) {
    let from = Ipv4Addr::new(127, 0, 2, u8::try_from(number % 200).unwrap() + 1);
    let connect = async || -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from((from, 0)))?;
        socket.connect(to).await
    };
    let record = client_hello();
    let mut counted = false;
    loop {
        let Ok(mut stream) = connect().await else {
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        };
        if !counted {
            connected.fetch_add(1, Ordering::Relaxed);
            counted = true;
        }
        match nuisance {
            Nuisance::Silent => {
                let _ = stream.readable().await;
                // Readable is the end of it: an access point says nothing first.
            }
            Nuisance::Dribble => {
                for byte in &record {
                    if stream.write_all(&[*byte]).await.is_err() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
            Nuisance::Garbage => {
                let noise = [u8::try_from(number % 251).unwrap(); 64];
                let _ = stream.write_all(&noise).await;
                let _ = stream.readable().await;
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Ten thousand of them, say.
struct Flood(Vec<tokio::task::JoinHandle<()>>);

impl Flood {
    /// Returns when each has connected at least once.
    fn start(runtime: &Runtime, count: usize, to: SocketAddr) -> Self {
        let connected = Arc::new(AtomicUsize::new(0));
        let flood = (0..count).map(|number| {
            let nuisance = match number % 3 {
                0 => Nuisance::Silent,
                1 => Nuisance::Dribble,
                _ => Nuisance::Garbage,
            };
            runtime.spawn(misbehave(number, to, nuisance, Arc::clone(&connected)))
        });
        let flood = Self(flood.collect());
        eventually("all have connected", || {
            (connected.load(Ordering::Relaxed) == count).then_some(())
        });
        flood
    }

    fn stop(self) {
        for bad in self.0 {
            bad.abort();
        }
    }
}

// AP-16
#[test]
fn ap_16_sockets_without_a_whole_client_hello_cost_no_tls_state() {
    const SOCKETS: usize = 3_000;
    let _alone = alone();
    raise_open_files();
    let site = Site::new();
    let access_point = site.start(&["--handshake-timeout", "60s"]);
    let pid = access_point.process.pid();
    let runtime = runtime();
    let enroll = |number| {
        let configs = fixed_configs(&site.executor_leaf(number), &site.ca);
        let visited = visit(configs, access_point.address, number);
        runtime.block_on(visited).expect("nobody is turned away");
    };
    (0..20).for_each(enroll);
    let before = resident_kib(pid);

    let hello = client_hello();
    let held: Vec<TcpStream> = runtime.block_on(async {
        let mut held = Vec::new();
        for number in 0..SOCKETS {
            let mut stream = TcpStream::connect(access_point.address).await.unwrap();
            // None, or all but the last byte.
            let sent = [0, hello.len() - 1][number % 2];
            stream.write_all(&hello[..sent]).await.unwrap();
            held.push(stream);
        }
        held
    });
    eventually("all are accepted", || {
        (open_files(pid) >= SOCKETS).then_some(())
    });
    // By then what came before was looked at.
    enroll(20);
    let each = (resident_kib(pid) - before) as f64 / SOCKETS as f64;
    println!("{each:.1} KiB for each");
    // A task and its place take three; what rustls has for a ClientHello takes ten more.
    assert!(each < 7.0, "{each:.1} KiB for each");
    drop(held);
}

// AP-16
#[test]
fn ap_16_ten_thousand_idle_slow_and_garbage_connections_do_not_disturb_enrollment() {
    const BAD: usize = 10_000;
    const GOOD: usize = 100;
    let _alone = alone();
    // Twice so many descriptors at the access point, and room.
    raise_open_files();
    let site = Site::new();
    let mut access_point = site.start(&["--handshake-timeout", "20s"]);
    let address = access_point.address;
    let pid = access_point.process.pid();
    let runtime = runtime();
    let configs = |number| fixed_configs(&site.executor_leaf(number), &site.ca);
    runtime.block_on(visit(configs(0), address, 0)).unwrap();
    let before = (resident_kib(pid), open_files(pid));

    let flood = Flood::start(&runtime, BAD, address);
    let mut took = (1..=GOOD)
        .map(|number| runtime.block_on(visit(configs(number), address, number)))
        .map(|visited| visited.expect("nobody is turned away"))
        .collect::<Vec<_>>();
    took.sort();
    let (median, p99) = (took[GOOD / 2], took[GOOD * 99 / 100 - 1]);
    println!("enrollment under the flood: median {median:?}, p99 {p99:?}");
    // Milliseconds on an idle machine. A queue behind ten thousand others would be the timeout of 20 s.
    assert!(p99 < Duration::from_secs(5), "p99 {p99:?}");
    let first_peak = resident_kib(pid);
    flood.stop();
    let given_back = || {
        eventually("descriptors are given back", || {
            (open_files(pid) <= before.1 + 8).then_some(())
        });
    };
    given_back();
    let after_first = resident_kib(pid);
    let flood = Flood::start(&runtime, BAD, address);
    flood.stop();
    given_back();
    let after = resident_kib(pid);
    println!(
        "resident KiB: before {}, first flood {first_peak}, after it {after_first}, after another {after}",
        before.0
    );
    // The allocator keeps pages of its own accord, but not more with each flood: what a flood took is used
    // again. 32 KiB for each of the 4,096 sockets that may wait at a time is far above what one needs.
    assert!(first_peak < before.0 + 128 * 1024);
    assert!(
        after < first_peak + 16 * 1024,
        "{first_peak} to {after} KiB"
    );
    assert!(access_point.process.is_running());
    let http = access_point.http.unwrap();
    assert!(
        metric(http, "ah_rejections_total") >= 1.0,
        "garbage is counted"
    );
}

// AP-16
#[test]
fn accept_recovers_when_file_descriptors_were_exhausted() {
    if !need("prlimit") {
        return;
    }
    let _alone = alone();
    let site = Site::new();
    let wrapper = ["prlimit", "--nofile=64:64"];
    let AccessPoint {
        mut process,
        address,
        ..
    } = site.start_under(&wrapper, &["--handshake-timeout", "60s"]);
    let sockets = (0..300)
        .map(|_| std::net::TcpStream::connect(address).unwrap())
        .collect::<Vec<_>>();
    process.wait_for("cannot accept connections");
    // Even now: sockets that send nothing make room for one that does.
    let first = site.executor(address, "first", &site.executor_leaf(1));
    first.wait_for("enrolled");
    drop(sockets);
    let second = site.executor(address, "second", &site.executor_leaf(2));
    second.wait_for("enrolled");
    assert!(process.is_running());
    assert_eq!(site.listed(&["--live"]).len(), 2);
}

// AP-16, EN-13: bar 9 in small. Clients that give up after a second and come again at once.
#[test]
fn ap_16_a_retry_storm_converges() {
    const CLIENTS: usize = 500;
    const PATIENCE: Duration = Duration::from_secs(1);
    let _alone = alone();
    raise_open_files();
    let site = Site::new();
    let access_point = site.start(&["--max-handshakes", "8"]);
    let address = access_point.address;
    let runtime = runtime();
    let enrolled = Arc::new(AtomicUsize::new(0));
    let stop = CancellationToken::new();
    let begun = Instant::now();
    for number in 0..CLIENTS {
        let configs = fixed_configs(&site.executor_leaf(number), &site.ca);
        let enrolled = Arc::clone(&enrolled);
        let stop = stop.clone();
        runtime.spawn(async move {
            while !stop.is_cancelled() {
                let once = Some(Once::Failed);
                let executor = executor(configs.clone(), address, number, once, PATIENCE);
                let status = executor.status();
                let in_now = AtomicUsize::new(0);
                let tell = |event: &Event| {
                    if matches!(event, Event::Enrolled { .. }) {
                        in_now.store(1, Ordering::Relaxed);
                        enrolled.fetch_add(1, Ordering::Relaxed);
                    }
                };
                let _ = executor.run(status, tell, stop.clone()).await;
                enrolled.fetch_sub(in_now.into_inner(), Ordering::Relaxed);
                let wait = 50 + u64::try_from(number).unwrap() * 7 % 150;
                tokio::time::sleep(Duration::from_millis(wait)).await;
            }
        });
    }
    eventually("all are enrolled at once", || {
        (enrolled.load(Ordering::Relaxed) == CLIENTS).then_some(())
    });
    let http = access_point.http.unwrap();
    let shed = metric(http, "ah_handshakes_shed_total");
    let waited = metric(http, "ah_accept_waited_seconds_total");
    println!(
        "{CLIENTS} enrolled after {:?}; {shed} were reset, {waited} s waited for a place",
        begun.elapsed()
    );
    assert!(shed + waited > 0.0, "the storm was one");
    assert_eq!(site.listed(&["--live"]).len(), CLIENTS);
    stop.cancel();
}
