use std::time::{Duration, SystemTime};

use ah_spire_attest::AttestError;
use ah_spire_attest::node::azure_msi::{
    AzureMsiAgent, AzureMsiAgentConfig, AzureMsiServer, AzureMsiServerConfig, MsiTenantConfig,
};
use ah_spire_attest::node::{AgentHalf, AttestedAgent};
use ah_spire_wire::azure::Azure;
use ah_testkit::node_suite::attest;
use ah_testkit::web::Web;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{Response, StatusCode};
use serde_json::{Value, json};
use spiffe::TrustDomain;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

use crate::azure_imds::{azure, bearers, interface, values};
use crate::tokens::{Issuer, now};

const TENANT: &str = "00000000-1111-2222-3333-444444444444";
const PRINCIPAL: &str = "7a1f3c55-4b0c-4d1c-9b6e-3c3b1a5e9d01";
const SUBSCRIPTION: &str = "d5b40d61-272e-48da-beb9-05f295c42bd6";
const TOKEN: &str = "/imds/metadata/identity/oauth2/token";
const KEYS: &str = "/login/common/discovery/keys";

/// Azure, and the metadata service of one of its machines.
struct Cloud {
    web: Web,
    issuer: Issuer,
}

fn resource(path: &str) -> String {
    format!("/arm/subscriptions/{SUBSCRIPTION}/resourceGroups/frontend/providers/{path}")
}

impl Cloud {
    async fn start() -> Self {
        let cloud = Self {
            web: Web::start().await,
            issuer: Issuer::new(),
        };
        let web = &cloud.web;
        web.answers(
            "/login/common/.well-known/openid-configuration",
            json!({"issuer": "https://sts.windows.net/{tenantid}/", "jwks_uri": web.url(KEYS)}),
        );
        web.answers(KEYS, keys(&cloud.issuer));
        web.answers(
            &format!("/login/{TENANT}/oauth2/v2.0/token"),
            json!({"access_token": "of-the-app", "expires_in": 3599}),
        );
        cloud.gives(&claims());
        let machine = resource("Microsoft.Compute/virtualMachines/blog");
        let id = |path: &str| json!({"id": path.strip_prefix("/arm").unwrap()});
        cloud.lists(json!({"value": [id(&machine)]}));
        let nic = resource("Microsoft.Network/networkInterfaces/nic 1");
        web.answers(
            &machine,
            json!({"properties": {"networkProfile": {"networkInterfaces": [id(&nic), {}]}}}),
        );
        web.answers(&nic.replace(' ', "%20"), interface());
        cloud
    }

    fn lists(&self, page: Value) {
        let path = format!("/arm/subscriptions/{SUBSCRIPTION}/resources");
        self.web.answers(&path, page);
    }

    /// The metadata service has a token with `claims`.
    fn gives(&self, claims: &Value) {
        self.gives_token(&self.issuer.sign(claims));
    }

    fn gives_token(&self, token: &str) {
        self.web
            .answers(TOKEN, json!({"access_token": token, "expires_in": "3600"}));
    }

    fn agent(&self) -> AzureMsiAgent {
        AzureMsiAgent::configure(AzureMsiAgentConfig::default(), azure(&self.web))
    }

    async fn server(&self, config: AzureMsiServerConfig) -> Result<AzureMsiServer, AttestError> {
        self.server_in(config, azure(&self.web)).await
    }

    async fn server_in(
        &self,
        config: AzureMsiServerConfig,
        azure: Azure,
    ) -> Result<AzureMsiServer, AttestError> {
        AzureMsiServer::configure(config, TrustDomain::new("example.org").unwrap(), azure).await
    }

    async fn attested(&self) -> Result<AttestedAgent, AttestError> {
        let server = self.server(config()).await.unwrap();
        attest(&self.agent(), &server, SystemTime::now()).await
    }
}

/// A set with the key of `issuer`, and others that are passed over.
fn keys(issuer: &Issuer) -> Value {
    let (_, certificate) = X509Certificate::from_der(issuer.certificate.der()).unwrap();
    let PublicKey::RSA(key) = certificate.public_key().parsed().unwrap() else {
        panic!("no RSA key");
    };
    let encode = |bytes: &[u8]| {
        let start = bytes.iter().position(|byte| *byte != 0).unwrap();
        URL_SAFE_NO_PAD.encode(&bytes[start..])
    };
    json!({"keys": [
        {"kty": "oct", "kid": "zero", "k": "AA"},
        {"kty": "RSA", "use": "sig", "kid": "one", "x5t": "one", "n": encode(key.modulus), "e": encode(key.exponent), "issuer": "x"},
    ]})
}

fn claims() -> Value {
    json!({
        "aud": "https://management.azure.com/",
        "iss": format!("https://sts.windows.net/{TENANT}/"),
        "iat": now(), "nbf": now(), "exp": now() + 28800,
        "appid": "a", "tid": TENANT, "sub": PRINCIPAL, "oid": PRINCIPAL,
    })
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn config() -> AzureMsiServerConfig {
    let tenant = MsiTenantConfig {
        subscription_id: SUBSCRIPTION.into(),
        app_id: "app".into(),
        app_secret: "hush".to_owned().into(),
        ..Default::default()
    };
    AzureMsiServerConfig {
        tenants: [(TENANT.to_owned(), tenant)].into(),
        ..Default::default()
    }
}

fn config_with(change: impl Fn(&mut MsiTenantConfig)) -> AzureMsiServerConfig {
    let mut config = config();
    config.tenants.values_mut().for_each(change);
    config
}

// Inventory, NodeAttestor azure_msi: the default path, every selector, `subscription_id`, `app_id`, `app_secret`.
#[tokio::test]
async fn azure_msi_believes_the_token_of_a_machine() {
    let cloud = Cloud::start().await;
    let agent = cloud.attested().await.unwrap();
    assert_eq!(
        agent.id.to_string(),
        format!("spiffe://example.org/spire/agent/azure_msi/{TENANT}/{PRINCIPAL}")
    );
    assert!(!agent.can_reattest);
    let expected = [
        "azure_msi:network-security-group:frontend:webservers",
        "azure_msi:subscription-id:d5b40d61-272e-48da-beb9-05f295c42bd6",
        "azure_msi:virtual-network-subnet:frontend:vnet:default",
        "azure_msi:virtual-network-subnet:frontend:vnet:second",
        "azure_msi:virtual-network:frontend:vnet",
        "azure_msi:vm-name:frontend:blog",
    ];
    assert_eq!(values(&agent), expected);
    let asked = cloud.web.asked();
    assert_eq!(
        asked[0].target,
        format!("{TOKEN}?api-version=2018-02-01&resource=https%3A%2F%2Fmanagement.azure.com%2F")
    );
    assert_eq!(asked[0].headers["metadata"], "true");
    assert_eq!(bearers(&asked), ["Bearer of-the-app"; 3]);
    let list = asked
        .iter()
        .find(|asked| asked.target.contains("/resources?"))
        .unwrap();
    let filter = format!("identity%2FprincipalId%20eq%20%27{PRINCIPAL}%27");
    assert!(list.target.ends_with(&filter), "{}", list.target);

    let named = AzureMsiServerConfig {
        agent_path_template: "/{{ .PrincipalID }}/{{ .TenantID }}/{{ .PluginName }}".into(),
        ..config()
    };
    let server = cloud.server(named).await.unwrap();
    let agent = attest(&cloud.agent(), &server, SystemTime::now())
        .await
        .unwrap();
    assert_eq!(
        agent.id.path(),
        format!("/spire/agent/{PRINCIPAL}/{TENANT}/azure_msi")
    );
}

// Inventory, NodeAttestor azure_msi: `resource_id` of both sides.
#[tokio::test]
async fn azure_msi_takes_tokens_for_the_resource_of_the_tenant() {
    let cloud = Cloud::start().await;
    let server = cloud
        .server(config_with(|tenant| {
            tenant.resource_id = "http://example.org/app/".into()
        }))
        .await
        .unwrap();
    let error = attest(&cloud.agent(), &server, SystemTime::now())
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("the token is not for http://example.org/app/"),
        "{error}"
    );
    cloud.gives(&with("aud", json!("http://example.org/app/")));
    let wanted = AzureMsiAgentConfig {
        resource_id: "http://example.org/app/".into(),
    };
    let agent = AzureMsiAgent::configure(wanted, azure(&cloud.web));
    cloud.web.asked();
    attest(&agent, &server, SystemTime::now()).await.unwrap();
    let asked = cloud.web.asked();
    assert!(
        asked[0]
            .target
            .ends_with("&resource=http%3A%2F%2Fexample.org%2Fapp%2F"),
        "{}",
        asked[0].target
    );
}

#[tokio::test]
async fn azure_msi_refuses_what_is_not_its_token() {
    let cloud = Cloud::start().await;
    let sign = |claims: &Value| cloud.issuer.sign(claims);
    for (token, expected) in [
        (
            sign(&with("aud", json!("other"))),
            "the token is not for https://management.azure.com/",
        ),
        (sign(&with("exp", json!(now() - 301))), "token has expired"),
        (
            sign(&with("nbf", json!(now() + 400))),
            "token not valid yet",
        ),
        (
            sign(&with("tid", json!("11111111-1111-2222-3333-444444444444"))),
            "tenant \"11111111-1111-2222-3333-444444444444\" is not authorized",
        ),
        (
            sign(&with("tid", json!(""))),
            "token missing tenant ID claim",
        ),
        (
            sign(&with("sub", Value::Null)),
            "token missing subject claim",
        ),
        (
            sign(&with("sub", json!("x' or 'y"))),
            "the subject claim is no UUID",
        ),
        (Issuer::new().sign(&claims()), "unable to verify token"),
        (
            cloud
                .issuer
                .sign_as(&json!({"alg": "RS256", "kid": "two"}), &claims()),
            "key id \"two\" not found",
        ),
        (
            cloud.issuer.sign_as(&json!({"alg": "RS256"}), &claims()),
            "token missing key id",
        ),
        (
            cloud
                .issuer
                .sign_as(&json!({"alg": "none", "kid": "one"}), &claims()),
            "unable to verify token",
        ),
        ("x.y".into(), "unable to parse token"),
    ] {
        cloud.gives_token(&token);
        let error = cloud.attested().await.unwrap_err();
        let report = error.explained().report();
        assert!(report.contains(expected), "{expected}: {report}");
        assert!(!report.contains(&token), "a token is told: {report}");
        assert!(bearers(&cloud.web.asked()).is_empty());
    }
}

#[tokio::test]
async fn azure_msi_keeps_the_keys_for_an_hour() {
    let cloud = Cloud::start().await;
    let server = cloud.server(config()).await.unwrap();
    let fetched = || {
        let asked = cloud.web.asked().into_iter();
        asked.filter(|asked| asked.target == KEYS).count()
    };
    for _ in 0..2 {
        attest(&cloud.agent(), &server, SystemTime::now())
            .await
            .unwrap();
    }
    assert_eq!(fetched(), 1);
    let later = SystemTime::now() + Duration::from_secs(3601);
    attest(&cloud.agent(), &server, later).await.unwrap();
    assert_eq!(fetched(), 1);
    let gone = Response::builder().status(StatusCode::SERVICE_UNAVAILABLE);
    cloud
        .web
        .answers_with(KEYS, gone.body(bytes::Bytes::new()).unwrap());
    let error = attest(&cloud.agent(), &server, later + Duration::from_secs(3601))
        .await
        .unwrap_err();
    assert!(matches!(error, AttestError::Unavailable(_)), "{error:?}");
}

// Inventory, NodeAttestor azure_msi: what Azure says of the machine.
#[tokio::test]
async fn azure_msi_says_what_azure_does_not_know() {
    let cloud = Cloud::start().await;
    let next = cloud.web.url(&format!(
        "/arm/subscriptions/{SUBSCRIPTION}/resources?page=2"
    ));
    for (page, expected) in [
        (json!({"value": []}), "not found"),
        (
            json!({"value": [{"id": "a"}, {"id": "b"}]}),
            "expected one result",
        ),
        (
            json!({"value": [{}]}),
            "virtual machine resource missing ID",
        ),
        (
            json!({"value": [{"id": "/x"}]}),
            "malformed virtual machine ID \"/x\"",
        ),
        (
            json!({"value": [], "nextLink": "https://example.org/"}),
            "leads away from",
        ),
    ] {
        cloud.lists(page);
        let error = cloud.attested().await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    cloud.lists(json!({"value": [{"id": "a"}], "nextLink": next}));
    let path = format!("/arm/subscriptions/{SUBSCRIPTION}/resources");
    let second = json!({"value": [{"id": "b"}]}).to_string();
    cloud
        .web
        .answers_if(&path, "page=2", Response::new(second.into()));
    let error = cloud.attested().await.unwrap_err().to_string();
    assert!(error.contains("expected one result"), "{error}");
}

// Inventory, NodeAttestor azure_msi: without an application the server's own machine, environment or identity counts.
#[tokio::test]
async fn azure_msi_asks_as_the_servers_machine_where_there_is_no_application() {
    let cloud = Cloud::start().await;
    let own = || {
        config_with(|tenant| {
            *tenant = MsiTenantConfig::default();
        })
    };
    let error = cloud.server(own()).await.err().unwrap().to_string();
    assert!(
        error.contains("this server's own subscription is not known"),
        "{error}"
    );
    cloud.web.answers(
        "/imds/metadata/instance",
        json!({"compute": {"name": "s", "subscriptionId": SUBSCRIPTION}}),
    );
    let error = cloud.server(own()).await.err().unwrap().to_string();
    assert!(
        error.contains("response missing instance resource group name"),
        "{error}"
    );
    cloud.web.answers(
        "/imds/metadata/instance",
        json!({"compute": {"name": "s", "subscriptionId": SUBSCRIPTION, "resourceGroupName": "g"}}),
    );
    let for_manager = "resource=https%3A%2F%2Fmanagement.azure.com&client_id=c";
    let given = json!({"access_token": "of-the-server", "expires_in": "3600"}).to_string();
    cloud
        .web
        .answers_if(TOKEN, for_manager, Response::new(given.into()));
    let known = Azure {
        client_id: Some("c".into()),
        ..azure(&cloud.web)
    };
    let of = async |azure: Azure| {
        let server = cloud.server_in(own(), azure).await.unwrap();
        cloud.web.asked();
        let outcome = attest(&cloud.agent(), &server, SystemTime::now()).await;
        outcome.map(|_| bearers(&cloud.web.asked()))
    };
    assert_eq!(
        of(known.clone()).await.unwrap(),
        ["Bearer of-the-server"; 3]
    );
    let secret = Azure {
        tenant_id: Some(TENANT.into()),
        client_secret: Some("hush".to_owned().into()),
        unserved: Some("AZURE_USERNAME"),
        ..known.clone()
    };
    assert_eq!(of(secret).await.unwrap(), ["Bearer of-the-app"; 3]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, Issuer::new().sign(&json!({}))).unwrap();
    let pod = Azure {
        federated_token_file: Some(file),
        ..known.clone()
    };
    assert_eq!(of(pod).await.unwrap(), ["Bearer of-the-app"; 3]);
    let unserved = Azure {
        unserved: Some("AZURE_CLIENT_CERTIFICATE_PATH"),
        ..known
    };
    let error = of(unserved).await.unwrap_err().to_string();
    assert!(
        error.contains("AZURE_CLIENT_CERTIFICATE_PATH is set, which is not served"),
        "{error}"
    );
}

#[tokio::test]
async fn azure_msi_says_what_is_wrong_with_its_settings_and_its_place() {
    let cloud = Cloud::start().await;
    for (config, expected) in [
        (
            AzureMsiServerConfig::default(),
            "configuration must have at least one tenant",
        ),
        (
            config_with(|tenant| tenant.subscription_id.clear()),
            "missing subscription id",
        ),
        (
            config_with(|tenant| tenant.app_id.clear()),
            "missing app id",
        ),
        (
            config_with(|tenant| tenant.app_secret = Default::default()),
            "missing app secret",
        ),
        (
            AzureMsiServerConfig {
                agent_path_template: "/{{ .VMID }}".into(),
                ..config()
            },
            ".VMID is not known; known are .PluginName, .TenantID and .PrincipalID",
        ),
    ] {
        let error = cloud.server(config).await.err().unwrap();
        assert!(error.to_string().contains(expected), "{error}");
    }
    cloud.web.answers(TOKEN, json!({}));
    let error = cloud.agent().begin().await.err().unwrap();
    assert!(
        error
            .to_string()
            .contains("unable to fetch token: response missing access token"),
        "{error}"
    );
    let nowhere = Azure {
        metadata: cloud.web.url("/nowhere"),
        ..azure(&cloud.web)
    };
    let agent = AzureMsiAgent::configure(AzureMsiAgentConfig::default(), nowhere);
    let error = agent.begin().await.err().unwrap();
    assert!(
        error.to_string().contains("unable to fetch token: ") && error.to_string().contains("404"),
        "{error}"
    );
}
