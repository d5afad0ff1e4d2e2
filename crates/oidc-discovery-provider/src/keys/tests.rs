use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::*;

/// RFC 7515 appendix A.3
const X: &str = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
const Y: &str = "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0";

fn key(kid: &str, usage: &str) -> Value {
    json!({"use": usage, "kty": "EC", "kid": kid, "crv": "P-256", "x": X, "y": Y})
}

fn write(path: &Path, keys: &[Value]) {
    fs::write(path, json!({"keys": keys}).to_string()).unwrap();
}

fn document(known: &Known) -> Value {
    let keys = known.keys.as_ref().unwrap();
    serde_json::from_slice(keys.document.as_ref().unwrap()).unwrap()
}

// Inventory section 11: `file { path }`
#[tokio::test]
async fn the_last_good_keys_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle.json");
    let mut poller = Poller::new(OidcKeys::File(path.clone()), Duration::from_secs(1), false);
    let known = poller.known();
    let now = || known.borrow().clone();

    poller.look().await;
    let missing = now();
    assert!(missing.keys.is_none() && missing.looked.is_none());
    assert!(missing.fault.unwrap().contains("bundle.json: No such file"));

    write(&path, &[key("one", "jwt-svid"), key("ignored", "sig")]);
    poller.look().await;
    let first = now();
    assert_eq!(first.fault, None);
    let one = json!({"keys": [
        {"kty": "EC", "kid": "one", "crv": "P-256", "alg": "ES256", "x": X, "y": Y}]});
    assert_eq!(document(&first), one);

    poller.look().await;
    let same = now();
    assert!(same.looked > first.looked);
    assert_eq!(same.keys.unwrap().since, first.keys.as_ref().unwrap().since);

    fs::write(&path, "{").unwrap();
    poller.look().await;
    let broken = now();
    assert!(broken.fault.as_ref().unwrap().contains("bundle.json: EOF"));
    assert_eq!(broken.looked, same.looked);
    assert_eq!(document(&broken), one);

    write(&path, &[key("two", "jwt-svid"), key("one", "jwt-svid")]);
    poller.look().await;
    let second = now();
    assert_eq!(second.fault, None);
    let kids: Vec<_> = document(&second)["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| key["kid"].clone())
        .collect();
    assert_eq!(kids, ["two", "one"]);

    write(&path, &[]);
    poller.look().await;
    assert!(now().keys.unwrap().document.is_none());
}

// Inventory section 11: `set_key_use`
#[tokio::test]
async fn use_is_told_when_it_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle.json");
    write(&path, &[key("one", "jwt-svid")]);
    let mut poller = Poller::new(OidcKeys::File(path), Duration::from_secs(1), true);
    let known = poller.known();
    poller.look().await;
    assert_eq!(document(&known.borrow())["keys"][0]["use"], "sig");
}
