use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use ah_spire_attest::AttestError;
use ah_spire_attest::node::azure_imds::{
    AzureImdsAgent, AzureImdsAgentConfig, AzureImdsServer, AzureImdsServerConfig, ImdsTenantConfig,
};
use ah_spire_attest::node::{AgentHalf, AttestedAgent, Conversation};
use ah_spire_wire::azure::{Azure, Proof};
use ah_testkit::ca::{KeyType, TestCa};
use ah_testkit::node_suite::attest;
use ah_testkit::web::{Asked, Web};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Response;
use serde_json::{Value, json};
use spiffe::TrustDomain;

use crate::documents::{hex, signed};
use crate::tokens::Issuer;

const TENANT: &str = "00000000-1111-2222-3333-444444444444";
const SUBSCRIPTION: &str = "d5b40d61-272e-48da-beb9-05f295c42bd6";
const VM: &str = "02aab8a4-74ef-476e-8182-f6d2ba4166a6";
const GRAPH: &str = "/arm/providers/Microsoft.ResourceGraph/resources";

/// Azure where nothing of it is reached but `web`.
pub(crate) fn azure(web: &Web) -> Azure {
    Azure {
        authority: web.url("/login"),
        manager: web.url("/arm"),
        metadata: web.url("/imds"),
        issuers: web.url("/issuers"),
        client_id: None,
        tenant_id: None,
        client_secret: None,
        federated_token_file: None,
        unserved: None,
    }
}

/// The token that a request to Azure Resource Manager came with.
pub(crate) fn bearers(asked: &[Asked]) -> Vec<String> {
    let manager = asked
        .iter()
        .filter(|asked| asked.target.starts_with("/arm/"));
    let bearer = |asked: &Asked| asked.headers["authorization"].to_str().unwrap().to_owned();
    manager.map(bearer).collect()
}

/// A network interface as Azure Resource Manager has it.
pub(crate) fn interface() -> Value {
    let group = format!(
        "/subscriptions/{SUBSCRIPTION}/resourceGroups/frontend/providers/Microsoft.Network"
    );
    let subnet = |network: &str, name: &str| json!({"properties": {"subnet": {"id": format!("{group}/virtualNetworks/{network}/subnets/{name}")}}});
    json!({"properties": {
        "networkSecurityGroup": {"id": format!("{group}/networkSecurityGroups/webservers")},
        "ipConfigurations": [subnet("vnet", "default"), subnet("vnet", "second"), {"properties": {}}],
    }})
}

/// Azure, the metadata service of one of its machines, and the CA of such services.
struct Cloud {
    web: Web,
    root: TestCa,
    between: TestCa,
    folder: tempfile::TempDir,
}

impl Cloud {
    async fn start() -> Self {
        let root = TestCa::new("azure.example");
        let cloud = Self {
            web: Web::start().await,
            between: root.intermediate().issue(),
            root,
            folder: tempfile::tempdir().unwrap(),
        };
        let web = &cloud.web;
        let der = bytes::Bytes::from(cloud.between.der().to_vec());
        web.answers_with(
            "/issuers/pkiops/certs/between.crt",
            http::Response::new(der),
        );
        let issuer = format!("https://sts.windows.net/{TENANT}/");
        web.answers(
            "/login/example.onmicrosoft.com/.well-known/openid-configuration",
            json!({"issuer": issuer}),
        );
        web.answers(
            &format!("/login/{TENANT}/oauth2/v2.0/token"),
            json!({"access_token": "of-the-app", "expires_in": 3599}),
        );
        web.answers(
            "/imds/metadata/identity/oauth2/token",
            json!({"access_token": "of-the-machine", "expires_in": "86399"}),
        );
        cloud.is_of_scale_set("");
        cloud.knows(json!({
            "id": format!("/subscriptions/{SUBSCRIPTION}/resourcegroups/FRONTEND/providers/microsoft.compute/virtualmachines/blog"),
            "name": "blog", "location": "westus", "resourceGroup": "frontend",
            "tags": {"team": "core", "stage": "test", "count": 7},
        }));
        cloud.attests(
            &cloud.signer("eastus.metadata.azure.com", "www.microsoft.com"),
            |_| {},
        );
        cloud
    }

    /// A holder of a certificate of the metadata service `name`, whose issuer's is at `host`.
    fn signer(&self, name: &str, host: &str) -> Issuer {
        let url = format!("http://{host}/pkiops/certs/between.crt");
        let length = |bytes: usize| u8::try_from(bytes).unwrap();
        let url = [&[0x86, length(url.len())], url.as_bytes()].concat();
        let access = [hex("06082b06010505073002"), url].concat();
        let access = [&[0x30, length(access.len())], &access[..]].concat();
        let access = [&[0x30, length(access.len())], &access[..]].concat();
        let leaf = self.between.leaf().dns(name).key_type(KeyType::Rsa2048);
        Issuer::with(
            leaf.extension(&[1, 3, 6, 1, 5, 5, 7, 1, 1], false, &access)
                .issue(),
        )
    }

    /// The metadata service lets `signer` sign documents, which `change` may change.
    fn attests(&self, signer: &Issuer, change: impl Fn(&mut Value) + Send + Sync + 'static) {
        let signer = Arc::new(Issuer::with(signer.certificate.clone()));
        self.web.answers_by("/imds/metadata/attested/document", move |asked| {
            let nonce = asked.target.split("nonce=").nth(1).unwrap();
            // As in the documentation of attested data.
            let mut document = json!({
                "licenseType": "", "nonce": nonce, "plan": {"name": "", "product": "", "publisher": ""},
                "sku": "20_04-lts-gen2", "subscriptionId": SUBSCRIPTION, "vmId": VM,
                "timeStamp": {"createdOn": "11/22/26 12:00:00 -0000", "expiresOn": "11/22/26 18:00:00 -0000"},
            });
            change(&mut document);
            let document = signed(&signer, document.to_string().as_bytes(), &[signer.certificate.der()]);
            let answer = json!({"encoding": "pkcs7", "signature": STANDARD.encode(document)});
            Response::new(answer.to_string().into())
        });
    }

    fn is_of_scale_set(&self, name: &str) {
        self.web.answers(
            "/imds/metadata/instance",
            json!({"compute": {"name": "blog", "subscriptionId": SUBSCRIPTION, "resourceGroupName": "frontend", "vmScaleSetName": name}}),
        );
    }

    /// The resource graph knows the machine `row`.
    fn knows(&self, row: Value) {
        let data = |rows: Value| {
            http::Response::new(json!({"totalRecords": 1, "data": rows}).to_string().into())
        };
        self.web.answers_if(
            GRAPH,
            "microsoft.network/networkinterfaces",
            data(json!([interface()])),
        );
        self.web.answers_if(
            GRAPH,
            "microsoft.compute/virtualmachines'",
            data(json!([row])),
        );
    }

    fn roots(&self) -> PathBuf {
        self.root.write(self.folder.path(), "roots.pem")
    }

    fn config(&self) -> AzureImdsServerConfig {
        let tenant = ImdsTenantConfig {
            proof: Proof::Default,
            allowed_vm_tags: Vec::new(),
            restrict_to_subscriptions: Vec::new(),
        };
        AzureImdsServerConfig {
            tenants: [("example.onmicrosoft.com".to_owned(), tenant)].into(),
            trust_bundle_path: self.roots(),
            ..Default::default()
        }
    }

    fn config_with(&self, change: impl Fn(&mut ImdsTenantConfig)) -> AzureImdsServerConfig {
        let mut config = self.config();
        config.tenants.values_mut().for_each(change);
        config
    }

    fn agent(&self) -> AzureImdsAgent {
        let config = AzureImdsAgentConfig {
            tenant_domain: "example.onmicrosoft.com".into(),
        };
        AzureImdsAgent::configure(config, azure(&self.web)).unwrap()
    }

    async fn server(&self, config: AzureImdsServerConfig) -> Result<AzureImdsServer, AttestError> {
        let domain = TrustDomain::new("example.org").unwrap();
        AzureImdsServer::configure(config, domain, azure(&self.web)).await
    }

    async fn attested(&self, config: AzureImdsServerConfig) -> Result<AttestedAgent, AttestError> {
        let server = self.server(config).await.unwrap();
        attest(&self.agent(), &server, SystemTime::now()).await
    }

    async fn refused(&self, config: AzureImdsServerConfig) -> String {
        self.attested(config)
            .await
            .unwrap_err()
            .explained()
            .report()
    }
}

pub(crate) fn values(agent: &AttestedAgent) -> Vec<String> {
    agent.selectors.iter().map(ToString::to_string).collect()
}

// Inventory, NodeAttestor azure_imds: the default path, every selector of a machine, `allowed_vm_tags`, `tenant_domain`.
#[tokio::test]
async fn azure_imds_believes_the_document_of_a_machine() {
    let cloud = Cloud::start().await;
    let config = cloud.config_with(|tenant| {
        tenant.allowed_vm_tags = ["team", "count", "absent"].map(String::from).into();
    });
    let agent = cloud.attested(config).await.unwrap();
    assert_eq!(
        agent.id.to_string(),
        format!("spiffe://example.org/spire/agent/azure_imds/{TENANT}/{SUBSCRIPTION}/{VM}")
    );
    assert!(!agent.can_reattest);
    let expected = [
        "azure_imds:network-security-group:frontend:webservers",
        "azure_imds:resource-group:frontend",
        "azure_imds:subscription-id:d5b40d61-272e-48da-beb9-05f295c42bd6",
        "azure_imds:virtual-network-subnet:vnet:default",
        "azure_imds:virtual-network-subnet:vnet:second",
        "azure_imds:virtual-network:vnet",
        "azure_imds:vm-location:westus",
        "azure_imds:vm-name:blog",
        "azure_imds:vm-tag:team:core",
    ];
    assert_eq!(values(&agent), expected);
    let asked = cloud.web.asked();
    for asked in asked
        .iter()
        .filter(|asked| asked.target.starts_with("/imds"))
    {
        assert_eq!(asked.headers["metadata"], "true");
    }
    let document = asked
        .iter()
        .find(|asked| asked.target.contains("attested"))
        .unwrap();
    let nonce = document.target.split("nonce=").nth(1).unwrap();
    assert!(
        nonce.len() == 32 && nonce.bytes().all(|b| b.is_ascii_alphanumeric()),
        "{nonce}"
    );
    assert_eq!(
        bearers(&asked),
        ["Bearer of-the-machine", "Bearer of-the-machine"]
    );
    let graph: Vec<Value> = asked
        .iter()
        .filter(|asked| asked.target.starts_with(GRAPH))
        .map(|asked| serde_json::from_str(&asked.body).unwrap())
        .collect();
    assert_eq!(graph[0]["subscriptions"], json!([SUBSCRIPTION]));
    assert!(
        graph[0]["query"]
            .as_str()
            .unwrap()
            .contains(&format!("properties.vmId == '{VM}'"))
    );

    let named = AzureImdsServerConfig {
        agent_path_template:
            "/{{ .PluginName }}/x/{{ .VMID }}/{{ .SubscriptionID }}/{{ .TenantID | trunc 8 }}"
                .into(),
        ..cloud.config()
    };
    let agent = cloud.attested(named).await;
    let report = agent.as_ref().err().map(|error| error.to_string());
    assert_eq!(report, None);
    assert_eq!(
        agent.unwrap().id.path(),
        format!("/spire/agent/azure_imds/x/{VM}/{SUBSCRIPTION}/00000000")
    );
}

// Inventory, NodeAttestor azure_imds: selector vmss-name.
#[tokio::test]
async fn azure_imds_finds_a_machine_in_its_scale_set() {
    let cloud = Cloud::start().await;
    cloud.is_of_scale_set("pool_1");
    let row = json!({"data": [{"resourceGroup": "back end"}]}).to_string();
    cloud.web.answers_if(
        GRAPH,
        "virtualmachinescalesets' and name == 'pool_1'",
        http::Response::new(row.into()),
    );
    let list = format!(
        "/arm/subscriptions/{SUBSCRIPTION}/resourceGroups/back%20end/providers/Microsoft.Compute/virtualMachineScaleSets/pool_1/virtualMachines"
    );
    let next = cloud.web.url(&format!("{list}?page=2"));
    cloud.web.answers(
        &list,
        json!({"value": [{"properties": {"vmId": "other"}}], "nextLink": next}),
    );
    let second = json!({"value": [{
        "name": "pool_1_7", "location": "eastus", "tags": {"team": "core"},
        "properties": {"vmId": VM, "networkProfileConfiguration": {"networkInterfaceConfigurations": [interface()]}},
    }]});
    cloud.web.answers_if(
        &list,
        "page=2",
        http::Response::new(second.to_string().into()),
    );
    let agent = cloud
        .attested(cloud.config_with(|tenant| tenant.allowed_vm_tags = vec!["team".into()]))
        .await
        .unwrap();
    let values = values(&agent);
    for expected in [
        "azure_imds:vmss-name:pool_1",
        "azure_imds:vm-name:pool_1_7",
        "azure_imds:resource-group:back end",
        "azure_imds:vm-location:eastus",
        "azure_imds:vm-tag:team:core",
        "azure_imds:network-security-group:frontend:webservers",
    ] {
        assert!(
            values.contains(&expected.to_owned()),
            "{expected}: {values:?}"
        );
    }
    let away = json!({"value": [], "nextLink": "http://192.0.2.1/x"});
    cloud.web.answers(&list, away);
    let report = cloud.refused(cloud.config()).await;
    assert!(report.contains("leads away from"), "{report}");
    cloud.web.answers(&list, json!({"value": []}));
    let report = cloud.refused(cloud.config()).await;
    assert!(
        report.contains(&format!("VMSS instance {VM:?} not found")),
        "{report}"
    );
    for (name, expected) in [
        ("x' or 'y", "can only contain alphanumeric characters"),
        ("-x", "must start with an alphanumeric character"),
        (
            "x-",
            "must end with an alphanumeric character or an underscore",
        ),
        (&*"x".repeat(65), "at most 64 characters"),
    ] {
        cloud.is_of_scale_set(name);
        let report = cloud.refused(cloud.config()).await;
        assert!(report.contains(expected), "{report}");
    }
}

// Inventory, NodeAttestor azure_imds: `allowed_metadata_domains`, `trust_bundle_path`.
#[tokio::test]
async fn azure_imds_refuses_what_azure_did_not_sign() {
    let cloud = Cloud::start().await;
    let good = cloud.signer("metadata.azure.com", "www.microsoft.com");
    cloud.attests(&good, |_| {});
    cloud.attested(cloud.config()).await.unwrap();

    let without = AzureImdsServerConfig {
        trust_bundle_path: PathBuf::new(),
        ..cloud.config()
    };
    let report = cloud.refused(without).await;
    assert!(
        report.contains(
            "certificate chain validation failed: certificate signed by unknown authority"
        ),
        "{report}"
    );
    let government = AzureImdsServerConfig {
        allowed_metadata_domains: vec!["metadata.azure.us".into()],
        ..cloud.config()
    };
    let report = cloud.refused(government.clone()).await;
    assert!(
        report.contains(
            "(found SANs=[\"metadata.azure.com\"], allowed domains=[\"metadata.azure.us\"])"
        ),
        "{report}"
    );
    cloud.attests(
        &cloud.signer("usgov.metadata.azure.us", "www.microsoft.com"),
        |_| {},
    );
    cloud.attested(government).await.unwrap();

    for (name, host, expected) in [
        (
            "evilmetadata.azure.com",
            "www.microsoft.com",
            "does not have any valid domain in SAN",
        ),
        (
            "metadata.azure.com",
            "www.example.org",
            "CA Issuers URL host \"www.example.org\" does not match",
        ),
    ] {
        cloud.attests(&cloud.signer(name, host), |_| {});
        let report = cloud.refused(cloud.config()).await;
        assert!(report.contains(expected), "{report}");
    }
    for (change, expected) in [
        (("nonce", json!("of-another-time")), "nonce mismatch"),
        (("vmId", json!("")), "missing VM ID in attested document"),
        (("vmId", json!("x' or 1 == 1")), "invalid VM ID"),
        (("subscriptionId", json!("")), "missing subscription ID"),
        (("subscriptionId", json!("../x")), "invalid subscription ID"),
        (
            ("vmId", json!(7)),
            "failed to unmarshal attested document payload",
        ),
    ] {
        let (name, value): (&'static str, Value) = change;
        cloud.attests(&good, move |document| document[name] = value.clone());
        let report = cloud.refused(cloud.config()).await;
        assert!(report.contains(expected), "{report}");
    }
    for (signature, expected) in [
        ("!", "failed to decode signature"),
        ("AAAA", "failed to parse PKCS7 signature"),
    ] {
        cloud
            .web
            .answers_by("/imds/metadata/attested/document", move |_| {
                let answer = json!({"encoding": "pkcs7", "signature": signature});
                Response::new(answer.to_string().into())
            });
        let report = cloud.refused(cloud.config()).await;
        assert!(report.contains(expected), "{report}");
    }
    // Signed by one key, with the certificate of another.
    let other = cloud.signer("metadata.azure.com", "www.microsoft.com");
    let der = other.certificate.der().to_vec();
    let good = Arc::new(good);
    let signer = Arc::clone(&good);
    cloud
        .web
        .answers_by("/imds/metadata/attested/document", move |_| {
            let document = signed(&signer, b"{}", &[&der]);
            let answer = json!({"encoding": "pkcs7", "signature": STANDARD.encode(document)});
            Response::new(answer.to_string().into())
        });
    let report = cloud.refused(cloud.config()).await;
    assert!(
        report.contains("expected exactly one signer certificate"),
        "{report}"
    );
    cloud.attests(&good, |_| {});
    cloud
        .web
        .answers("/issuers/pkiops/certs/between.crt", "nothing");
    let report = cloud.refused(cloud.config()).await;
    assert!(
        report.contains("failed to fetch intermediate certificate"),
        "{report}"
    );
    assert!(
        bearers(&cloud.web.asked()).len() <= 4,
        "nothing is asked of what is not believed"
    );
}

// Inventory, NodeAttestor azure_imds: `tenants`, `restrict_to_subscriptions`, `secret_auth`, `token_auth`.
#[tokio::test]
async fn azure_imds_asks_as_whom_the_tenant_names() {
    let cloud = Cloud::start().await;
    let only = cloud.config_with(|tenant| {
        tenant.restrict_to_subscriptions = vec!["a1b2c3d4-5678-9012-3456-789012345678".into()];
    });
    let report = cloud.refused(only).await;
    assert!(
        report.contains(&format!("subscription {SUBSCRIPTION:?} is not authorized")),
        "{report}"
    );
    let these =
        cloud.config_with(|tenant| tenant.restrict_to_subscriptions = vec![SUBSCRIPTION.into()]);
    cloud.attested(these).await.unwrap();
    cloud.web.asked();

    let secret = cloud.config_with(|tenant| {
        tenant.proof = Proof::Secret {
            app_id: "app 1".into(),
            secret: "hush".to_owned().into(),
        };
    });
    cloud.attested(secret).await.unwrap();
    let asked = cloud.web.asked();
    assert_eq!(bearers(&asked), ["Bearer of-the-app", "Bearer of-the-app"]);
    let forms: Vec<_> = asked
        .iter()
        .filter(|asked| asked.target.ends_with("/token"))
        .collect();
    assert_eq!(forms.len(), 1, "the token is kept");
    assert_eq!(
        forms[0].body,
        "grant_type=client_credentials&client_id=app%201&scope=https%3A%2F%2Fmanagement.azure.com%2F.default&client_secret=hush"
    );
    let path = cloud.folder.path().join("token");
    let token = cloud.config_with(|tenant| {
        tenant.proof = Proof::Token {
            app_id: "app".into(),
            path: path.clone(),
        };
    });
    let report = cloud.refused(token.clone()).await;
    assert!(report.contains("unable to read token file"), "{report}");
    std::fs::write(&path, "no").unwrap();
    let report = cloud.refused(token.clone()).await;
    assert!(report.contains("unable to parse token file"), "{report}");
    let jwt = Issuer::new().sign(&json!({}));
    std::fs::write(&path, &jwt).unwrap();
    cloud.attested(token).await.unwrap();
    let asked = cloud.web.asked();
    let form = asked
        .iter()
        .find(|asked| asked.target.ends_with("/token"))
        .unwrap();
    assert!(
        form.body.ends_with(&format!("&client_assertion={jwt}")),
        "{}",
        form.body
    );

    // A machine that the tenant does not have is of somebody else.
    cloud.web.answers_if(
        GRAPH,
        VM,
        http::Response::new(json!({"data": []}).to_string().into()),
    );
    let report = cloud.refused(cloud.config()).await;
    assert!(
        report.contains("unable to get virtual machine: resource not found"),
        "{report}"
    );
}

#[tokio::test]
async fn azure_imds_says_what_is_wrong_with_its_settings_and_its_place() {
    let cloud = Cloud::start().await;
    let file = cloud.folder.path().join("leaf.pem");
    std::fs::write(&file, cloud.root.leaf().dns("x").issue().chain_pem()).unwrap();
    let secret = |app_id: &str, secret: &str| {
        let proof = Proof::Secret {
            app_id: app_id.into(),
            secret: secret.to_owned().into(),
        };
        cloud.config_with(move |tenant| tenant.proof = proof.clone())
    };
    let token = Proof::Token {
        app_id: "a".into(),
        path: PathBuf::new(),
    };
    let mut elsewhere = cloud.config();
    let tenant = elsewhere.tenants.pop_first().unwrap().1;
    elsewhere.tenants.insert("absent".into(), tenant);
    for (config, expected) in [
        (
            AzureImdsServerConfig::default(),
            "configuration must have at least one tenant",
        ),
        (
            AzureImdsServerConfig {
                agent_path_template: "/{{ .Name }}".into(),
                ..cloud.config()
            },
            ".Name is not known; known are .PluginName, .TenantID, .SubscriptionID and .VMID",
        ),
        (
            AzureImdsServerConfig {
                trust_bundle_path: file,
                ..cloud.config()
            },
            "contains a non-CA certificate",
        ),
        (
            AzureImdsServerConfig {
                trust_bundle_path: "/nowhere".into(),
                ..cloud.config()
            },
            "unable to load trust bundle /nowhere",
        ),
        (
            AzureImdsServerConfig {
                allowed_metadata_domains: vec![String::new()],
                ..cloud.config()
            },
            "allowed_metadata_domains has an empty domain",
        ),
        (secret("", "s"), "missing app id"),
        (secret("a", ""), "missing app secret"),
        (
            cloud.config_with(|tenant| tenant.proof = token.clone()),
            "missing token file path",
        ),
        (
            cloud.config_with(|tenant| tenant.restrict_to_subscriptions = vec![" ".into()]),
            "restrict_to_subscriptions entries must be non-empty",
        ),
        (elsewhere, "unable to lookup tenant ID of \"absent\""),
    ] {
        let error = cloud.server(config).await.err().unwrap();
        assert!(error.to_string().contains(expected), "{error}");
    }
    let nameless = AzureImdsAgent::configure(AzureImdsAgentConfig::default(), azure(&cloud.web));
    let error = nameless.err().unwrap();
    assert_eq!(
        error.to_string(),
        "nodeattestor(azure_imds): tenant_domain is required"
    );
    let other = AzureImdsAgentConfig {
        tenant_domain: "other.onmicrosoft.com".into(),
    };
    let other = AzureImdsAgent::configure(other, azure(&cloud.web)).unwrap();
    let server = cloud.server(cloud.config()).await.unwrap();
    let error = attest(&other, &server, SystemTime::now())
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("tenant \"other.onmicrosoft.com\" is not authorized"),
        "{error}"
    );

    let nowhere = Azure {
        metadata: cloud.web.url("/nowhere"),
        ..azure(&cloud.web)
    };
    let config = AzureImdsAgentConfig {
        tenant_domain: "x".into(),
    };
    let agent = AzureImdsAgent::configure(config, nowhere).unwrap();
    let (_, mut conversation) = agent.begin().await.unwrap();
    let error = conversation.answer(b"nonce").await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("unable to fetch attested document")
            && error.to_string().contains("404"),
        "{error}"
    );
    let error = conversation.answer(b"").await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("the server's challenge is no nonce"),
        "{error}"
    );
}
