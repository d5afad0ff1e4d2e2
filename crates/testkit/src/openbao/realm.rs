//! A test's own part of a shared server.

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use super::{OpenBao, text};

/// A PKI mount, policies and AppRoles as the guide sets them up, under names that no other test uses.
///
/// There is one authority instead of two, with keys that are quick to make, and the roles admit the names that
/// the guide's own command lines ask for.
pub struct Realm {
    /// The PKI mount, `pki-3`.
    pub pki: String,
    /// The AppRole mount, `approle-3`.
    pub approle: String,
    /// What the names of its policies end with, `-3`.
    pub suffix: String,
    /// What its paths begin with: its namespace, `team-3/`, or nothing.
    within: String,
}

/// What `--vault-role-id` and `--vault-secret-id` take.
#[derive(Clone)]
pub struct AppRole {
    /// Not secret.
    pub role_id: String,
    /// Secret.
    pub secret_id: String,
}

/// The two roles there are.
pub const ROLES: [&str; 2] = ["access-point", "executor"];

impl Realm {
    /// A new one on `bao`.
    pub fn new(bao: &OpenBao) -> Self {
        Self::within(bao, "")
    }

    /// A new one in the namespace `within`, which is there, as in `team/`.
    pub fn within(bao: &OpenBao, within: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let realm = Self {
            pki: format!("pki-{number}"),
            approle: format!("approle-{number}"),
            suffix: format!("-{number}"),
            within: within.to_owned(),
        };
        bao.write(
            &realm.path(&format!("sys/mounts/{}", realm.pki)),
            json!({"type": "pki", "config": {"max_lease_ttl": "87600h"}}),
        );
        let root =
            json!({"common_name": "Agent Harbor Root CA", "ttl": "87600h", "key_type": "ec"});
        let generate = format!("{}/root/generate/internal", realm.pki);
        bao.write(&realm.path(&generate), root);
        bao.write(
            &realm.path(&format!("sys/auth/{}", realm.approle)),
            json!({"type": "approle"}),
        );
        for role in ROLES {
            realm.pki_role(bao, role, json!({}));
            realm.policy(bao, role);
            realm.app_role(bao, role, json!({}));
        }
        realm
    }

    /// `path` from the root namespace.
    fn path(&self, path: &str) -> String {
        format!("{}{path}", self.within)
    }

    /// Writes a PKI role with `other` settings than the guide's.
    pub fn pki_role(&self, bao: &OpenBao, role: &str, other: Value) {
        let mut settings = match role {
            "access-point" => json!({
                "allowed_domains": "access-point.example.com,localhost",
                "allow_bare_domains": true,
                "allow_subdomains": true,
                "allow_localhost": true,
                "max_ttl": "72h",
                "ext_key_usage": "ServerAuth",
                "allowed_uri_sans": "spiffe://example.org/ah/serve",
            }),
            _ => json!({
                "allowed_domains": "example.com",
                "allow_subdomains": true,
                "max_ttl": "24h",
                "ext_key_usage": "ClientAuth",
                "allowed_uri_sans": "spiffe://example.org/ah/agent/*",
            }),
        };
        settings["key_type"] = json!("ec");
        settings["key_bits"] = json!(256);
        settings["key_usage"] = json!("DigitalSignature,KeyEncipherment");
        merge(&mut settings, other);
        let path = format!("{}/roles/{role}", self.pki);
        bao.write(&self.path(&path), settings);
    }

    /// Writes the guide's policy for `role`.
    pub fn policy(&self, bao: &OpenBao, role: &str) {
        let pki = &self.pki;
        let policy = format!(
            "path \"{pki}/issue/{role}\" {{ capabilities = [\"create\", \"update\"] }}\npath \"{pki}/cert/ca\" {{ capabilities = [\"read\"] }}"
        );
        bao.write(
            &self.path(&format!("sys/policies/acl/{}", self.policy_name(role))),
            json!({"policy": policy}),
        );
    }

    /// The name of that policy.
    pub fn policy_name(&self, role: &str) -> String {
        format!("ah-{role}{}", self.suffix)
    }

    /// Writes an AppRole with `other` settings than the guide's.
    pub fn app_role(&self, bao: &OpenBao, role: &str, other: Value) {
        let mut settings = json!({
            "token_policies": self.policy_name(role),
            "token_ttl": "1h",
            "token_max_ttl": "4h",
            "secret_id_ttl": "720h",
        });
        merge(&mut settings, other);
        let path = format!("auth/{}/role/{role}", self.approle);
        bao.write(&self.path(&path), settings);
    }

    /// A role id and a new secret id.
    pub fn credentials(&self, bao: &OpenBao, role: &str) -> AppRole {
        let path = self.path(&format!("auth/{}/role/{role}", self.approle));
        let role_id = &bao.read(&format!("{path}/role-id"))["data"]["role_id"];
        let secret_id = &bao.write(&format!("{path}/secret-id"), json!({}))["data"]["secret_id"];
        AppRole {
            role_id: text(role_id),
            secret_id: text(secret_id),
        }
    }

    /// `--vault-pki-path` of `role`.
    pub fn issue(&self, role: &str) -> String {
        format!("{}/issue/{role}", self.pki)
    }

    /// How often anybody asked to log in here, and how often with success.
    pub fn logins(&self, bao: &OpenBao) -> (usize, usize) {
        let all = bao.requests(&format!("auth/{}/login", self.approle));
        (all.len(), all.iter().filter(|login| granted(login)).count())
    }

    /// How many certificates were asked for under `role`, and how many given.
    pub fn issued(&self, bao: &OpenBao, role: &str) -> (usize, usize) {
        let all = bao.requests(&self.issue(role));
        (all.len(), all.iter().filter(|issue| granted(issue)).count())
    }
}

/// Whether this line of the audit log says that the request got what it asked for. A request that the mount refuses
/// has its error in the response alone.
fn granted(line: &Value) -> bool {
    line["error"].is_null() && line["response"]["data"]["error"].is_null()
}

fn merge(into: &mut Value, other: Value) {
    if let (Some(into), Value::Object(other)) = (into.as_object_mut(), other) {
        into.extend(other);
    }
}
