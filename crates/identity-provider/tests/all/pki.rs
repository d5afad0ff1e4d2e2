//! Files as a person makes them with openssl.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use ah_identity_provider::files::{FilesConfig, FilesProvider};
use ah_identity_provider::{Code, Explained, Identity, KeyKind, Provider};
use ah_testkit::provider_suite::coherent;
use tempfile::TempDir;

use crate::common::Log;

/// RSA-4096 root, an intermediate, and a leaf of each key kind, made once for all tests.
static PKI: LazyLock<Pki> = LazyLock::new(Pki::new);

const LEAVES: [(&str, &[&str], KeyKind); 5] = [
    (
        "rsa2048",
        &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
        KeyKind::Rsa(2048),
    ),
    ("p256", P256, KeyKind::Ecdsa(256)),
    (
        "p384",
        &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
        KeyKind::Ecdsa(384),
    ),
    ("ed25519", &["-algorithm", "ED25519"], KeyKind::Ed25519),
    (
        "rsa4096",
        &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:4096"],
        KeyKind::Rsa(4096),
    ),
];

const P256: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];

struct Pki(TempDir);

impl Pki {
    fn new() -> Self {
        let pki = Self(tempfile::tempdir().unwrap());
        let rsa4096 = ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:4096"];
        pki.key("root", &rsa4096);
        pki.run("req -x509 -new -key root.key -days 30 -subj /CN=Root -out root.crt");
        pki.key("other", P256);
        pki.run("req -x509 -new -key other.key -days 30 -subj /CN=Other -out other.crt");
        pki.key("mid", P256);
        let ca = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n";
        pki.sign("mid", "/CN=Middle", "root", ca);
        for (name, algorithm, _) in &LEAVES {
            pki.key(name, algorithm);
            let sans = format!(
                "subjectAltName=DNS:{name}.example,IP:192.0.2.1,URI:spiffe://example.org/ah/{name}\n"
            );
            pki.sign(name, &format!("/CN={name}"), "mid", &sans);
        }
        pki
    }

    fn key(&self, name: &str, algorithm: &[&str]) {
        let out = format!("{name}.key");
        let mut arguments = vec!["genpkey", "-out", out.as_str()];
        arguments.extend(algorithm);
        self.openssl(&arguments);
    }

    fn sign(&self, name: &str, subject: &str, issuer: &str, extensions: &str) {
        fs::write(self.path(&format!("{name}.ext")), extensions).unwrap();
        self.run(&format!(
            "req -new -key {name}.key -subj {subject} -out {name}.csr"
        ));
        self.run(&format!(
            "x509 -req -in {name}.csr -CA {issuer}.crt -CAkey {issuer}.key -CAcreateserial -days 20 -extfile {name}.ext -out {name}.crt"
        ));
    }

    fn run(&self, arguments: &str) {
        self.openssl(&arguments.split(' ').collect::<Vec<_>>());
    }

    fn openssl(&self, arguments: &[&str]) -> Vec<u8> {
        openssl(self.0.path(), arguments)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Leaf and intermediate.
    fn chain(&self, name: &str) -> String {
        self.text(&format!("{name}.crt")) + &self.text("mid.crt")
    }
}

fn openssl(directory: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("openssl")
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("openssl is installed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments:?}: {errors}");
    output.stdout
}

/// A directory with these files, for one provider.
struct Case {
    dir: TempDir,
    passphrase: bool,
}

impl Case {
    fn new(cert: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Self {
        Self::with_ca(cert, key, PKI.text("root.crt"))
    }

    fn with_ca(cert: impl AsRef<[u8]>, key: impl AsRef<[u8]>, ca: impl AsRef<[u8]>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cert.pem"), cert).unwrap();
        fs::write(dir.path().join("key.pem"), key).unwrap();
        fs::write(dir.path().join("ca.pem"), ca).unwrap();
        Self {
            dir,
            passphrase: false,
        }
    }

    fn passphrase(mut self, content: &str) -> Self {
        fs::write(self.dir.path().join("passphrase"), content).unwrap();
        self.passphrase = true;
        self
    }

    async fn read(&self) -> Result<Identity, Explained> {
        let config = FilesConfig {
            key_passphrase_file: self.passphrase.then(|| self.dir.path().join("passphrase")),
            ..crate::common::config(self.dir.path())
        };
        let outcome = FilesProvider::new(config).next().await;
        outcome.map_err(|error| error.explained().clone())
    }

    async fn identity(&self) -> Identity {
        let identity = self
            .read()
            .await
            .unwrap_or_else(|e| panic!("{}", e.report()));
        coherent(&identity);
        identity
    }

    async fn refusal(&self) -> String {
        match self.read().await {
            Ok(_) => panic!("was taken"),
            Err(explained) => explained.report(),
        }
    }
}

#[tokio::test]
async fn fi_1_every_key_kind_in_every_form() {
    for (name, _, kind) in &LEAVES {
        let chain = PKI.chain(name);
        let pkcs8 = PKI.text(&format!("{name}.key"));
        let mut forms = vec![pkcs8];
        let key = format!("{name}.key");
        match kind {
            KeyKind::Rsa(_) => {
                let pkcs1 = PKI.openssl(&["rsa", "-in", &key, "-traditional"]);
                forms.push(String::from_utf8(pkcs1).unwrap());
            }
            KeyKind::Ecdsa(_) => {
                let sec1 = PKI.openssl(&["ec", "-in", &key]);
                let sec1 = String::from_utf8(sec1).unwrap();
                let curve = if *name == "p256" {
                    "prime256v1"
                } else {
                    "secp384r1"
                };
                let parameters = PKI.openssl(&["ecparam", "-name", curve]);
                let parameters = String::from_utf8(parameters).unwrap();
                assert!(parameters.contains("BEGIN EC PARAMETERS"));
                assert!(sec1.contains("BEGIN EC PRIVATE KEY"));
                forms.push(format!("{parameters}{sec1}"));
                forms.push(sec1);
            }
            _ => {}
        }
        for form in forms {
            let identity = Case::new(&chain, &form).identity().await;
            assert_eq!(identity.leaf().key, *kind, "{name}");
            assert_eq!(identity.chain().len(), 2);
            let dns = identity.leaf().dns.first().unwrap().clone();
            assert_eq!(dns, format!("{name}.example"));
        }
    }
}

// FI-1: other key kinds are refused by name.
#[tokio::test]
async fn fi_1_other_keys_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for (curve, name) in [
        ("rsa_keygen_bits:1024", "RSA-1024"),
        ("ec_paramgen_curve:P-521", "P-521"),
    ] {
        let algorithm = if curve.starts_with("rsa") {
            "RSA"
        } else {
            "EC"
        };
        let new = [
            "genpkey",
            "-algorithm",
            algorithm,
            "-pkeyopt",
            curve,
            "-out",
            "k",
        ];
        openssl(dir.path(), &new);
        let cert = openssl(
            dir.path(),
            &["req", "-x509", "-new", "-key", "k", "-subj", "/CN=x"],
        );
        let key = fs::read(dir.path().join("k")).unwrap();
        let refusal = Case::new(cert, key).refusal().await;
        assert!(refusal.contains(name), "{refusal}");
        assert!(refusal.contains("not supported"), "{refusal}");
    }
}

#[tokio::test]
async fn fi_1_any_order_and_extra_certificates_are_put_right_and_told() {
    let (log, _guard) = Log::start();
    let (leaf, mid, root, other) = (
        PKI.text("p256.crt"),
        PKI.text("mid.crt"),
        PKI.text("root.crt"),
        PKI.text("other.crt"),
    );
    let key = PKI.text("p256.key");
    let right = Case::new(format!("{leaf}{mid}"), &key).identity().await;
    assert_eq!(log.lines_with("WARN cert").len(), 0);
    for (chain, word) in [
        (format!("{mid}{leaf}"), "put in order"),
        (format!("{root}{mid}{leaf}"), "put in order"),
        (format!("{leaf}{mid}{root}"), "dropped the root \"CN=Root\""),
        (format!("{leaf}{other}{mid}"), "\"CN=Other\": not part of"),
        (format!("{leaf}{leaf}{mid}"), "second copy of \"CN=p256\""),
    ] {
        let before = log.lines_with(word).len();
        let identity = Case::new(&chain, &key).identity().await;
        assert_eq!(identity.chain(), right.chain(), "{word}");
        assert!(log.lines_with(word).len() > before, "{word}");
    }
    // A self-signed leaf is its own chain.
    let own = Case::new(&other, PKI.text("other.key")).identity().await;
    assert_eq!(own.chain().len(), 1);
}

#[tokio::test]
async fn fi_1_comments_line_ends_and_marks_do_not_matter() {
    let key = PKI.text("p384.key");
    let plain = Case::new(PKI.chain("p384"), &key).identity().await;
    let text = |name: &str| {
        let text = PKI.openssl(&["x509", "-in", name, "-text"]);
        String::from_utf8(text).unwrap()
    };
    let described = text("p384.crt") + "\n# the intermediate\n" + &text("mid.crt");
    let bags = format!(
        "Bag Attributes\n    localKeyID: 01 02\nsubject=CN = p384\n{}",
        PKI.chain("p384")
    );
    let crlf = |text: &str| text.replace('\n', "\r\n");
    for (cert, key) in [
        (described.clone(), key.clone()),
        (bags, key.clone()),
        (crlf(&described), crlf(&key)),
        (PKI.chain("p384").replace('\n', "\r"), key.clone()),
        (
            format!("\u{feff}{}", PKI.chain("p384")),
            format!("\u{feff}{key}"),
        ),
        (
            PKI.chain("p384").trim_end().to_owned(),
            key.trim_end().to_owned(),
        ),
        // Both in both files.
        (format!("{key}{described}"), format!("{described}{key}")),
    ] {
        let identity = Case::new(cert, key).identity().await;
        assert!(identity.same_material(&plain));
    }
    let bundle = format!(
        "# our root\n{}\n# another, and once more\n{}{}",
        text("root.crt"),
        text("other.crt"),
        text("root.crt")
    );
    let bundle = Case::with_ca(PKI.chain("p384"), &key, crlf(&bundle));
    assert_eq!(bundle.identity().await.bundles().unscoped.len(), 2);
}

#[tokio::test]
async fn fi_1_encrypted_keys_need_their_passphrase() {
    let chain = PKI.chain("rsa2048");
    let plain = Case::new(&chain, PKI.text("rsa2048.key")).identity().await;
    for more in [&["-v2", "aes-256-cbc"][..], &["-scrypt"][..]] {
        let mut arguments = vec![
            "pkcs8",
            "-topk8",
            "-in",
            "rsa2048.key",
            "-passout",
            "pass:open sesame",
        ];
        arguments.extend(more);
        let key = PKI.openssl(&arguments);
        let refusal = Case::new(&chain, &key).refusal().await;
        assert!(refusal.contains("is encrypted"), "{refusal}");
        assert!(refusal.contains("--key-passphrase-file"), "{refusal}");
        assert!(refusal.contains("openssl pkey -in"), "{refusal}");
        for content in [
            "open sesame",
            "open sesame\n",
            "open sesame\r\nsecond line\n",
        ] {
            let case = Case::new(&chain, &key).passphrase(content);
            assert!(case.identity().await.same_material(&plain));
        }
        let refusal = Case::new(&chain, &key)
            .passphrase("hush hush")
            .refusal()
            .await;
        assert!(refusal.contains("does not decrypt"), "{refusal}");
        assert!(!refusal.contains("hush"), "{refusal}");
    }
    let old = [
        "rsa",
        "-in",
        "rsa2048.key",
        "-traditional",
        "-aes128",
        "-passout",
        "pass:open sesame",
    ];
    let old = String::from_utf8(PKI.openssl(&old)).unwrap();
    assert!(old.contains("Proc-Type: 4,ENCRYPTED"));
    let refusal = Case::new(&chain, &old)
        .passphrase("open sesame")
        .refusal()
        .await;
    assert!(
        refusal.contains("openssl pkcs8 -topk8 -v2 aes-256-cbc"),
        "{refusal}"
    );
}

// ER-24: what is not PEM of the right kind is named, with the command that helps.
#[tokio::test]
async fn fi_1_wrong_files_are_named() {
    let (chain, key) = (PKI.chain("p256"), PKI.text("p256.key"));
    let trusted = PKI.openssl(&["x509", "-in", "p256.crt", "-trustout"]);
    let der = PKI.openssl(&["x509", "-in", "p256.crt", "-outform", "DER"]);
    let key_der = PKI.openssl(&["pkey", "-in", "p256.key", "-outform", "DER"]);
    let utf16: Vec<u8> = [0xFEFF]
        .into_iter()
        .chain(chain.encode_utf16())
        .flat_map(u16::to_le_bytes)
        .collect();
    for (case, words) in [
        (
            Case::new(&trusted, &key),
            ["cert.pem", "TRUSTED CERTIFICATE"],
        ),
        (
            Case::new(&der, &key),
            ["cert.pem", "openssl x509 -inform DER"],
        ),
        (
            Case::new(&chain, &key_der),
            ["key.pem", "openssl pkey -inform DER"],
        ),
        (Case::new(&utf16, &key), ["cert.pem", "UTF-16"]),
        (Case::new(&key, &key), ["cert.pem", "found: PRIVATE KEY"]),
        (Case::new(&chain, &chain), ["key.pem", "found: CERTIFICATE"]),
        (
            Case::new(&chain, format!("{key}{key}")),
            ["key.pem", "2 private keys"],
        ),
        (Case::new("", &key), ["cert.pem", "empty"]),
        (
            Case::new(vec![b'#'; 1024 * 1024 + 1], &key),
            ["cert.pem", "1 MiB"],
        ),
        (Case::with_ca(&chain, &key, ""), ["ca.pem", "empty"]),
        (
            Case::with_ca(&chain, &key, &key),
            ["ca.pem", "no CERTIFICATE block"],
        ),
    ] {
        let refusal = case.refusal().await;
        for word in words {
            assert!(refusal.contains(word), "{refusal}");
        }
        assert!(refusal.contains("\n  hint: "), "{refusal}");
    }
}

#[tokio::test]
async fn er_6_a_foreign_key_is_told_with_both_fingerprints() {
    let case = Case::new(PKI.chain("p256"), PKI.text("p384.key"));
    let explained = case.read().await.map(drop).unwrap_err();
    assert_eq!(explained.code, Code::KeyMismatch);
    assert_eq!(explained.text, "private key does not match certificate");
    // The fingerprints are what the hint's commands print.
    for (name, file) in [("p256", "cert.pem"), ("p384", "key.pem")] {
        let key = format!("{name}.key");
        let public = PKI.openssl(&["pkey", "-in", &key, "-pubout", "-outform", "DER"]);
        let public_file = tempfile::NamedTempFile::new().unwrap();
        fs::write(public_file.path(), public).unwrap();
        let path = public_file.path().to_str().unwrap();
        let digest = PKI.openssl(&["dgst", "-sha256", "-r", path]);
        let digest = String::from_utf8(digest).unwrap();
        let digest = digest.split(' ').next().unwrap();
        let told = explained
            .causes
            .iter()
            .any(|cause| cause.contains(digest) && cause.contains(file));
        assert!(told, "{}", explained.report());
    }
}
