//! BundlePublisher, Notifier, CredentialComposer and UpstreamAuthority in processes of their own, and SVIDStores.

use ah_testkit::process::eventually;
use serde_json::Value;

use crate::rig::Rig;
use crate::{agent_plugins, block, server_plugins};

/// A server's four plugins; the label goes into all that it signs.
fn four(rig: &Rig, start: &str) -> String {
    let with = |data: String| format!("plugin_data {{ {data} }}");
    let path = |name: &str| with(format!("path = {:?}", rig.path(name)));
    let upstream = block(rig, "UpstreamAuthority", "own", "upstream", &path("second"));
    let publisher = block(
        rig,
        "BundlePublisher",
        "file",
        "publisher",
        &path("published"),
    );
    let label = with("label = \"blue\"".to_owned());
    let composer = block(rig, "CredentialComposer", "team", "composer", &label);
    let told = with(format!("path = {:?} label = {start:?}", rig.path("told")));
    let notifier = block(rig, "Notifier", "file", "notifier", &told);
    format!(
        "KeyManager \"memory\" {{}}\nCredentialComposer \"uniqueid\" {{}}\n{upstream}{publisher}{composer}{notifier}"
    )
}

fn lines(rig: &Rig, name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(rig.path(name)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn plugins_on_upstreams_sdk_take_the_bundle_out_compose_and_sign_the_ca() {
    let Some(rig) = Rig::new() else { return };
    let server = rig.server(&four(&rig, "yes"));
    let socket = rig.path("server.sock");
    assert_eq!(lines(&rig, "told"), ["loaded example.org 1"]);
    // What failed once was tried again.
    let published = |what: &str| {
        let told = || {
            lines(&rig, "published")
                .contains(&what.to_owned())
                .then_some(())
        };
        eventually(what, told);
    };
    published("published example.org 1");
    server.wait_for("bundlepublisher(file): not at once");

    let id = "spiffe://example.org/w";
    let mint = [
        "spire-server",
        "x509",
        "mint",
        "-socketPath",
        &socket,
        "-spiffeID",
        id,
    ];
    rig.write("minted.pem", &rig.ok(&mint));
    let shown = rig.ok(&["openssl", "x509", "-in", "minted.pem", "-noout", "-text"]);
    let shown = shown.replace(" = ", "=");
    for part in [
        "OU=blue",
        "UID=spiffe",
        "x500UniqueIdentifier=",
        "1.3.6.1.4.1.99999.1",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let mint = [
        "spire-server",
        "jwt",
        "mint",
        "-socketPath",
        &socket,
        "-spiffeID",
        id,
    ];
    let token = rig.ok(&[&mint[..], &["-audience", "a"]].concat());
    let claims = rig.claims(&token);
    assert_eq!(claims["team"], "blue");
    assert!(claims["exp"].is_i64() && claims["sub"] == id, "{claims}");

    // The plugin tells of another root for as long as the server listens.
    rig.write("second", "");
    let show = [
        "spire-server",
        "bundle",
        "show",
        "-socketPath",
        &socket,
        "-output",
        "json",
    ];
    eventually("both roots are in the bundle", || {
        let bundle: Value = serde_json::from_str(&rig.ok(&show)).unwrap();
        (bundle["x509_authorities"].as_array()?.len() == 2).then_some(())
    });
    published("published example.org 2");
    eventually("the notifier was told", || {
        let told = lines(&rig, "told");
        told.contains(&"updated example.org 2".to_owned())
            .then_some(())
    });
}

#[test]
fn a_notifier_that_says_no_keeps_the_server_from_starting() {
    let Some(rig) = Rig::new() else { return };
    let told = rig.refused(&four(&rig, "no"));
    assert!(
        told.contains(
            "one or more notifiers returned an error: notifier(file): not with this bundle"
        ),
        "{told}"
    );
    let wrong = four(&rig, "yes").replace("\"composer\"", "\"publisher\"");
    let told = rig.validate("server", &wrong);
    assert!(told.contains("CredentialComposer \"team\""), "{told}");
}

#[test]
fn svids_are_pushed_to_stores_and_taken_out_again() {
    let Some(rig) = Rig::new() else { return };
    rig.write("workload.hcl", "label = \"one\"");
    std::fs::create_dir(rig.path("stored")).unwrap();
    let _server = rig.server(&server_plugins(&rig));
    let keep = format!("plugin_data {{ path = {:?} }}", rig.path("stored"));
    let directory = format!(
        "SVIDStore \"directory\" {{ plugin_data {{ path = {:?} }} }}\n",
        rig.path("svids")
    );
    let plugins = agent_plugins(&rig, "s3cret")
        + &block(&rig, "SVIDStore", "keep", "svid-store", &keep)
        + &directory;
    let _agent = rig.agent(&plugins);
    let socket = rig.path("server.sock");
    let create = |id: &str, selector: &str| {
        let line = [
            "spire-server",
            "entry",
            "create",
            "-socketPath",
            &socket,
            "-storeSVID",
        ];
        let parent = "spiffe://example.org/spire/agent/secret/n1";
        let entry = ["-parentID", parent, "-spiffeID", id, "-selector", selector];
        let options = ["-entryID", selector.rsplit(':').next().unwrap()];
        rig.ok(&[&line[..], &entry, &options].concat());
    };
    create("spiffe://example.org/kept", "keep:name:one");
    create("spiffe://example.org/web", "directory:name:web");
    let kept: Value = eventually("the plugin has the SVID", || {
        let text = std::fs::read_to_string(rig.path("stored/one")).ok()?;
        serde_json::from_str(&text).ok()
    });
    assert_eq!(kept["id"], "spiffe://example.org/kept");
    assert_eq!(
        (&kept["uri"], &kept["ends"]),
        (&kept["id"], &Value::Bool(true))
    );
    assert_eq!((&kept["roots"], &kept["domains"]), (&1.into(), &0.into()));

    // What stands in the directory is an identity that `ah` takes.
    let files = ["tls.crt", "tls.key", "ca.crt"].map(|name| rig.path(&format!("svids/web/{name}")));
    eventually("the directory has the SVID", || {
        files
            .iter()
            .all(|file| std::path::Path::new(file).exists())
            .then_some(())
    });
    let [cert, key, ca] = &files;
    let line = [
        "ah",
        "agent",
        "access-point",
        "--server-identity",
        "files",
        "--validate",
    ];
    rig.ok(&[&line[..], &["--cert", cert, "--key", key, "--ca", ca]].concat());

    for id in ["one", "web"] {
        rig.ok(&[
            "spire-server",
            "entry",
            "delete",
            "-socketPath",
            &socket,
            "-entryID",
            id,
        ]);
    }
    eventually("both are gone", || {
        (!rig.exists("stored/one") && !rig.exists("svids/web")).then_some(())
    });
}
