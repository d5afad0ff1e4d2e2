//! The pictures of the dashboard in the documents: `AH_UPDATE_DOCS=1 cargo test -p ah-cli --test dashboard pictures`.

use std::path::Path;
use std::time::{Duration, SystemTime};

use ah_fleet::store::{
    AnyStore, CertificateRecord, Change, Enrollment, HostRecord, Revocation, RevocationTarget,
    Store,
};
use ah_identity_provider::ProviderKind;
use ah_testkit::browser::Browser;
use ah_testkit::ca::TestCa;
use ah_testkit::process::{Host, Process};

use crate::site::Site;

/// Pool, region and how many.
const POOLS: [(&str, &str, u32); 6] = [
    ("build", "ams", 14),
    ("build", "iad", 10),
    ("gpu", "fra", 8),
    ("test", "ams", 8),
    ("test", "sin", 6),
    ("release", "ams", 2),
];

const MINUTE: u64 = 60;
const HOUR: u64 = 3600;

fn names() -> impl Iterator<Item = (String, &'static str, &'static str)> {
    POOLS.into_iter().flat_map(|(pool, region, count)| {
        (1..=count).map(move |n| (format!("{pool}-{region}-{n:02}"), pool, region))
    })
}

fn id(name: &str) -> String {
    format!("spiffe://example.org/ah/agent/{name}")
}

/// What the registry remembers from before: executors that are away, and earlier certificates of those that are not.
fn remembered() -> Vec<Change> {
    let now = SystemTime::now();
    let enrollment = |name: &str, pool: &str, region: &str, ago: u64, serial: u64| {
        Change::Enrolled(Box::new(Enrollment {
            id: id(name).into(),
            name: name.to_owned(),
            provider: Some(ProviderKind::Vault),
            version: env!("CARGO_PKG_VERSION").into(),
            labels: [
                ("pool".to_owned(), pool.to_owned()),
                ("region".to_owned(), region.to_owned()),
            ]
            .into(),
            host: HostRecord {
                hostname: format!("{name}.example.org"),
                os: "linux".into(),
                arch: "x86_64".into(),
                kernel: "6.12.48".into(),
                cpus: 32,
                memory_bytes: 64 << 30,
            },
            certificate: CertificateRecord {
                serial: format!("{:016x}", serial * 0x0123_4567_89ab),
                sha256: format!("{:064x}", serial),
                not_after: (now - Duration::from_secs(ago) + Duration::from_secs(8 * HOUR)).into(),
            },
            at: (now - Duration::from_secs(ago)).into(),
        }))
    };
    let mut changes = Vec::new();
    for (n, (name, pool, region)) in (1_u64..).zip(names()) {
        for past in (1..6).rev() {
            changes.push(enrollment(
                &name,
                pool,
                region,
                past * 5 * HOUR + n * MINUTE,
                n * 10 + past,
            ));
        }
    }
    for n in 1..=5_u64 {
        let name = format!("edge-sin-{n:02}");
        changes.push(enrollment(&name, "edge", "sin", n * 20 * HOUR, n + 9000));
    }
    changes.push(Change::Revoked(
        RevocationTarget::Id(id("edge-sin-04").into()),
        Revocation {
            at: (now - Duration::from_secs(3 * HOUR)).into(),
            reason: "machine returned to the lessor".into(),
        },
    ));
    changes
}

fn seeded(host: &Host) {
    let database = format!("sqlite:{}", host.state().join("access-point.db").display());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = AnyStore::open(&database).await.unwrap();
        store.apply(&remembered()).await.unwrap();
    });
}

/// Enrolls all of the fleet, with certificates that end at all times, and has a few refused.
fn fleet(site: &Site) -> Vec<Process> {
    let lives = [
        8 * HOUR,
        40 * MINUTE,
        20 * HOUR,
        5 * HOUR,
        13 * MINUTE,
        3 * HOUR,
        6 * 24 * HOUR,
    ];
    let mut running = Vec::new();
    for (n, (name, pool, region)) in names().enumerate() {
        let life = Duration::from_secs(if n == 17 {
            4 * MINUTE
        } else {
            lives[n % lives.len()]
        });
        let from = SystemTime::now() - Duration::from_secs(30);
        let leaf = site.ca.leaf().spiffe(&id(&name));
        let leaf = leaf.valid_from(from).valid_for(life);
        let files = leaf.issue().write(&site.host.path(""), &name);
        let (pool, region) = (format!("pool={pool}"), format!("region={region}"));
        let labels = ["--label", &pool, "--label", &region];
        running.push(site.start_with(&files, &name, &labels));
    }
    running.iter().for_each(|process| {
        process.wait_for("enrolled");
    });
    let refused = |ca: &TestCa, spiffe: &str, life: Duration, name: &str| {
        let from = SystemTime::now() - Duration::from_secs(2 * HOUR);
        let leaf = ca.leaf().spiffe(spiffe).valid_from(from).valid_for(life);
        let files = leaf.issue().write(&site.host.path(""), name);
        site.start_with(&files, name, &["--once"]).wait();
    };
    let day = Duration::from_secs(24 * HOUR);
    let other = TestCa::new("example.org");
    refused(
        &site.ca,
        "spiffe://example.org/ah/agents/build-ams-15",
        day,
        "build-ams-15",
    );
    refused(&other, &id("laptop-7"), day, "laptop-7");
    refused(&site.ca, &id("edge-sin-04"), day, "edge-sin-04");
    refused(
        &site.ca,
        &id("test-sin-07"),
        Duration::from_secs(HOUR),
        "test-sin-07",
    );
    running
}

#[test]
fn pictures() {
    if std::env::var_os("AH_UPDATE_DOCS").is_none() {
        return;
    }
    let browser = Browser::start().expect("a browser");
    let site = Site::with(seeded);
    let _running = fleet(&site);
    crate::sign_in(&browser, &site);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let executor = format!(
        "/executors/{}",
        ah_fleet::access_point::path_segment(&id("gpu-fra-02"))
    );
    for (name, path, scheme, (width, height, phone)) in [
        ("dashboard-desktop", "/", "light", (1440, 900, false)),
        (
            "dashboard-tablet",
            executor.as_str(),
            "dark",
            (820, 1100, true),
        ),
        ("dashboard-phone", "/", "dark", (390, 800, true)),
    ] {
        browser.resize(width, height, phone);
        let feature = serde_json::json!({ "name": "prefers-color-scheme", "value": scheme });
        browser.devtools(
            "Emulation.setEmulatedMedia",
            &serde_json::json!({ "features": [feature] }),
        );
        browser.open(&site.dashboard(path));
        browser.wait("return document.querySelector('#live').dataset.state === 'on'");
        let picture = browser.picture();
        std::fs::write(folder.join(format!("{name}.png")), picture).unwrap();
    }
}
