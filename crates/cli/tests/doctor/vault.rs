//! Set-ups with the Vault identity that are broken, at a real server.

use std::sync::Arc;

use ah_testkit::ca::TestCa;
use ah_testkit::openbao::{AppRole, Fault, Listen, OpenBao, Proxy, Realm};
use serde_json::json;

use crate::site::{EXECUTOR_ID, Site, Skip, server_leaf, set_ups, strings, unused_address};

/// A realm of its own on a server, and an access point beside it that trusts its authority.
struct Vault {
    bao: Arc<OpenBao>,
    realm: Realm,
}

impl Vault {
    /// On the server that all tests share.
    fn shared(site: &mut Site) -> Result<Self, Skip> {
        Ok(Self::on(OpenBao::shared().ok_or(Skip)?, site))
    }

    /// On a server of its own.
    fn own(site: &mut Site) -> Result<Self, Skip> {
        Ok(Self::on(Arc::new(OpenBao::dev().ok_or(Skip)?), site))
    }

    /// The doctor is to be asked about an executor with an AppRole there, and all is well.
    fn on(bao: Arc<OpenBao>, site: &mut Site) -> Self {
        let vault = Self::new(bao);
        let root = vault.bao.read(&format!("{}/cert/ca", vault.realm.pki));
        site.server.ca = site.host.path("vault-root.pem");
        let root = root["data"]["certificate"].as_str().unwrap();
        std::fs::write(&site.server.ca, root).unwrap();
        site.listen(&[]);
        vault.asked_by(site);
        vault
    }

    fn new(bao: Arc<OpenBao>) -> Self {
        let realm = Realm::new(&bao);
        Self { bao, realm }
    }

    /// The executor has an AppRole there.
    fn asked_by(&self, site: &mut Site) {
        self.executor_at(site, self.bao.url());
        with(site, &self.realm.credentials(&self.bao, "executor"));
        site.keep(Arc::clone(&self.bao));
    }

    /// The executor asks Vault at `url`.
    fn executor_at(&self, site: &mut Site, url: &str) {
        asks(site, url, &self.realm.issue("executor"));
        let mount = self.realm.approle.as_str();
        site.flags = strings(&["--vault-auth-mount", mount]);
    }
}

/// The executor asks Vault at `url` for a certificate by `path`.
fn asks(site: &mut Site, url: &str, path: &str) {
    let ca = site.executor.ca.display().to_string();
    let identity = [
        "--identity",
        "vault",
        "--name",
        "executor-1",
        "--vault-addr",
        url,
        "--vault-pki-path",
        path,
        "--vault-cert-cn",
        "executor-1.example.com",
        "--vault-cert-san-uri",
        EXECUTOR_ID,
        "--ca",
        &ca,
    ];
    site.identity = Some(strings(&identity));
}

/// Credentials in the environment, as the guide advises.
fn with(site: &mut Site, credentials: &AppRole) {
    let AppRole { role_id, secret_id } = credentials.clone();
    site.env = vec![
        ("VAULT_ROLE_ID".into(), role_id),
        ("VAULT_SECRET_ID".into(), secret_id),
    ];
}

/// For set-ups in which nobody gets as far as to look at them.
fn no_credentials() -> AppRole {
    let any = "3f1b6f4c-0000-0000-0000-000000000000".to_owned();
    AppRole {
        role_id: any.clone(),
        secret_id: any,
    }
}

/// Something that stands before Vault.
fn proxy(site: &mut Site, fault: Fault) -> Result<(), Skip> {
    let vault = Vault::shared(site)?;
    let proxy = Proxy::before(vault.bao.url());
    proxy.set(fault, "");
    vault.executor_at(site, &proxy.url());
    site.keep(proxy);
    Ok(())
}

// VA-3, ER-13 to ER-19, ER-24
set_ups! {
    vault_that_does_not_run: |site| {
        site.listen(&[]);
        asks(site, &format!("http://{}", unused_address()), "pki_int/issue/executor");
        with(site, &no_credentials());
        Ok(())
    } => "vault", ["failed to connect to vault: connection refused", "the address is http://127.0.0.1:"];

    vault_whose_tls_has_another_authority: |site| {
        let ca = TestCa::new("vault.example.org");
        let files = server_leaf(&ca).write(&site.host.path(""), "vault");
        let tls = [files.cert, files.key, ca.write(&site.host.path(""), "vault-ca")];
        let bao = OpenBao::raft(&Listen { tls: Some(tls), ..Listen::default() }).ok_or(Skip)?;
        site.listen(&[]);
        asks(site, bao.url(), "pki_int/issue/executor");
        with(site, &no_credentials());
        // That of the executors is another.
        let other = site.executor.ca.display().to_string();
        site.flags = strings(&["--vault-ca", &other]);
        site.keep(bao);
        Ok(())
    } => "vault", ["failed to connect to vault: certificate signed by unknown authority"];

    vault_behind_a_gateway_that_gets_no_answer: |site| {
        proxy(site, Fault::Status(502, "<html>Bad Gateway</html>".into()))
    } => "vault", ["vault cannot answer now: its gateway got no answer (HTTP 502)"];

    vault_that_is_a_web_server: |site| {
        proxy(site, Fault::Status(404, "<html>Not Found</html>".into()))
    } => "vault", ["vault refused: ", "the address is http://127.0.0.1:"];

    vault_that_is_a_web_server_which_likes_every_path: |site| {
        proxy(site, Fault::Status(200, "<html>Welcome</html>".into()))
    } => "vault", [];

    vault_that_hangs_up: |site| {
        proxy(site, Fault::Closed)
    } => "vault", ["vault gave no answer: "];

    vault_that_is_sealed: |site| {
        let vault = Vault::own(site)?;
        vault.bao.seal();
        Ok(())
    } => "vault-seal", ["vault is sealed"];

    vault_with_another_secret_id: |site| {
        let vault = Vault::shared(site)?;
        let mut credentials = vault.realm.credentials(&vault.bao, "executor");
        credentials.secret_id = no_credentials().secret_id;
        with(site, &credentials);
        Ok(())
    } => "vault-login", ["vault authentication failed: invalid role or secret ID"];

    vault_with_a_secret_id_that_is_spent: |site| {
        let vault = Vault::shared(site)?;
        vault.realm.app_role(&vault.bao, "executor", json!({"secret_id_num_uses": 1}));
        let credentials = vault.realm.credentials(&vault.bao, "executor");
        let AppRole { role_id, secret_id } = &credentials;
        let login = json!({"role_id": role_id, "secret_id": secret_id});
        vault.bao.write(&format!("auth/{}/login", vault.realm.approle), login);
        with(site, &credentials);
        Ok(())
    } => "vault-login", ["vault authentication failed: invalid role or secret ID"];

    vault_with_a_token_that_never_was: |site| {
        Vault::shared(site)?;
        let file = site.host.path("token");
        std::fs::write(&file, "s.never-was").unwrap();
        site.env.clear();
        site.flags = strings(&["--vault-token-file", &file.display().to_string()]);
        Ok(())
    } => "vault-login", ["vault authentication failed: "];

    vault_with_a_token_file_that_is_not_there: |site| {
        Vault::shared(site)?;
        site.env.clear();
        site.flags = strings(&["--vault-token-file", "/nonexistent/token"]);
        Ok(())
    } => "vault-login", ["no such file: /nonexistent/token"];

    vault_whose_policy_is_missing: |site| {
        let vault = Vault::shared(site)?;
        vault.bao.delete(&format!("sys/policies/acl/{}", vault.realm.policy_name("executor")));
        Ok(())
    } => "vault-policy", ["permission denied for path pki-"];

    vault_whose_role_is_missing: |site| {
        let vault = Vault::shared(site)?;
        vault.bao.delete(&format!("{}/roles/executor", vault.realm.pki));
        Ok(())
    } => "vault-role", ["failed to issue certificate: 1 error occurred: * unknown role"];

    vault_whose_role_is_for_other_names: |site| {
        let vault = Vault::shared(site)?;
        let elsewhere = json!({"allowed_domains": "elsewhere.example.org"});
        vault.realm.pki_role(&vault.bao, "executor", elsewhere);
        Ok(())
    } => "vault-role", [
        "failed to issue certificate: 1 error occurred: * ",
        "common name not in allowed domains",
        "executor-1.example.com",
    ];

    vault_whose_role_is_for_other_ids: |site| {
        let vault = Vault::shared(site)?;
        let other = json!({"allowed_uri_sans": "spiffe://example.org/other/*"});
        vault.realm.pki_role(&vault.bao, "executor", other);
        Ok(())
    } => "vault-role", ["failed to issue certificate: 1 error occurred: * ", "a SAN is outside what the role allows"];

    vault_whose_authority_the_access_point_does_not_trust: |site| {
        // As at a site that has only begun to move to Vault.
        site.listen(&[]);
        Vault::new(OpenBao::shared().ok_or(Skip)?).asked_by(site);
        Ok(())
    } => "client-certificate", ["client certificate rejected: certificate signed by unknown authority"];
}

#[test]
fn a_vault_site_that_works_and_whose_one_time_secret_id_is_left_to_the_executor() {
    // VA-4, VA-15: what the doctor logged in with is in the token cache, so that the executor can begin.
    let mut site = Site::new();
    let Ok(vault) = Vault::shared(&mut site) else {
        return;
    };
    let once = json!({"secret_id_num_uses": 1});
    vault.realm.app_role(&vault.bao, "executor", once);
    with(&mut site, &vault.realm.credentials(&vault.bao, "executor"));

    site.flags.push("--no-vault-token-cache".into());
    let report = site.doctor();
    assert_eq!(report.verdict("vault-seal"), "pass", "{report:#?}");
    assert_eq!(report.verdict("vault-login"), "skip", "{report:#?}");
    assert_eq!(vault.realm.logins(&vault.bao).0, 0, "nothing was spent");
    site.flags.pop();

    let report = site.doctor();
    report.is_well_but(&[]);
    for name in [
        "vault",
        "vault-seal",
        "vault-login",
        "vault-policy",
        "vault-role",
        "key",
        "access-point",
    ] {
        assert_eq!(report.verdict(name), "pass", "{name}: {report:#?}");
    }
    report.is_told_of_in_the_document();

    let executor = site.enroll(&[]);
    executor.wait_for(" enrolled executor.id=");
    assert_eq!(vault.realm.logins(&vault.bao), (1, 1), "one for all");
    let report = site.doctor();
    assert_eq!(report.verdict("executor"), "pass", "{report:#?}");
    assert_eq!(report.verdict("rotation"), "pass", "{report:#?}");
}
