//! An access point and executors whose identities come from one realm of a real server.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;

use ah_testkit::openbao::{AppRole, OpenBao, Realm};
use ah_testkit::process::{AccessPoint, Host, Process, access_point_args, eventually};
use serde_json::Value;

use crate::kit::host;

/// Attempts of one request that follow each other fast: the test is the one who waits.
pub(crate) const IMPATIENT: [&str; 4] = ["--vault-retry-max", "1", "--vault-retry-delay", "50ms"];

/// One machine with its realm.
pub(crate) struct Fleet {
    pub(crate) host: Host,
    pub(crate) realm: Realm,
    pub(crate) bao: Arc<OpenBao>,
}

impl Fleet {
    /// On the server that all tests share. `None` where OpenBao is not installed.
    pub(crate) fn begin() -> Option<Self> {
        Some(Self::on(OpenBao::shared()?))
    }

    /// On this server.
    pub(crate) fn on(bao: Arc<OpenBao>) -> Self {
        Self::of(Realm::new(&bao), bao)
    }

    /// With this realm of that server.
    pub(crate) fn of(realm: Realm, bao: Arc<OpenBao>) -> Self {
        Self {
            realm,
            host: host(),
            bao,
        }
    }

    /// The access point's credentials in the environment, its names as flags, and HTTP.
    pub(crate) fn access_point(&self, more: &[&str]) -> AccessPoint {
        let credentials = self.realm.credentials(&self.bao, "access-point");
        self.access_point_by(self.bao.url(), &credentials, more)
    }

    /// As [`Self::access_point`], with Vault at `url` and these credentials.
    pub(crate) fn access_point_by(
        &self,
        url: &str,
        credentials: &AppRole,
        more: &[&str],
    ) -> AccessPoint {
        let path = self.realm.issue("access-point");
        let mut args = vec!["--server-identity", "vault", "--vault-pki-path", &path];
        args.extend(["--vault-cert-cn", "access-point.example.com"]);
        args.extend([
            "--vault-cert-san-dns",
            "localhost",
            "--vault-cert-san-ip",
            "127.0.0.1",
        ]);
        args.extend(["--http-listen", "127.0.0.1:0"]);
        args.extend([
            "--executor-san-uri-prefix",
            "spiffe://example.org/ah/agent/",
        ]);
        args.extend(["--vault-auth-mount", &self.realm.approle]);
        args.extend(IMPATIENT);
        args.extend(more);
        let mut command = self.host.command(access_point_args(&args));
        AccessPoint::start(with(&mut command, url, Some(credentials)), &args)
    }

    /// `ah agent enroll` with Vault at `url`: its names and credentials, if any.
    pub(crate) fn enroll(
        &self,
        url: &str,
        credentials: Option<&AppRole>,
        server: SocketAddr,
        name: &str,
        more: &[&str],
    ) -> Command {
        let server = format!("https://{server}");
        let path = self.realm.issue("executor");
        let (common_name, uri) = (format!("{name}.example.com"), id(name));
        let mut args = vec![
            "agent",
            "enroll",
            "--remote-server",
            &server,
            "--identity",
            "vault",
        ];
        args.extend(["--name", name]);
        if !more.contains(&"--vault-pki-path") {
            args.extend(["--vault-pki-path", &path]);
        }
        args.extend([
            "--vault-cert-cn",
            &common_name,
            "--vault-cert-san-uri",
            &uri,
        ]);
        if !more.contains(&"--vault-retry-max") {
            args.extend(IMPATIENT);
        }
        if credentials.is_some() || more.contains(&"--vault-secret-id-file") {
            args.extend(["--vault-auth-mount", &self.realm.approle]);
        }
        args.extend(more);
        let mut command = self.host.command(args);
        with(&mut command, url, credentials);
        command
    }

    /// Starts an executor with credentials of its own.
    pub(crate) fn executor(&self, server: SocketAddr, name: &str, more: &[&str]) -> Process {
        let credentials = self.realm.credentials(&self.bao, "executor");
        Process::start(&mut self.enroll(self.bao.url(), Some(&credentials), server, name, more))
    }

    /// `ah agent status --json`.
    pub(crate) fn status(&self, name: &str) -> Value {
        let shown = self.host.run(["agent", "status", "--json", "--name", name]);
        serde_json::from_str(&shown.stdout).unwrap_or(Value::Null)
    }

    /// Waits until the status of `name` tells of this trouble with the identity, while it is enrolled.
    #[track_caller]
    pub(crate) fn troubled(&self, name: &str, text: &str) -> Value {
        let status = eventually(text, || {
            let status = self.status(name);
            let told = status["identity_error"]["error"]["text"]
                .as_str()
                .unwrap_or_default();
            told.starts_with(text).then_some(status)
        });
        assert_eq!(
            status["enrolled"], true,
            "the last good identity serves on: {status}"
        );
        let hint = status["identity_error"]["error"]["hint"].as_str();
        assert!(hint.is_some_and(|hint| !hint.is_empty()), "{status}");
        status
    }

    /// Waits until `name` has a new certificate, is enrolled with it, and no trouble is told.
    #[track_caller]
    pub(crate) fn recovered(&self, name: &str, since: &Value) -> Value {
        eventually("a new certificate, in use", || {
            let status = self.status(name);
            let healed = status["enrolled"] == true && status["identity_error"].is_null();
            let renewed = status["rotations"].as_u64()? > since["rotations"].as_u64()?;
            (healed && renewed).then_some(status)
        })
    }
}

/// SPIFFE ID of the executor `name`.
pub(crate) fn id(name: &str) -> String {
    format!("spiffe://example.org/ah/agent/{name}")
}

/// Vault's address and credentials in the environment, as the guide advises.
fn with<'a>(command: &'a mut Command, url: &str, credentials: Option<&AppRole>) -> &'a mut Command {
    command.env("VAULT_ADDR", url);
    if let Some(AppRole { role_id, secret_id }) = credentials {
        command
            .env("VAULT_ROLE_ID", role_id)
            .env("VAULT_SECRET_ID", secret_id);
    }
    command
}
