//! Namespaces: Vault Enterprise's, and OpenBao's own (VA-8).

use ah_testkit::openbao::{OpenBao, Realm};
use ah_testkit::process::{Process, eventually};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::fleet::{Fleet, id};
use crate::kit::failed;

// VA-8, ER-13: everything is asked in the namespace, by variable or flag; outside of it nothing is found.
#[test]
fn va_8_everything_happens_in_the_namespace() {
    let Some(bao) = OpenBao::shared() else {
        return;
    };
    // One below another, as teams have them.
    bao.write("sys/namespaces/agents", json!({}));
    bao.write("agents/sys/namespaces/team", json!({}));
    let realm = Realm::within(&bao, "agents/team/");
    // Short tokens, so that they are renewed there as well.
    let role = json!({"token_ttl": "2s", "token_max_ttl": "1h"});
    realm.app_role(&bao, "executor", role);
    let fleet = Fleet::of(realm, bao);
    let access_point = fleet.access_point(&["--vault-namespace", "agents/team"]);
    let credentials = fleet.realm.credentials(&fleet.bao, "executor");
    let enroll = |name: &str, more: &[&str]| {
        let server = access_point.address;
        fleet.enroll(fleet.bao.url(), Some(&credentials), server, name, more)
    };
    let mut command = enroll("one", &[]);
    command.env("VAULT_NAMESPACE", "agents/team/");
    let executor = Process::start(&mut command);
    executor.wait_for(&format!(" enrolled executor.id={} ", id("one")));
    let before = fleet.status("one");
    let policy = fleet.realm.policy_name("executor");
    eventually("the token is renewed", || {
        let all = fleet.bao.requests("auth/token/renew-self");
        let ours = all
            .iter()
            .find(|line| line["auth"]["token_policies"].to_string().contains(&policy))?;
        assert!(ours["error"].is_null(), "{ours}");
        assert_eq!(ours["request"]["namespace"]["path"], "agents/team/");
        Some(())
    });
    executor.signal(Signal::SIGHUP);
    fleet.recovered("one", &before);

    // Elsewhere there is no such mount.
    for (namespace, fact) in [("agents", "the namespace is agents"), ("", "approle")] {
        let mut command = enroll("two", &["--once", "--no-vault-token-cache"]);
        command.env("VAULT_NAMESPACE", namespace);
        let told = failed(&command.output().unwrap().into(), 1);
        assert!(
            told.text.starts_with("vault authentication failed: "),
            "{told:?}"
        );
        assert!(
            told.causes.iter().any(|cause| cause.contains(fact)),
            "no {fact}: {told:?}"
        );
    }
}
