//! A stand-in for sigstore: an authority for signers, the logs, and a registry with what they made.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ah_identity_provider::{hex, pem};
use ah_spire_attest::workload::sigstore::{RootFiles, SigstoreConfig};
use ah_testkit::ca::TestCa;
use ah_testkit::web::Web;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use tempfile::TempDir;
use x509_parser::prelude::{FromDer, X509Certificate};

pub(super) const SUBJECT: &str = "https://ci.example/shop/server/release.yml";
pub(super) const ISSUER: &str = "https://accounts.example";
pub(super) const HEX: &str = "bf862e5f5eca0a73e7e538224578c5cf867ce2be91b5eaed22afc153c00363eb";

/// When signatures came into the log: long ago, as the certificates of signers last minutes.
pub(super) fn then() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

pub(super) struct Stand {
    pub(super) registry: Web,
    pub(super) fulcio: TestCa,
    between: TestCa,
    pub(super) rekor: KeyPair,
    pub(super) ct: KeyPair,
    pub(super) folder: TempDir,
}

/// What is made of an image; right unless it is changed.
pub(super) struct Make<'a> {
    pub(super) subject: &'a str,
    pub(super) issuer: &'a str,
    /// The digest in what is signed.
    pub(super) image: &'a str,
    /// Whose signers are.
    pub(super) authority: &'a TestCa,
    pub(super) code_signing: bool,
    /// When the log took the entry in; the certificate is of the same minute.
    pub(super) integrated: SystemTime,
    /// Another than the certificate's.
    pub(super) key: Option<&'a KeyPair>,
    pub(super) rekor: &'a KeyPair,
    pub(super) named_rekor: &'a KeyPair,
    /// None: no timestamp.
    pub(super) ct: Option<&'a KeyPair>,
    pub(super) named_ct: &'a KeyPair,
    pub(super) bundle: bool,
    /// What the entry is of, where it is of something else.
    pub(super) entry_of: Option<&'a [u8]>,
    pub(super) entry_signature: Option<&'a str>,
    pub(super) entry_certificate: bool,
    /// What the registry has, where it is not what the manifest says.
    pub(super) blob: Option<&'a [u8]>,
}

/// What a signer made.
struct Signer {
    key: KeyPair,
    leaf: String,
    chain: String,
}

impl Stand {
    pub(super) async fn start() -> Self {
        let ages = |ca: ah_testkit::ca::CaBuilder| {
            ca.valid_from(then() - Duration::from_hours(24)).issue()
        };
        let fulcio = ages(TestCa::root("sigstore.example"));
        let between = ages(fulcio.intermediate());
        Self {
            registry: Web::start().await,
            fulcio,
            between,
            rekor: KeyPair::generate().unwrap(),
            ct: KeyPair::generate().unwrap(),
            folder: TempDir::new().unwrap(),
        }
    }

    pub(super) fn make(&self) -> Make<'_> {
        Make {
            subject: SUBJECT,
            issuer: ISSUER,
            image: HEX,
            authority: &self.between,
            code_signing: true,
            integrated: then(),
            key: None,
            rekor: &self.rekor,
            named_rekor: &self.rekor,
            ct: Some(&self.ct),
            named_ct: &self.ct,
            bundle: true,
            entry_of: None,
            entry_signature: None,
            entry_certificate: true,
            blob: None,
        }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(super) fn config(&self) -> SigstoreConfig {
        SigstoreConfig {
            ignore_attestations: true,
            roots: RootFiles {
                fulcio: self.file("fulcio.pem", &self.fulcio.pem()),
                rekor: self.file("rekor.pub", &self.rekor.public_key_pem()),
                ct_log: self.file("ctfe.pub", &self.ct.public_key_pem()),
                tuf_root: PathBuf::new(),
            },
            ..Default::default()
        }
    }

    /// `trusted_root.json`, where `cosign initialize` would put it; with keys of logs that ended then.
    pub(super) fn trusted_root(&self, until: Option<&str>) -> RootFiles {
        let raw = |der: &[u8]| STANDARD.encode(der);
        let log = |key: &KeyPair| {
            json!({
                "baseUrl": "https://log.example",
                "hashAlgorithm": "SHA2_256",
                "publicKey": {
                    "rawBytes": raw(&key.subject_public_key_info()),
                    "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                    "validFor": {"start": "2021-01-12T11:53:27.000Z", "end": until},
                },
                "logId": {"keyId": ""},
            })
        };
        let json = json!({
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log(&self.rekor)],
            "certificateAuthorities": [{
                "subject": {"organization": "sigstore.dev", "commonName": "sigstore"},
                "uri": "https://fulcio.example",
                "certChain": {"certificates": [
                    {"rawBytes": raw(self.between.der())}, {"rawBytes": raw(self.fulcio.der())},
                ]},
                "validFor": {"start": "2021-03-07T03:20:29.000Z"},
            }],
            "ctlogs": [log(&self.ct)],
            "timestampAuthorities": [],
        });
        let root = self.folder.path().join("root");
        let targets = root.join("mirror.example-tuf/targets");
        std::fs::create_dir_all(&targets).unwrap();
        std::fs::write(
            root.join("remote.json"),
            r#"{"mirror":"https://mirror.example/tuf"}"#,
        )
        .unwrap();
        std::fs::write(targets.join("trusted_root.json"), json.to_string()).unwrap();
        RootFiles {
            tuf_root: root,
            ..Default::default()
        }
    }

    /// As the kubelet calls the image.
    pub(super) fn image(&self) -> String {
        format!("{}/shop/server@sha256:{HEX}", self.registry.address)
    }

    /// Puts layers beside the image: `sig` or `att`.
    pub(super) fn publish(&self, suffix: &str, layers: &[Value]) {
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "layers": layers,
        });
        let path = format!("/v2/shop/server/manifests/sha256-{HEX}.{suffix}");
        self.registry.answers(&path, manifest);
    }

    /// A layer with a signature.
    pub(super) fn signature(&self, make: &Make<'_>) -> Value {
        let payload = json!({
            "critical": {
                "identity": {"docker-reference": "registry.example/shop/server"},
                "image": {"docker-manifest-digest": format!("sha256:{}", make.image)},
                "type": "cosign container image signature",
            },
            "optional": null,
        })
        .to_string();
        let signer = self.signer(make);
        let key = make.key.unwrap_or(&signer.key);
        let signature = STANDARD.encode(key.sign(payload.as_bytes()).unwrap());
        let entry_of = make.entry_of.unwrap_or(payload.as_bytes());
        let entry = json!({
            "apiVersion": "0.0.1",
            "kind": "hashedrekord",
            "spec": {
                "data": {"hash": {"algorithm": "sha256", "value": sha256(entry_of)}},
                "signature": {
                    "content": make.entry_signature.unwrap_or(&signature),
                    "publicKey": {"content": STANDARD.encode(self.entry_certificate(make, &signer))},
                },
            },
        });
        let kind = "application/vnd.dev.cosign.simplesigning.v1+json";
        self.layer(make, kind, payload.as_bytes(), &signature, &signer, &entry)
    }

    /// A layer with an attestation, logged as of `kind`.
    pub(super) fn attestation(&self, make: &Make<'_>, kind: &str) -> Value {
        const TYPE: &str = "application/vnd.in-toto+json";
        let statement = json!({
            "_type": "https://in-toto.io/Statement/v0.1",
            "predicateType": "https://slsa.dev/provenance/v0.2",
            "subject": [{"name": "server", "digest": {"sha256": make.image}}],
            "predicate": {},
        })
        .to_string();
        let message = format!(
            "DSSEv1 {} {TYPE} {} {statement}",
            TYPE.len(),
            statement.len()
        );
        let signer = self.signer(make);
        let key = make.key.unwrap_or(&signer.key);
        let envelope = json!({
            "payloadType": TYPE,
            "payload": STANDARD.encode(&statement),
            "signatures": [{"keyid": "", "sig": STANDARD.encode(key.sign(message.as_bytes()).unwrap())}],
        })
        .to_string();
        let hash = json!({"algorithm": "sha256", "value": sha256(envelope.as_bytes())});
        let certificate = STANDARD.encode(self.entry_certificate(make, &signer));
        let (version, spec) = match kind {
            "intoto" => (
                "0.0.1",
                json!({"content": {"hash": hash}, "publicKey": certificate}),
            ),
            _ => (
                "0.0.1",
                json!({"envelopeHash": hash, "signatures": [{"signature": "", "verifier": certificate}]}),
            ),
        };
        let entry = json!({"apiVersion": version, "kind": kind, "spec": spec});
        let media = "application/vnd.dsse.envelope.v1+json";
        self.layer(make, media, envelope.as_bytes(), "", &signer, &entry)
    }

    fn entry_certificate(&self, make: &Make<'_>, signer: &Signer) -> String {
        match make.entry_certificate {
            true => signer.leaf.clone(),
            false => self.between.pem(),
        }
    }

    fn layer(
        &self,
        make: &Make<'_>,
        media: &str,
        payload: &[u8],
        signature: &str,
        signer: &Signer,
        entry: &Value,
    ) -> Value {
        let digest = format!("sha256:{}", sha256(payload));
        let blob = String::from_utf8(make.blob.unwrap_or(payload).to_vec()).unwrap();
        self.registry
            .answers(&format!("/v2/shop/server/blobs/{digest}"), blob);
        let mut annotations = json!({
            "dev.cosignproject.cosign/signature": signature,
            "dev.sigstore.cosign/certificate": signer.leaf,
            "dev.sigstore.cosign/chain": signer.chain,
        });
        if make.bundle {
            let body = STANDARD.encode(entry.to_string());
            let time = make
                .integrated
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_secs();
            let log = sha256(&make.named_rekor.subject_public_key_info());
            let signed = format!(
                r#"{{"body":"{body}","integratedTime":{time},"logID":"{log}","logIndex":4711}}"#
            );
            let set = make.rekor.sign(signed.as_bytes()).unwrap();
            let bundle = json!({
                "SignedEntryTimestamp": STANDARD.encode(set),
                "Payload": {"body": body, "integratedTime": time, "logIndex": 4711, "logID": log},
            });
            annotations["dev.sigstore.cosign/bundle"] = json!(bundle.to_string());
        }
        json!({"mediaType": media, "digest": digest, "size": payload.len(), "annotations": annotations})
    }

    /// With a certificate of ten minutes around [`then`].
    fn signer(&self, make: &Make<'_>) -> Signer {
        const CODE_SIGNING: &[u8] = &[0x30, 10, 0x06, 8, 0x2b, 6, 1, 5, 5, 7, 3, 3];
        let key = KeyPair::generate().unwrap();
        let leaf = || {
            let leaf = make
                .authority
                .leaf()
                .subject("")
                .serial(&[0x11; 16])
                .valid_from(then() - Duration::from_mins(1))
                .valid_for(Duration::from_mins(10))
                .without_extended_usage()
                .extension(
                    &[1, 3, 6, 1, 4, 1, 57264, 1, 1],
                    false,
                    make.issuer.as_bytes(),
                );
            let leaf = match make.subject.contains('@') {
                true => leaf.email(make.subject),
                false => leaf.uri(make.subject),
            };
            match make.code_signing {
                true => leaf.extension(&[2, 5, 29, 37], false, CODE_SIGNING),
                false => leaf,
            }
        };
        let mut issued = leaf().issue_for(&key);
        if let Some(ct) = make.ct {
            let chain = pem::certificates(issued.as_bytes()).unwrap();
            let list = self.timestamps(make, ct, &chain[0]);
            let logged = leaf().extension(&[1, 3, 6, 1, 4, 1, 11129, 2, 4, 2], false, &list);
            issued = logged.issue_for(&key);
        }
        let end =
            issued.find("-----END CERTIFICATE-----").unwrap() + "-----END CERTIFICATE-----\n".len();
        Signer {
            key,
            leaf: issued[..end].to_owned(),
            chain: issued[end..].to_owned() + &self.fulcio.pem(),
        }
    }

    /// An OCTET STRING with the list of one timestamp over `certificate` (RFC 6962 §3).
    fn timestamps(
        &self,
        make: &Make<'_>,
        ct: &KeyPair,
        certificate: &CertificateDer<'_>,
    ) -> Vec<u8> {
        let (_, certificate) = X509Certificate::from_der(certificate).unwrap();
        let (_, issuer) = X509Certificate::from_der(make.authority.der()).unwrap();
        let tbs = certificate.tbs_certificate.as_ref();
        let millis = u64::try_from(then().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
        let mut signed = vec![0, 0];
        signed.extend(millis.to_be_bytes());
        signed.extend([0, 1]);
        signed.extend(digest(&SHA256, issuer.public_key().raw).as_ref());
        signed.extend(&u32::try_from(tbs.len()).unwrap().to_be_bytes()[1..]);
        signed.extend(tbs);
        signed.extend([0, 0]);
        let signature = ct.sign(&signed).unwrap();
        let two = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
        let mut sct = vec![0];
        sct.extend(digest(&SHA256, &make.named_ct.subject_public_key_info()).as_ref());
        sct.extend(millis.to_be_bytes());
        sct.extend([0, 0, 4, 3]);
        sct.extend(two(signature.len()));
        sct.extend(signature);
        let mut list = two(sct.len() + 2).to_vec();
        list.extend(two(sct.len()));
        list.extend(sct);
        let mut octets = vec![0x04, u8::try_from(list.len()).unwrap()];
        if list.len() > 0x7f {
            octets.insert(1, 0x81);
        }
        octets.extend(list);
        octets
    }
}
