use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ah_testkit::child;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey,
    VerificationAlgorithm,
};

use super::*;

mod aws_kms;
mod azure_key_vault;
mod cloud;
mod gcp_kms;
mod pkcs11;
mod transit;

const ALL: [(KeyType, &dyn VerificationAlgorithm); 4] = [
    (KeyType::Rsa2048, &RSA_PKCS1_2048_8192_SHA256),
    (KeyType::Rsa4096, &RSA_PKCS1_2048_8192_SHA256),
    (KeyType::EcP256, &ECDSA_P256_SHA256_ASN1),
    (KeyType::EcP384, &ECDSA_P384_SHA384_ASN1),
];

/// What every key manager has to do.
async fn conforms(manager: &impl KeyManager) {
    assert!(manager.key("k").await.unwrap().is_none());
    assert!(manager.keys().await.unwrap().is_empty());
    for (kind, verifier) in ALL {
        let key = manager.generate_key("k", kind).await.unwrap();
        assert_eq!((key.id(), key.key_type()), ("k", kind));
        let signature = key.sign(b"message").unwrap();
        UnparsedPublicKey::new(verifier, key.spki())
            .verify(b"message", &signature)
            .unwrap();
        // The new key stands in the old one's place.
        let found = manager.key("k").await.unwrap().unwrap();
        assert_eq!(found.spki(), key.spki());
    }
    manager.generate_key("a", KeyType::EcP256).await.unwrap();
    let keys = manager.keys().await.unwrap();
    let ids: Vec<_> = keys.iter().map(|key| key.id()).collect();
    assert_eq!(ids, ["a", "k"]);
    assert!(!format!("{:?}", keys[0]).contains("spki"));
}

fn public(keys: &[Arc<dyn SigningKey>]) -> Vec<Vec<u8>> {
    keys.iter().map(|key| key.spki().to_vec()).collect()
}

#[tokio::test]
async fn keys_in_memory() {
    conforms(&MemoryKeys::default()).await;
}

#[tokio::test]
async fn keys_on_disk_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.json");
    let keys = DiskKeys::open(&path).unwrap();
    conforms(&keys).await;
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let again = DiskKeys::open(&path).unwrap();
    assert_eq!(
        public(&again.keys().await.unwrap()),
        public(&keys.keys().await.unwrap())
    );
    // Nothing beside it.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

// A file that upstream 1.14.1 wrote with ca_key_type ec-p256 and jwt_key_type rsa-2048, and its layout.
#[tokio::test]
async fn a_file_of_upstream_is_read_and_written_alike() {
    const UPSTREAM: &str = include_str!("../../tests/fixtures/upstream-keys.json");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.json");
    std::fs::write(&path, UPSTREAM).unwrap();
    let keys = DiskKeys::open(&path).unwrap();
    let found = keys.keys().await.unwrap();
    let found: Vec<_> = found.iter().map(|key| (key.id(), key.key_type())).collect();
    assert_eq!(
        found,
        [
            ("JWT-Signer-A", KeyType::Rsa2048),
            ("x509-CA-A", KeyType::EcP256)
        ]
    );
    keys.generate_key("x509-CA-B", KeyType::EcP256)
        .await
        .unwrap();
    let written = std::fs::read_to_string(&path).unwrap();
    let shape = |text: &str| -> Vec<String> {
        text.lines()
            .map(|line| {
                line.split_once("\": \"")
                    .map_or(line, |(name, _)| name)
                    .to_owned()
            })
            .collect()
    };
    let mut expected = shape(UPSTREAM);
    expected.insert(4, "\t\t\"x509-CA-B".into());
    assert_eq!(shape(&written), expected);
}

#[test]
fn what_is_no_file_of_keys_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.json");
    let open = |content: &str| {
        std::fs::write(&path, content).unwrap();
        DiskKeys::open(&path).map(|_| ()).unwrap_err().to_string()
    };
    assert!(open("").contains("unable to decode keys JSON"));
    assert!(open("{\"keys\": 5}").contains("unable to decode keys JSON"));
    assert!(open("{\"keys\": {\"a\": \"?\"}}").contains("unable to parse key \"a\""));
    assert!(open("{\"keys\": {\"a\": \"AAAA\"}}").contains("key \"a\" is damaged"));
    assert!(open(&" ".repeat(1 << 21)).contains("larger than 1 MiB"));
    for good in ["{}", "{\"keys\": null}", "{\"keys\": {}}"] {
        std::fs::write(&path, good).unwrap();
        assert!(DiskKeys::open(&path).is_ok(), "{good}");
    }
    let error = DiskKeys::open(dir.path()).map(|_| ()).unwrap_err();
    assert!(error.to_string().starts_with("cannot read "), "{error}");
}

// The child may not make a file longer than nothing: a full disk that needs no mount and no root.
#[tokio::test]
async fn a_full_disk_leaves_the_old_key() {
    if let Some(path) = child::argument() {
        let keys = DiskKeys::open(Path::new(&path)).unwrap();
        let old = keys.key("k").await.unwrap().unwrap();
        let error = keys.generate_key("k", KeyType::EcP256).await.err().unwrap();
        assert!(matches!(error, KeyError::Storage(_)), "{error}");
        let kept = keys.key("k").await.unwrap().unwrap();
        assert_eq!(kept.spki(), old.spki());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.json");
    let keys = DiskKeys::open(&path).unwrap();
    keys.generate_key("k", KeyType::EcP256).await.unwrap();
    let before = std::fs::read(&path).unwrap();
    let name = "keys::tests::a_full_disk_leaves_the_old_key";
    let child = child::command_with_file_limit(0, name, &path)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success() && told.contains("1 passed"),
        "{told}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

// kill -9 between writing and renaming leaves a file beside it.
#[tokio::test]
async fn what_a_killed_process_left_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.json");
    let beside = dir.path().join("keys.json.tmp");
    std::fs::write(&beside, "{\"keys\": {\"k\": \"MIG").unwrap();
    let keys = DiskKeys::open(&path).unwrap();
    assert!(keys.keys().await.unwrap().is_empty());
    keys.generate_key("k", KeyType::EcP256).await.unwrap();
    assert!(!beside.exists());
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
}
