//! Both sides' identities come from Vault and rotate every few seconds, under load.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ah_fleet::executor::{Event, Status};
use ah_identity_provider::vault::{
    CertificateRequest, LoginMethod, Material, Retry, Secret, VaultConfig, VaultLogin,
    VaultProvider, VaultTls,
};
use ah_identity_provider::{Clock, Health, Supervisor, SystemClock};
use ah_testkit::process::{AccessPoint, eventually};
use ah_tls::{ClientConfigs, Expect, IdentityVet, Role, connect};
use tokio::io::AsyncReadExt;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::crowd::{executor, runtime};
use crate::fleet::Fleet;
use crate::site::{get, metric, raise_open_files};

const EXECUTORS: usize = 60;

/// How long a certificate lives here, and when it is renewed: every few seconds, with time left for a machine that is
/// busy.
const LIFE: Duration = Duration::from_secs(40);
const THRESHOLD: &str = "0.1";

/// One executor in this process, with a provider of its own.
struct Member {
    status: watch::Receiver<Status>,
    health: watch::Receiver<Health>,
    told: Arc<Mutex<Vec<Event>>>,
}

/// A supervised identity from Vault, as `ah agent enroll` has it.
async fn identity(
    runtime: &tokio::runtime::Handle,
    config: VaultConfig,
) -> (ClientConfigs, watch::Receiver<Health>) {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let vet = Arc::new(IdentityVet::new(Role::Executor, false));
    let provider = VaultProvider::new(config, Arc::clone(&clock));
    let (mut supervisor, health, _) = Supervisor::new(provider, vet, Arc::clone(&clock));
    let watch = supervisor.first().await.unwrap();
    runtime.spawn(supervisor.run());
    let (configs, follow) =
        ClientConfigs::publish(watch, Expect::RemoteName, false, clock).unwrap();
    runtime.spawn(follow);
    (configs, health)
}

fn config(fleet: &Fleet, number: usize) -> VaultConfig {
    let credentials = fleet.realm.credentials(&fleet.bao, "executor");
    let given = |text: &str| Material::Given(Secret::new(text.to_owned()));
    VaultConfig {
        addresses: vec![fleet.bao.url().parse().unwrap()],
        namespace: None,
        tls: VaultTls::default(),
        pki: fleet.realm.issue("executor").parse().unwrap(),
        login: VaultLogin {
            method: LoginMethod::AppRole {
                role_id: given(&credentials.role_id),
                secret_id: Some(given(&credentials.secret_id)),
                wrapped: false,
            },
            mount: fleet.realm.approle.clone(),
        },
        request: CertificateRequest {
            common_name: format!("executor-{number}.example.com"),
            uris: vec![format!("spiffe://example.org/ah/agent/{number}")],
            ttl: Some(LIFE),
            ..CertificateRequest::default()
        },
        renewal_threshold: THRESHOLD.parse().unwrap(),
        retry: Retry::default(),
        token_cache: None,
    }
}

impl Member {
    fn spawn(runtime: &Runtime, fleet: &Fleet, access_point: &AccessPoint, number: usize) -> Self {
        let config = config(fleet, number);
        let (configs, health) = runtime.block_on(identity(runtime.handle(), config));
        let limit = Duration::from_secs(30);
        let executor = executor(configs, access_point.address, number, None, limit);
        let status = executor.status();
        let told = Arc::new(Mutex::new(Vec::new()));
        let member = Self {
            status: status.subscribe(),
            health,
            told: Arc::clone(&told),
        };
        runtime.spawn(async move {
            let tell = move |event: &Event| told.lock().unwrap().push(event.clone());
            if let Err(gave_up) = executor.run(status, tell, CancellationToken::new()).await {
                eprintln!("executor {number} gave up: {gave_up}");
            }
        });
        member
    }
}

/// One handshake, to the answer that proves that both sides took it. Whose certificate was shown.
async fn handshake(configs: ClientConfigs, port: u16) -> String {
    let limit = Duration::from_secs(30);
    let connected = connect("127.0.0.1", port, &configs, limit).await.unwrap();
    let serial = connected.server.leaf().serial.clone();
    let mut stream = connected.stream;
    let mut first = [0; 1];
    match tokio::time::timeout(limit, stream.read(&mut first)).await {
        Ok(Ok(1)) => serial,
        other => panic!("no answer after the handshake: {other:?}"),
    }
}

// EN-14, AP-9, VA-12
#[test]
fn en_14_identities_from_vault_rotate_under_load_and_nothing_is_dropped() {
    let Some(fleet) = Fleet::begin() else {
        return;
    };
    raise_open_files();
    let life = format!("{}s", LIFE.as_secs());
    let mut more = vec!["--vault-cert-ttl", &life, "--max-handshakes", "1024"];
    more.extend(["--vault-renewal-threshold", THRESHOLD]);
    let access_point = fleet.access_point(&more);
    let http = access_point.http.unwrap();
    let runtime = runtime();
    let members: Vec<_> = (0..EXECUTORS)
        .map(|number| Member::spawn(&runtime, &fleet, &access_point, number))
        .collect();
    eventually("all are enrolled", || {
        let all = members.iter().all(|member| member.status.borrow().enrolled);
        all.then_some(())
    });
    for member in &members {
        eventually("the enrollment is told", || {
            let told = member.told.lock().unwrap();
            told.iter()
                .any(|event| matches!(event, Event::Enrolled { .. }))
                .then_some(())
        });
        member.told.lock().unwrap().clear();
    }
    let generation = metric(http, "ah_identity_generation");

    // Newcomers all the while, with a certificate that rotates like the others.
    let (configs, _health) =
        runtime.block_on(identity(runtime.handle(), config(&fleet, EXECUTORS)));
    let port = access_point.address.port();
    let going = Arc::new(AtomicBool::new(true));
    let begun = Arc::new(AtomicUsize::new(0));
    let storm = runtime.spawn({
        let (going, begun) = (Arc::clone(&going), Arc::clone(&begun));
        async move {
            let mut beat = tokio::time::interval(Duration::from_millis(10));
            let mut tasks = tokio::task::JoinSet::new();
            while going.load(Ordering::Relaxed) {
                beat.tick().await;
                begun.fetch_add(1, Ordering::Relaxed);
                tasks.spawn(handshake(configs.clone(), port));
            }
            tasks.join_all().await
        }
    });
    let dropped = || {
        let absent = members
            .iter()
            .filter(|member| !member.status.borrow().enrolled);
        absent.count()
    };
    eventually("everybody has rotated twice, the access point too", || {
        assert_eq!(dropped(), 0);
        let twice = |member: &Member| member.told.lock().unwrap().len() >= 2;
        let own = metric(http, "ah_identity_generation") >= generation + 2.0;
        (own && members.iter().all(twice)).then_some(())
    });
    going.store(false, Ordering::Relaxed);
    let seen = runtime.block_on(storm).unwrap();

    for member in &members {
        let told = member.told.lock().unwrap();
        let rotations = told
            .iter()
            .all(|event| matches!(event, Event::Rotated { .. }));
        assert!(rotations, "no session was dropped: {told:?}");
        assert_eq!(member.health.borrow().failures, 0);
    }
    let serials: std::collections::BTreeSet<_> = seen.iter().collect();
    println!(
        "{} handshakes, {} certificates shown",
        seen.len(),
        serials.len()
    );
    assert!(serials.len() >= 3, "the access point's rotations were seen");
    assert!(seen.len() > 200, "the storm went on: {}", seen.len());
    let (_, metrics) = get(http, "/metrics");
    let refused = |line: &str| line.starts_with("ah_rejections_total{") && !line.ends_with(" 0");
    assert!(!metrics.lines().any(refused), "{metrics}");
    assert_eq!(metric(http, "ah_sessions") as usize, EXECUTORS);
    // VA-13: each certificate was asked for once.
    let (asked, given) = fleet.realm.issued(&fleet.bao, "executor");
    assert_eq!(asked, given);
    let rotations: usize = members
        .iter()
        .map(|member| member.told.lock().unwrap().len())
        .sum();
    assert!(
        given <= rotations + 2 * EXECUTORS + 20,
        "{given} certificates for {rotations} rotations"
    );
}
