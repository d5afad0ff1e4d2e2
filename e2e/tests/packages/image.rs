//! The OCI image layout.

use std::path::Path;
use std::process::Command;

use ah_testkit::need;
use ah_testkit::process::Finished;
use serde_json::Value;

use ah_e2e::packages::{PACKAGES, run, scratch, sh, tool};

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn an_image_is_what_its_digests_say_and_its_program_runs_in_it() {
    let directory = scratch();
    let layout = directory.path().join("oci");
    run(&mut tool("image", &layout));
    let again = directory.path().join("again");
    run(&mut tool("image", &again));
    sh(r#"diff -r "$1" "$2""#, &[&layout, &again]);
    // A blob is named by its digest, and no other file is there.
    sh(
        r#"cd "$1/blobs/sha256"; for blob in *; do echo "$blob  $blob"; done | sha256sum --check --quiet"#,
        &[&layout],
    );

    let index = json(&layout.join("index.json"));
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap();
        let path = layout
            .join("blobs/sha256")
            .join(digest.strip_prefix("sha256:").unwrap());
        let size = std::fs::metadata(&path).unwrap().len();
        assert_eq!(descriptor["size"], size, "{digest}");
        path
    };
    for (package, manifest) in PACKAGES.iter().zip(index["manifests"].as_array().unwrap()) {
        let name = format!("{package}:{}", env!("CARGO_PKG_VERSION"));
        assert_eq!(
            manifest["annotations"]["org.opencontainers.image.ref.name"],
            name
        );
        let manifest = json(&blob(manifest));
        let config = json(&blob(&manifest["config"]));
        let layer = blob(&manifest["layers"][0]);
        let unpacked = directory.path().join(package);
        std::fs::create_dir(&unpacked).unwrap();
        let diff_id = sh(
            r#"gzip -dc "$1" | tar -x -C "$2"; gzip -dc "$1" | sha256sum | cut -d' ' -f1"#,
            &[&layer, &unpacked],
        );
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            format!("sha256:{}", diff_id.trim())
        );
        let notices = unpacked.join("usr/share/doc").join(package).join("NOTICES");
        assert!(std::fs::metadata(notices).unwrap().len() > 100_000);
        let program = config["config"]["Entrypoint"][0].as_str().unwrap();
        if nix::unistd::geteuid().is_root() {
            // As its user and in its directory, with nothing of this machine.
            let user = config["config"]["User"].as_str().unwrap();
            let mut chroot = Command::new("chroot");
            chroot.arg(format!("--userspec={user}")).arg(&unpacked);
            let ran = Finished::from(chroot.args([program, "--version"]).output().unwrap());
            let version = format!("{}{}", ran.stdout, ran.stderr);
            assert!(ran.code == 0 && version.contains('.'), "{ran:?}");
        }
        if need("skopeo") {
            let at = format!("oci:{}:{name}", layout.display());
            let told = run(Command::new("skopeo").args(["inspect", &at]));
            let told: Value = serde_json::from_str(&told).unwrap();
            assert_eq!(told["Digest"], index_digest(&index, &name));
            assert_eq!(told["Os"], "linux");
            assert_eq!(told["Layers"].as_array().unwrap().len(), 1);
        }
    }
}

fn index_digest(index: &Value, name: &str) -> Value {
    let manifests = index["manifests"].as_array().unwrap().iter();
    let named = |m: &&Value| m["annotations"]["org.opencontainers.image.ref.name"] == name;
    manifests.clone().find(named).unwrap()["digest"].clone()
}

// What needs libraries of the machine that built it is no tarball for any other.
#[test]
fn a_tarball_takes_static_programs_alone() {
    let directory = scratch();
    let refused = Finished::from(tool("tarball", directory.path()).output().unwrap());
    assert_eq!(refused.code, 1);
    assert!(
        refused
            .stderr
            .contains("ah needs the libraries of this machine"),
        "{refused:?}"
    );
}

// A program may have 30 MiB, and here nothing at all.
#[test]
fn a_tarball_takes_small_programs_alone() {
    let directory = scratch();
    let programs = directory.path().join("static");
    std::fs::create_dir(&programs).unwrap();
    for program in PACKAGES {
        sh(
            r#"echo 'int main(void) { return 0; }' | cc -static -x c -o "$1" -"#,
            &[&programs.join(program)],
        );
    }
    let mut tarball = tool("tarball", directory.path());
    tarball.arg("--binaries").arg(&programs);
    let refused = Finished::from(tarball.args(["--most", "0"]).output().unwrap());
    assert_eq!(refused.code, 1);
    let told = "bytes without its symbols, which is more than 0 MiB";
    assert!(
        refused.stderr.contains("ah has ") && refused.stderr.contains(told),
        "{refused:?}"
    );
}
