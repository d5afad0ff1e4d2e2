//! `pebble`, the ACME server that Let's Encrypt tests clients with.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tempfile::TempDir;

use crate::ca::TestCa;
use crate::process::{Finished, Process};

/// A running ACME server. It looks for proofs at one port of the names that are ordered, by this machine's own names.
pub struct Pebble {
    process: Process,
    folder: TempDir,
    api: u16,
    management: u16,
    issuing_root: String,
}

impl Pebble {
    /// Starts one that looks at `tls_port` and issues certificates for `life`. `None` without Go or the module.
    pub fn start(tls_port: u16, life: Duration) -> Option<Self> {
        let program = crate::go::peer("github.com/letsencrypt/pebble/v2/cmd/pebble", "pebble")?;
        let folder = tempfile::tempdir().expect("a temporary directory");
        let ca = TestCa::new("pebble");
        ca.write(folder.path(), "roots");
        let leaf = ca
            .leaf()
            .dns("localhost")
            .issue()
            .write(folder.path(), "api");
        let [api, management] = free_ports();
        let config = format!(
            r#"{{"pebble": {{
                "listenAddress": "127.0.0.1:{api}", "managementListenAddress": "127.0.0.1:{management}",
                "certificate": {:?}, "privateKey": {:?}, "httpPort": 1, "tlsPort": {tls_port},
                "retryAfter": {{"authz": 1, "order": 1}}, "keyAlgorithm": "ecdsa",
                "profiles": {{"default": {{"description": "all", "validityPeriod": {}}}}} }}}}"#,
            leaf.cert,
            leaf.key,
            life.as_secs()
        );
        let path = folder.path().join("config.json");
        std::fs::write(&path, config).expect("its configuration");
        let process = Process::start(
            Command::new(program)
                .arg("-config")
                .arg(path)
                .env("PEBBLE_VA_NOSLEEP", "1"),
        );
        process.wait_for("ACME directory available at");
        let mut pebble = Self {
            process,
            folder,
            api,
            management,
            issuing_root: String::new(),
        };
        pebble.issuing_root = pebble.managed("roots/0");
        Some(pebble)
    }

    /// Of its directory.
    pub fn directory_url(&self) -> String {
        format!("https://localhost:{}/dir", self.api)
    }

    /// The file of the roots that its API is verified by, for `SSL_CERT_FILE`.
    pub fn api_roots_file(&self) -> PathBuf {
        self.folder.path().join("roots.pem")
    }

    /// What that file holds.
    pub fn api_roots(&self) -> Vec<CertificateDer<'static>> {
        let pem = std::fs::read(self.api_roots_file()).expect("the roots");
        parsed(&pem)
    }

    /// The roots of the certificates that it issues, as PEM.
    pub fn issuing_root_pem(&self) -> &str {
        &self.issuing_root
    }

    /// The same.
    pub fn issuing_roots(&self) -> Vec<CertificateDer<'static>> {
        parsed(self.issuing_root.as_bytes())
    }

    /// How many orders were made.
    pub fn orders(&self) -> usize {
        self.process.count("Added order")
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    fn managed(&self, path: &str) -> String {
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--fail",
            "--retry",
            "20",
            "--retry-connrefused",
            "--cacert",
        ])
        .arg(self.api_roots_file())
        .arg(format!("https://localhost:{}/{path}", self.management));
        let told = Finished::from(curl.output().expect("curl runs"));
        assert_eq!(told.code, 0, "{told:?}");
        told.stdout
    }
}

fn parsed(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    let parsed: Result<_, _> = CertificateDer::pem_slice_iter(pem).collect();
    parsed.expect("certificates")
}

fn free_ports() -> [u16; 2] {
    let bound = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    bound.map(|listener| listener.local_addr().expect("its address").port())
}
