//! AWS Private CA: a CA below a root, which takes its time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Response, StatusCode};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData as _, date_time_ymd,
};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{Key, operation, refusal, serve, signed};
use crate::web::{Asked, Web};

/// The CA's name.
pub const CA: &str = "arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/ca";

/// A CA of AWS Private CA.
#[derive(Clone)]
pub struct PrivateCa(Arc<Mutex<State>>);

struct State {
    /// The CA's certificate and then the root's, in PEM.
    chain: [String; 2],
    issuer: Issuer<'static, KeyPair>,
    status: &'static str,
    /// How often a certificate is looked for in vain.
    waits: usize,
    /// By ARN, in PEM.
    issued: BTreeMap<String, String>,
    asked: Vec<(String, Value)>,
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2060, 1, 1);
    params
}

impl PrivateCa {
    /// One on `web`, which `key` may use.
    pub fn start(web: &Web, key: Key) -> Self {
        let root_key = KeyPair::generate().unwrap();
        let root = params("root").self_signed(&root_key).unwrap();
        let root_issuer = Issuer::new(params("root"), root_key);
        let own_key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let own = params("private CA");
        let certificate = own.signed_by(&own_key, &root_issuer).unwrap();
        let ca = Self(Arc::new(Mutex::new(State {
            chain: [certificate.pem(), root.pem()],
            issuer: Issuer::new(own, own_key),
            status: "ACTIVE",
            waits: 0,
            issued: BTreeMap::new(),
            asked: Vec::new(),
        })));
        let state = ca.0.clone();
        let answer = move |asked: &Asked| state.lock().unwrap().answer(asked);
        serve(web, "/acm_pca", signed(key, "acm-pca", answer));
        ca
    }

    /// The root, in PEM.
    pub fn root(&self) -> String {
        self.0.lock().unwrap().chain[1].clone()
    }

    /// Has certificates looked for `times` in vain.
    pub fn waits(&self, times: usize) {
        self.0.lock().unwrap().waits = times;
    }

    /// What is told of the CA's state.
    pub fn is(&self, status: &'static str) {
        self.0.lock().unwrap().status = status;
    }

    /// What was asked since this was called before: operations and their fields.
    pub fn asked(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut self.0.lock().unwrap().asked)
    }
}

impl State {
    fn answer(&mut self, asked: &Asked) -> Response<Bytes> {
        let (operation, fields) = operation(asked, "ACMPrivateCA");
        self.asked.push((operation.clone(), fields.clone()));
        let told = |value: Value| Response::new(value.to_string().into());
        let refused = |code, why| refusal(StatusCode::BAD_REQUEST, code, why);
        if fields["CertificateAuthorityArn"] != CA {
            return refused("ResourceNotFoundException", "no such CA");
        }
        match operation.as_str() {
            "DescribeCertificateAuthority" => told(json!({"CertificateAuthority": {
                "Arn": CA,
                "Status": self.status,
                "CreatedAt": 1.7e9,
                "CertificateAuthorityConfiguration": {
                    "KeyAlgorithm": "EC_secp384r1",
                    "SigningAlgorithm": "SHA384WITHECDSA",
                },
            }})),
            "IssueCertificate" if self.status != "ACTIVE" => {
                refused("InvalidStateException", "the CA is not active")
            }
            "IssueCertificate" => {
                // Who sends no token gets another certificate each time.
                let count = self.issued.len().to_string();
                let token = fields["IdempotencyToken"].as_str().unwrap_or(&count);
                let arn = format!("{CA}/certificate/{token}");
                let issued = self.issue(&fields);
                self.issued.insert(arn.clone(), issued);
                told(json!({"CertificateArn": arn}))
            }
            "GetCertificate" if self.waits > 0 => {
                self.waits -= 1;
                refused("RequestInProgressException", "not yet")
            }
            "GetCertificate" => {
                let arn = fields["CertificateArn"].as_str().unwrap();
                match self.issued.get(arn) {
                    Some(pem) => {
                        told(json!({"Certificate": pem, "CertificateChain": self.chain.concat()}))
                    }
                    None => refused("ResourceNotFoundException", "no such certificate"),
                }
            }
            _ => refused("UnknownOperationException", &operation),
        }
    }

    fn issue(&self, fields: &Value) -> String {
        let csr = STANDARD.decode(fields["Csr"].as_str().unwrap()).unwrap();
        let csr = std::str::from_utf8(&csr).unwrap();
        let mut request = CertificateSigningRequestParams::from_pem(csr).unwrap();
        assert_eq!(fields["Validity"]["Type"], "ABSOLUTE");
        let end = fields["Validity"]["Value"].as_i64().unwrap();
        request.params.not_before = date_time_ymd(2020, 1, 1);
        request.params.not_after = OffsetDateTime::from_unix_timestamp(end).unwrap();
        request.params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        request.params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        request.params.use_authority_key_identifier_extension = true;
        // As AWS has it (RFC 5280 §4.2.1.2, method 1): servers find their journal by it.
        let id = digest(&SHA1_FOR_LEGACY_USE_ONLY, request.public_key.der_bytes());
        request.params.key_identifier_method = KeyIdMethod::PreSpecified(id.as_ref().to_vec());
        request.signed_by(&self.issuer).unwrap().pem()
    }
}
