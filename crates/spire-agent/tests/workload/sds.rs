//! Envoy's secret discovery.

use std::process::Command;

use ah_identity_provider::pem::certificates;
use ah_spire_plugin::agent::SdsConfig;
use ah_spire_plugin::telemetry::{Prometheus, TelemetryConfig};
use ah_spire_telemetry::{Metrics, Program};
use ah_spire_wire::Channel;
use ah_spire_wire::envoy::core::data_source::Specifier;
use ah_spire_wire::envoy::core::node::UserAgentVersionType;
use ah_spire_wire::envoy::core::{BuildVersion, DataSource, Node};
use ah_spire_wire::envoy::discovery::{DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse};
use ah_spire_wire::envoy::rpc;
use ah_spire_wire::envoy::secret::secret_discovery_service_client::SecretDiscoveryServiceClient;
use ah_spire_wire::envoy::tls::secret::Type;
use ah_spire_wire::envoy::tls::{Secret, SpiffeCertValidatorConfig};
use ah_spire_wire::envoy::version::SemanticVersion;
use ah_testkit::ca::TestCa;
use ah_testkit::process::Process;
use prost::Message;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status, Streaming};

use super::clients::built_in_go;
use super::rig::{Rig, Signer, WORKLOAD, bundle_of, domain, entry, identity, svid};

const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// A stream as Envoy has it.
struct Envoy<'a> {
    rig: &'a Rig,
    requests: mpsc::UnboundedSender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
    last: DiscoveryResponse,
}

impl<'a> Envoy<'a> {
    fn open(rig: &'a Rig) -> Result<Self, Status> {
        let (requests, sent) = mpsc::unbounded_channel();
        let mut client = client(rig);
        let answer = rig.run(client.stream_secrets(UnboundedReceiverStream::new(sent)))?;
        Ok(Self {
            rig,
            requests,
            responses: answer.into_inner(),
            last: DiscoveryResponse::default(),
        })
    }

    /// Asks for `names`, as an answer to the last response.
    fn ask(&self, names: &[&str]) {
        self.requests.send(self.request(names)).unwrap();
    }

    fn request(&self, names: &[&str]) -> DiscoveryRequest {
        DiscoveryRequest {
            version_info: self.last.version_info.clone(),
            response_nonce: self.last.nonce.clone(),
            ..request(names)
        }
    }

    fn next(&mut self) -> Result<DiscoveryResponse, Status> {
        let next = self.rig.run(self.responses.message())?;
        self.last = next.expect("the stream ended");
        Ok(self.last.clone())
    }
}

fn client(rig: &Rig) -> SecretDiscoveryServiceClient<Channel> {
    SecretDiscoveryServiceClient::with_origin(rig.channel(), Channel::origin())
}

fn request(names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: names.iter().map(ToString::to_string).collect(),
        type_url: SECRET.to_owned(),
        ..DiscoveryRequest::default()
    }
}

fn fetch(rig: &Rig, request: DiscoveryRequest) -> Result<DiscoveryResponse, Status> {
    let answer = rig.run(client(rig).fetch_secrets(request))?;
    Ok(answer.into_inner())
}

fn secrets(response: &DiscoveryResponse) -> Vec<Secret> {
    let resources = response.resources.iter();
    resources
        .map(|resource| {
            assert_eq!(resource.type_url, SECRET);
            Secret::decode(&*resource.value).unwrap()
        })
        .collect()
}

fn names(response: &DiscoveryResponse) -> Vec<String> {
    secrets(response).into_iter().map(|it| it.name).collect()
}

fn inline(source: Option<DataSource>) -> Vec<u8> {
    match source.unwrap().specifier.unwrap() {
        Specifier::InlineBytes(bytes) => bytes,
        _ => panic!("not inline"),
    }
}

/// Chain and key of a certificate.
fn certificate(secret: &Secret) -> (Vec<CertificateDer<'static>>, Vec<u8>) {
    let Some(Type::TlsCertificate(certificate)) = secret.r#type.clone() else {
        panic!("{} is no certificate", secret.name);
    };
    let key = PrivatePkcs8KeyDer::from_pem_slice(&inline(certificate.private_key)).unwrap();
    let chain = certificates(&inline(certificate.certificate_chain)).unwrap();
    (chain, key.secret_pkcs8_der().to_vec())
}

/// The trust domains of a validator's configuration, with their roots; one without a name for CA certificates alone.
fn roots(secret: &Secret) -> Vec<(String, Vec<CertificateDer<'static>>)> {
    let Some(Type::ValidationContext(context)) = secret.r#type.clone() else {
        panic!("{} verifies nobody", secret.name);
    };
    let Some(validator) = context.custom_validator_config else {
        let roots = certificates(&inline(context.trusted_ca)).unwrap();
        return vec![(String::new(), roots)];
    };
    assert!(context.trusted_ca.is_none());
    assert_eq!(validator.name, "envoy.tls.cert_validator.spiffe");
    let config = validator.typed_config.unwrap();
    assert_eq!(
        config.type_url,
        "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig"
    );
    let config = SpiffeCertValidatorConfig::decode(&*config.value).unwrap();
    let domains = config.trust_domains.into_iter();
    domains
        .map(|it| (it.name, certificates(&inline(it.trust_bundle)).unwrap()))
        .collect()
}

/// An Envoy of version `major.minor`.
fn node(major: u32, minor: u32) -> Option<Node> {
    let version = UserAgentVersionType::UserAgentBuildVersion(BuildVersion {
        version: Some(SemanticVersion {
            major_number: major,
            minor_number: minor,
            patch: 0,
        }),
        metadata: None,
    });
    Some(Node {
        user_agent_version_type: Some(version),
        ..Node::default()
    })
}

/// A federated bundle for whoever is served.
fn federate(rig: &Rig) -> TestCa {
    let ca = TestCa::new("other.org");
    let bundle = bundle_of("other.org", &[&ca], &[&Signer::new("other")]);
    rig.identities.change(|update| {
        update.federated.insert(domain("other.org"), bundle.into());
    });
    ca
}

// Inventory section 4: StreamSecrets; 1.2: default_svid_name, default_bundle_name.
#[test]
fn envoy_is_given_its_svid_and_bundle_and_told_of_changes() {
    let rig = Rig::new();
    let first = rig.identities.rotate();
    let mut envoy = Envoy::open(&rig).unwrap();
    envoy.ask(&["default"]);
    let response = envoy.next().unwrap();
    assert_eq!(response.type_url, SECRET);
    assert_eq!(
        (response.version_info.as_str(), response.nonce.len()),
        ("1", 8)
    );
    let [secret] = &secrets(&response)[..] else {
        panic!("{:?}", names(&response));
    };
    assert_eq!(secret.name, "default");
    let (chain, key) = certificate(secret);
    assert_eq!(chain, first.chain());
    assert_eq!(key, first.key_der());

    // An acknowledgement is not answered: what comes next is the change.
    envoy.ask(&["default"]);
    let second = rig.identities.rotate();
    let response = envoy.next().unwrap();
    assert_eq!(response.version_info, "2");
    assert_eq!(certificate(&secrets(&response)[0]).0, second.chain());

    // A change of names is answered with the set there is.
    envoy.ask(&["ROOTCA"]);
    let response = envoy.next().unwrap();
    assert_eq!(response.version_info, "2");
    let bundle = [(
        "example.org".to_owned(),
        vec![rig.identities.ca.der().clone()],
    )];
    assert_eq!(roots(&secrets(&response)[0]), bundle);

    // The bundle changes.
    let next = TestCa::new("example.org");
    rig.identities.change(|update| {
        let bundle = bundle_of("example.org", &[&rig.identities.ca, &next], &[]);
        update.bundle = bundle.into();
    });
    let response = envoy.next().unwrap();
    assert_eq!(response.version_info, "3");
    let both = vec![rig.identities.ca.der().clone(), next.der().clone()];
    assert_eq!(
        roots(&secrets(&response)[0]),
        [("example.org".to_owned(), both)]
    );
}

// Inventory section 4: names are `default`, `ROOTCA`, `ALL` or SPIFFE IDs.
#[test]
fn each_name_stands_for_its_secret() {
    let rig = Rig::new();
    let other = federate(&rig);
    let second = entry("spiffe://example.org/second", "");
    rig.identities.change(|update| {
        let leaf = svid(&rig.identities.ca, "spiffe://example.org/second");
        update.identities.push(identity(&leaf, &second));
    });
    let own = "spiffe://example.org";
    let given = |wanted: &[&str]| names(&fetch(&rig, request(wanted)).unwrap());
    let everything = [
        own,
        "spiffe://other.org",
        WORKLOAD,
        "spiffe://example.org/second",
    ];
    assert_eq!(given(&[]), everything);
    assert_eq!(given(&[""]), everything);
    for name in [
        own,
        "spiffe://other.org",
        WORKLOAD,
        "default",
        "ROOTCA",
        "ALL",
    ] {
        assert_eq!(given(&[name]), [name]);
    }
    // More than one name for the same thing.
    assert_eq!(
        given(&["ALL", "default", "ROOTCA", WORKLOAD, own]),
        [own, "ROOTCA", "ALL", WORKLOAD, "default"]
    );
    let response = fetch(&rig, request(&["ALL"])).unwrap();
    let own = rig.identities.ca.der().clone();
    assert_eq!(
        roots(&secrets(&response)[0]),
        [
            ("example.org".to_owned(), vec![own]),
            ("other.org".to_owned(), vec![other.der().clone()])
        ]
    );
    // A call that is answered once has neither version nor nonce.
    assert_eq!((response.version_info, response.nonce), Default::default());
}

// Inventory 1.2: the names of the configuration.
#[test]
fn the_configuration_names_the_defaults() {
    let rig = Rig::with(|config| {
        config.sds = Some(SdsConfig {
            default_svid_name: "mine".into(),
            default_bundle_name: "ours".into(),
            default_all_bundles_name: "all of them".into(),
            disable_spiffe_cert_validation: true,
        });
    });
    let given = |wanted: &str| fetch(&rig, request(&[wanted]));
    for name in ["mine", "ours"] {
        assert_eq!(names(&given(name).unwrap()), [name]);
    }
    let [(name, _)] = &roots(&secrets(&given("ours").unwrap())[0])[..] else {
        panic!("more than one bundle");
    };
    assert_eq!(name, "");
    // Without the validator no Envoy knows bundles apart.
    let error = given("all of them").err().unwrap();
    assert_eq!(error.code(), Code::Internal);
    assert!(
        error.message().contains("disable_spiffe_cert_validation"),
        "{error}"
    );
    for name in ["default", "ROOTCA", "ALL"] {
        assert_eq!(given(name).err().unwrap().code(), Code::InvalidArgument);
    }
}

// Inventory section 4: Envoy's version; xDS: the first request of a stream describes the node.
#[test]
fn an_old_envoy_is_given_ca_certificates() {
    let rig = Rig::new();
    let mut envoy = Envoy::open(&rig).unwrap();
    let old = DiscoveryRequest {
        node: node(1, 17),
        ..envoy.request(&["ROOTCA"])
    };
    envoy.requests.send(old).unwrap();
    let own = rig.identities.ca.der().clone();
    let plain = [(String::new(), vec![own])];
    assert_eq!(roots(&secrets(&envoy.next().unwrap())[0]), plain);
    envoy.ask(&["ROOTCA", "default"]);
    assert_eq!(roots(&secrets(&envoy.next().unwrap())[0]), plain);
    let young = DiscoveryRequest {
        node: node(1, 18),
        ..envoy.request(&["ROOTCA"])
    };
    envoy.requests.send(young).unwrap();
    let response = envoy.next().unwrap();
    assert_eq!(roots(&secrets(&response)[0])[0].0, "example.org");
}

#[test]
fn a_request_with_an_older_nonce_is_not_answered() {
    let rig = Rig::new();
    let mut envoy = Envoy::open(&rig).unwrap();
    envoy.ask(&["default"]);
    envoy.next().unwrap();
    let late = DiscoveryRequest {
        response_nonce: "00000000x".into(),
        ..envoy.request(&["ALL"])
    };
    envoy.requests.send(late).unwrap();
    envoy.ask(&["ROOTCA"]);
    assert_eq!(names(&envoy.next().unwrap()), ["ROOTCA"]);
}

// xDS: a NACK has the version that is kept, and may have other names.
#[test]
fn a_refused_answer_is_not_repeated_until_something_changes() {
    let rig = Rig::new();
    let mut envoy = Envoy::open(&rig).unwrap();
    envoy.ask(&["default"]);
    envoy.next().unwrap();
    let refused = DiscoveryRequest {
        version_info: String::new(),
        error_detail: Some(rpc::Status {
            code: 3,
            message: "no certificate".into(),
            details: Vec::new(),
        }),
        ..envoy.request(&["default"])
    };
    envoy.requests.send(refused.clone()).unwrap();
    rig.identities.rotate();
    assert_eq!(envoy.next().unwrap().version_info, "2");
    let elsewhere = DiscoveryRequest {
        response_nonce: envoy.last.nonce.clone(),
        resource_names: vec!["ROOTCA".into()],
        ..refused
    };
    envoy.requests.send(elsewhere).unwrap();
    assert_eq!(names(&envoy.next().unwrap()), ["ROOTCA"]);
}

// Inventory section 4: the refusal of a name.
#[test]
fn a_name_that_the_workload_is_not_entitled_to_is_refused() {
    let rig = Rig::new();
    let error = fetch(&rig, request(&["b", "default", "a"])).err().unwrap();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert_eq!(
        error.message(),
        "workload is not authorized for the requested identities [\"a\" \"b\"]"
    );
    let mut envoy = Envoy::open(&rig).unwrap();
    envoy.ask(&["default"]);
    envoy.next().unwrap();
    // Nobody's from now on: what was given before is not his any more.
    rig.identities.unregister();
    let error = envoy.next().err().unwrap();
    assert_eq!(error.code(), Code::InvalidArgument);
    // The bundle is for whoever is attested, as upstream has it.
    assert_eq!(
        names(&fetch(&rig, request(&[])).unwrap()),
        ["spiffe://example.org"]
    );
}

#[test]
fn who_cannot_be_attested_is_given_nothing() {
    let rig = Rig::new();
    rig.attestor.broken.send_replace(true);
    let unavailable = |error: Status| {
        assert_eq!(error.code(), Code::Unavailable);
        assert_eq!(error.message(), "workload attestation failed");
    };
    unavailable(fetch(&rig, request(&[])).err().unwrap());
    unavailable(Envoy::open(&rig).err().unwrap());
}

// Inventory section 4: DeltaSecrets.
#[test]
fn deltas_are_not_served() {
    let rig = Rig::new();
    let none = tokio_stream::iter([DeltaDiscoveryRequest {}]);
    let error = rig.run(client(&rig).delta_secrets(none)).err().unwrap();
    assert_eq!(error.code(), Code::Unimplemented);
    assert_eq!(error.message(), "Method is not implemented");
}

#[test]
fn a_stream_without_more_requests_ends_well() {
    let rig = Rig::new();
    let mut envoy = Envoy::open(&rig).unwrap();
    envoy.ask(&["default"]);
    envoy.next().unwrap();
    let Envoy {
        requests,
        mut responses,
        ..
    } = envoy;
    drop(requests);
    assert!(rig.run(responses.message()).unwrap().is_none());
}

// Inventory 10.2: sds_api.
#[test]
fn calls_are_counted() {
    let telemetry = TelemetryConfig {
        prometheus: Some(Prometheus {
            host: "localhost".into(),
            port: 0,
            tls: None,
        }),
        hostname_label: false,
        ..TelemetryConfig::default()
    };
    let (metrics, _) = Metrics::new(&telemetry, Program::Agent, &domain("example.org")).unwrap();
    let rig = Rig::with(|config| {
        config.metrics = metrics.clone();
    });
    let counted = |line: &str| assert!(metrics.text().contains(line), "{line}\n{}", metrics.text());
    let envoy = Envoy::open(&rig).unwrap();
    counted("\nspire_agent_sds_api_connection 1\n");
    counted("\nspire_agent_sds_api_connections 1\n");
    fetch(&rig, request(&[])).unwrap();
    counted("\nspire_agent_sds_api_connection 2\n");
    drop(envoy);
}

// Inventory 1.1: disable_sds_api, disable_workload_api.
#[test]
fn either_api_may_be_off() {
    let rig = Rig::with(|config| config.sds = None);
    let error = fetch(&rig, request(&[])).err().unwrap();
    assert_eq!(error.code(), Code::Unimplemented);
    let rig = Rig::with(|config| config.disabled = true);
    assert_eq!(
        names(&fetch(&rig, request(&["default"])).unwrap()),
        ["default"]
    );
}

// Envoy's own messages, with the rules that Envoy checks them by.
#[test]
fn envoys_api_in_go_takes_what_is_served() {
    let Some(program) = built_in_go("sds") else {
        return;
    };
    let rig = Rig::new();
    federate(&rig);
    let mut command = Command::new(program);
    let mut envoy = Process::start(command.arg(rig.socket()));
    envoy.wait_for("default 1");
    envoy.wait_for("ROOTCA 1");
    envoy.wait_for("ALL 1 example.org other.org");
    rig.identities.rotate();
    envoy.wait_for("default 2");
    envoy.wait_for("done");
    assert!(envoy.wait().success(), "{:?}", envoy.lines());
}
