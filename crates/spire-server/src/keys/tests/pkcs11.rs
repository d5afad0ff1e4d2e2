//! `pkcs11` with SoftHSM. Where its tokens are is told by the environment, so each test is a process of its own.

use std::fs;
use std::path::PathBuf;

use ah_testkit::process::eventually;
use ah_testkit::softhsm::SoftHsm;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11 as Module};
use cryptoki::object::{Attribute, AttributeInfo, AttributeType, ObjectClass};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;

use super::*;

const PIN: &str = "4711-0815";

/// Runs the test `name` as a child with tokens of its own: `ah` and `other`, and the PIN in a file. In the child it
/// returns the folder of that.
fn tokens(name: &str) -> Option<PathBuf> {
    if let Some(folder) = child::argument() {
        return Some(folder.into());
    }
    let hsm = SoftHsm::new()?;
    hsm.token("ah", PIN);
    hsm.token("other", PIN);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("pin"), format!("{PIN}\n")).unwrap();
    std::os::unix::fs::symlink(hsm.tokens(), folder.path().join("tokens")).unwrap();
    let name = format!("keys::tests::pkcs11::{name}");
    let mut child = child::command(&name, folder.path());
    let child = child
        .env("SOFTHSM2_CONF", hsm.conf())
        .env("PIN_OF_TEST", PIN)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success() && told.contains("1 passed"),
        "{told}{}",
        String::from_utf8_lossy(&child.stderr)
    );
    None
}

fn settings(folder: &Path, server: &str) -> Pkcs11Settings {
    Pkcs11Settings {
        module: SoftHsm::module().to_owned(),
        token: TokenName::Label("ah".into()),
        pin: Pin::File(folder.join("pin")),
        server: Identifier::Value(server.into()),
    }
}

async fn open(settings: Pkcs11Settings) -> Result<RemoteKeys, KeyError> {
    RemoteKeys::open(Pkcs11::new(settings)?).await
}

/// A session of somebody else in this process, which is one application to the token.
fn session(user: Option<&str>) -> Session {
    let module = Module::new(SoftHsm::module()).unwrap();
    let _ = module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
    let mut slots = module.get_slots_with_initialized_token().unwrap();
    slots.retain(|slot| module.get_token_info(*slot).unwrap().label().trim() == "ah");
    let session = module.open_rw_session(slots[0]).unwrap();
    if let Some(pin) = user {
        let _ = session.login(UserType::User, Some(&AuthPin::from(pin.to_owned())));
    }
    session
}

fn count(session: &Session, class: ObjectClass) -> usize {
    session
        .find_objects(&[Attribute::Class(class)])
        .unwrap()
        .len()
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_on_a_token_come_back_and_never_leave_it() {
    let Some(folder) = tokens("keys_on_a_token_come_back_and_never_leave_it") else {
        return;
    };
    let keys = open(settings(&folder, "one")).await.unwrap();
    conforms(&keys).await;
    let look = session(Some(PIN));
    eventually("replaced keys are deleted, both halves", || {
        let both = [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY];
        (both.map(|class| count(&look, class)) == [2, 2]).then_some(())
    });
    let private = look.find_objects(&[Attribute::Class(ObjectClass::PRIVATE_KEY)]);
    for key in private.unwrap() {
        let flags = [
            AttributeType::Sensitive,
            AttributeType::AlwaysSensitive,
            AttributeType::Extractable,
            AttributeType::NeverExtractable,
            AttributeType::Local,
        ];
        assert_eq!(
            look.get_attributes(key, &flags).unwrap(),
            [
                Attribute::Sensitive(true),
                Attribute::AlwaysSensitive(true),
                Attribute::Extractable(false),
                Attribute::NeverExtractable(true),
                Attribute::Local(true),
            ]
        );
        let secret = look
            .get_attribute_info(key, &[AttributeType::Value])
            .unwrap();
        assert!(!matches!(secret[0], AttributeInfo::Available(_)));
    }
    let before = public(&keys.keys().await.unwrap());
    drop(keys);

    // As the only token in its slot, and with the PIN of the environment.
    let slot = session(None).get_session_info().unwrap().slot_id().id();
    let by_slot = Pkcs11Settings {
        token: TokenName::Slot(slot),
        pin: Pin::Variable("PIN_OF_TEST".into()),
        ..settings(&folder, "one")
    };
    let again = open(by_slot).await.unwrap();
    let found = again.keys().await.unwrap();
    assert_eq!(public(&found), before);
    found[0].sign(b"message").unwrap();

    // Another server on the token sees nothing of them, and one whose name begins alike neither.
    for server in ["two", "on", "one-more"] {
        let other = open(settings(&folder, server)).await.unwrap();
        assert!(other.keys().await.unwrap().is_empty());
        other.generate_key("k", KeyType::EcP256).await.unwrap();
    }
    let still = open(settings(&folder, "one")).await.unwrap();
    assert_eq!(public(&still.keys().await.unwrap()), before);
    // So many at a time.
    let all: Vec<_> = (0..40)
        .map(|_| {
            let key = found[0].clone();
            tokio::spawn(async move { key.sign(b"message").map(|_| ()) })
        })
        .collect();
    for signed in all {
        signed.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_server_left_on_a_token_is_deleted() {
    let Some(folder) = tokens("what_a_killed_server_left_on_a_token_is_deleted") else {
        return;
    };
    // Without what deletes the first.
    let place = Pkcs11::new(settings(&folder, "one")).unwrap();
    let old = place.create("k", KeyType::EcP256).await.unwrap();
    let new = place.create("k", KeyType::EcP384).await.unwrap();
    // Killed in the midst of a deletion: a public half without its private one is no key.
    let half = place.create("half", KeyType::EcP256).await.unwrap();
    let look = session(Some(PIN));
    let private = [
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::Label(half.handle.into_bytes()),
    ];
    let private = look.find_objects(&private).unwrap();
    look.destroy_object(private[0]).unwrap();
    assert!(old.made <= new.made && old.handle < new.handle);
    let keys = open(settings(&folder, "one")).await.unwrap();
    let found = keys.keys().await.unwrap();
    assert_eq!(public(&found), [new.spki]);
    eventually("the older one is deleted", || {
        (count(&look, ObjectClass::PRIVATE_KEY) == 1).then_some(())
    });
    // Lost on the token.
    found[0].sign(b"message").unwrap();
    let private = look.find_objects(&[Attribute::Class(ObjectClass::PRIVATE_KEY)]);
    look.destroy_object(private.unwrap()[0]).unwrap();
    let told = found[0].sign(b"message").unwrap_err().to_string();
    assert_eq!(
        told,
        format!("PKCS #11 token \"ah\": key {} is not there", new.handle)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_away_comes_back() {
    let Some(folder) = tokens("a_token_that_was_away_comes_back") else {
        return;
    };
    let keys = open(settings(&folder, "one")).await.unwrap();
    let key = keys.generate_key("k", KeyType::EcP256).await.unwrap();
    // The login is lost.
    session(None).logout().unwrap();
    key.sign(b"message").unwrap();
    // All sessions are.
    Module::new(SoftHsm::module()).unwrap().finalize().unwrap();
    key.sign(b"message").unwrap();
    keys.generate_key("j", KeyType::EcP256).await.unwrap();

    // The token is pulled out, and the module notices.
    let tokens = fs::canonicalize(folder.join("tokens")).unwrap();
    let away = tokens.with_extension("away");
    fs::rename(&tokens, &away).unwrap();
    fs::create_dir(&tokens).unwrap();
    Module::new(SoftHsm::module()).unwrap().finalize().unwrap();
    let gone =
        "PKCS #11 token \"ah\" is not there; module /usr/lib/softhsm/libsofthsm2.so has none";
    assert_eq!(key.sign(b"message").unwrap_err().to_string(), gone);
    let made = keys.generate_key("k", KeyType::EcP256).await;
    assert_eq!(made.err().unwrap().to_string(), gone);
    let at_start = open(settings(&folder, "one")).await;
    assert_eq!(at_start.err().unwrap().to_string(), gone);
    let kept = keys.key("k").await.unwrap().unwrap();
    assert_eq!(kept.spki(), key.spki());
    // It is put back.
    fs::remove_dir(&tokens)
        .or_else(|_| fs::remove_dir_all(&tokens))
        .unwrap();
    fs::rename(&away, &tokens).unwrap();
    key.sign(b"message").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_pin_is_sent_once_and_told_without_it() {
    let Some(folder) = tokens("a_wrong_pin_is_sent_once_and_told_without_it") else {
        return;
    };
    let keys = open(settings(&folder, "one")).await.unwrap();
    let key = keys.generate_key("k", KeyType::EcP256).await.unwrap();
    // The PIN is changed by somebody, and the session lost.
    let pin = |text: &str| AuthPin::from(text.to_owned());
    session(Some(PIN))
        .set_pin(&pin(PIN), &pin("1234-5678"))
        .unwrap();
    key.sign(b"the login lasts").unwrap();
    session(None).logout().unwrap();
    let told = key.sign(b"message").unwrap_err().to_string();
    assert!(
        told.contains("was refused (PinIncorrect)") && told.contains("put the right one in"),
        "{told}"
    );
    assert!(!told.contains(PIN), "{told}");
    // Were it sent again, the token would take it now.
    session(Some("1234-5678"))
        .set_pin(&pin("1234-5678"), &pin(PIN))
        .unwrap();
    session(None).logout().ok();
    assert_eq!(key.sign(b"message").unwrap_err().to_string(), told);
    session(Some(PIN))
        .set_pin(&pin(PIN), &pin("1234-5678"))
        .unwrap();
    session(None).logout().ok();
    fs::write(folder.join("pin"), "1234-5678\n").unwrap();
    key.sign(b"message").unwrap();

    for (settings, text) in [
        (
            Pkcs11Settings {
                token: TokenName::Label("nobody".into()),
                ..settings(&folder, "one")
            },
            "PKCS #11 token \"nobody\" is not there; module /usr/lib/softhsm/libsofthsm2.so has \"",
        ),
        (
            Pkcs11Settings {
                module: "/no/such/module.so".into(),
                ..settings(&folder, "one")
            },
            "cannot load PKCS #11 module /no/such/module.so: ",
        ),
        (
            Pkcs11Settings {
                pin: Pin::File(folder.join("none")),
                ..settings(&folder, "one")
            },
            "cannot read pin_file ",
        ),
        (
            Pkcs11Settings {
                pin: Pin::Variable("NO_SUCH_PIN".into()),
                ..settings(&folder, "one")
            },
            "there is no PIN in NO_SUCH_PIN",
        ),
    ] {
        session(None).logout().ok();
        let told = open(settings).await.err().unwrap().to_string();
        assert!(told.starts_with(text), "{told}");
    }
}
