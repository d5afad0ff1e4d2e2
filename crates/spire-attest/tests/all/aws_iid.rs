use std::time::{Duration, SystemTime};

use ah_spire_attest::AttestError;
use ah_spire_attest::node::aws_iid::{
    Amazon, AwsIidAgent, AwsIidAgentConfig, AwsIidServer, AwsIidServerConfig, EksConfig,
    OrganizationConfig,
};
use ah_spire_attest::node::{AgentHalf, AttestedAgent};
use ah_spire_wire::aws::Environment;
use ah_testkit::node_suite::attest;
use ah_testkit::web::Web;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Response, StatusCode};
use serde_json::{Value, json};
use spiffe::TrustDomain;

use crate::documents::{attribute, hex, signed, signed_with};
use crate::tokens::Issuer;

const INSTANCE: &str = "i-1234567890abcdef0";
const ACCOUNT: &str = "123456789012";

/// AWS, and the metadata service of one of its instances.
struct Cloud {
    web: Web,
    issuer: Issuer,
    environment: Vec<(String, String)>,
}

impl Cloud {
    async fn start() -> Self {
        let web = Web::start().await;
        let mut environment = vec![
            ("AWS_ACCESS_KEY_ID".into(), "AKIDEXAMPLE".into()),
            ("AWS_SECRET_ACCESS_KEY".into(), "of-the-server".into()),
        ];
        for id in ["EC2", "IAM", "STS", "ORGANIZATIONS", "EKS", "AUTO_SCALING"] {
            let place = format!("/{}", id.to_lowercase());
            environment.push((format!("AWS_ENDPOINT_URL_{id}"), web.url(&place)));
        }
        let cloud = Self {
            web,
            issuer: Issuer::new(),
            environment,
        };
        cloud.web.answers("/latest/api/token", "of-this-visit");
        cloud.shows(&document());
        cloud.describes(&description("2026-01-01T10:00:00.000Z"));
        cloud.web.answers("/iam/", PROFILE);
        cloud
    }

    /// The metadata service has `document`, signed as it should be.
    fn shows(&self, document: &Value) {
        let document = serde_json::to_string_pretty(document).unwrap();
        self.shows_with(&document, &signed(&self.issuer, document.as_bytes(), &[]));
    }

    fn shows_with(&self, document: &str, signature: &[u8]) {
        let of = |part| format!("/latest/dynamic/instance-identity/{part}");
        self.web.answers(&of("document"), document);
        self.web.answers(&of("signature"), "b2xk");
        // AWS breaks the lines.
        let mut text = STANDARD.encode(signature);
        text.insert(64, '\n');
        self.web.answers(&of("rsa2048"), text);
    }

    fn describes(&self, description: &str) {
        self.web.answers("/ec2/", description);
    }

    fn environment(&self) -> Environment {
        self.environment.iter().cloned().collect()
    }

    fn agent(&self) -> AwsIidAgent {
        let config = AwsIidAgentConfig {
            ec2_metadata_endpoint: self.web.url("/latest"),
        };
        AwsIidAgent::configure(&config, &Environment::default()).unwrap()
    }

    fn server_with(&self, config: AwsIidServerConfig) -> Result<AwsIidServer, AttestError> {
        let amazon = Amazon {
            environment: self.environment(),
            certificates: format!(
                "us-east-1 eu-west-3\n{}",
                self.issuer.certificate.chain_pem()
            ),
        };
        AwsIidServer::configure(config, TrustDomain::new("example.org").unwrap(), amazon)
    }

    async fn attested_by(&self, server: &AwsIidServer) -> Result<AttestedAgent, AttestError> {
        attest(&self.agent(), server, SystemTime::now()).await
    }

    async fn attested(&self, config: AwsIidServerConfig) -> Result<AttestedAgent, AttestError> {
        self.attested_by(&self.server_with(config).unwrap()).await
    }

    async fn refused(&self, config: AwsIidServerConfig) -> String {
        let error = self.attested(config).await.unwrap_err();
        error.explained().report()
    }

    /// The scopes of signatures, and the tokens that were sent, of requests to `place`.
    fn asked(&self, place: &str) -> Vec<(String, String)> {
        let asked = self.web.asked().into_iter();
        let asked = asked.filter(|asked| asked.target.starts_with(place));
        let header = |asked: &ah_testkit::web::Asked, name: &str| {
            let value = asked.headers.get(name).map(|it| it.to_str().unwrap());
            value.unwrap_or_default().to_owned()
        };
        asked
            .map(|asked| {
                let authorization = header(&asked, "authorization");
                let scope = authorization.split(", ").next().unwrap();
                let scope = scope.rsplit("Credential=").next().unwrap();
                let mut parts = scope.split('/');
                let key = parts.next().unwrap();
                let rest: Vec<_> = parts.skip(1).collect();
                let token = header(&asked, "x-amz-security-token");
                (format!("{key}/{}", rest.join("/")), token)
            })
            .collect()
    }
}

/// As in the documentation of instance identity documents.
fn document() -> Value {
    json!({
        "accountId": ACCOUNT,
        "architecture": "x86_64",
        "availabilityZone": "us-east-1b",
        "billingProducts": null,
        "devpayProductCodes": null,
        "imageId": "ami-5fb8c835",
        "instanceId": INSTANCE,
        "instanceType": "t2.micro",
        "kernelId": null,
        "marketplaceProductCodes": null,
        "pendingTime": "2016-11-19T16:32:11Z",
        "privateIp": "10.158.112.84",
        "ramdiskId": null,
        "region": "us-east-1",
        "version": "2017-09-30",
    })
}

/// As in the documentation of DescribeInstances, with the root volume attached at `attached`.
fn description(attached: &str) -> String {
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<DescribeInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">
  <requestId>8f7724cf-496f-496e-8fe3-example</requestId>
  <reservationSet><item><reservationId>r-1234567890abcdef0</reservationId><instancesSet><item>
    <instanceId>{INSTANCE}</instanceId><imageId>ami-5fb8c835</imageId>
    <instanceState><code>16</code><name>running</name></instanceState>
    <groupSet>
      <item><groupId>sg-01234567</groupId><groupName>blog</groupName></item>
      <item><groupId>sg-76543210</groupId><groupName>web &amp; ssh</groupName></item>
    </groupSet>
    <rootDeviceType>ebs</rootDeviceType><rootDeviceName>/dev/xvda</rootDeviceName>
    <blockDeviceMapping>
      <item><deviceName>/dev/sdb</deviceName><ebs><attachTime>2020-01-01T00:00:00.000Z</attachTime></ebs></item>
      <item><deviceName>/dev/xvda</deviceName><ebs><attachTime>{attached}</attachTime></ebs></item>
    </blockDeviceMapping>
    <tagSet><item><key>name</key><value>blog</value></item><item><key>team</key><value>core</value></item></tagSet>
    <networkInterfaceSet>
      <item><attachment><deviceIndex>1</deviceIndex><attachTime>2020-01-01T00:00:00.000Z</attachTime></attachment></item>
      <item><attachment><deviceIndex>0</deviceIndex><attachTime>2026-01-01T10:00:30.000Z</attachTime></attachment></item>
    </networkInterfaceSet>
    <iamInstanceProfile><arn>arn:aws:iam::{ACCOUNT}:instance-profile/some/path/Webserver</arn><id>A</id></iamInstanceProfile>
  </item></instancesSet></item></reservationSet>
</DescribeInstancesResponse>"#
    )
}

const PROFILE: &str = r#"<GetInstanceProfileResponse xmlns="https://iam.amazonaws.com/doc/2010-05-08/">
  <GetInstanceProfileResult><InstanceProfile><Roles>
    <member><Arn>arn:aws:iam::123456789012:role/Blog</Arn></member>
    <member><Arn>arn:aws:iam::123456789012:role/Logs</Arn></member>
  </Roles><Arn>arn:aws:iam::123456789012:instance-profile/some/path/Webserver</Arn></InstanceProfile></GetInstanceProfileResult>
</GetInstanceProfileResponse>"#;

fn config() -> AwsIidServerConfig {
    AwsIidServerConfig::default()
}

fn values(agent: &AttestedAgent) -> Vec<String> {
    agent.selectors.iter().map(ToString::to_string).collect()
}

// Inventory, NodeAttestor aws_iid: the default path, every selector, `ec2_metadata_endpoint`.
#[tokio::test]
async fn aws_iid_believes_the_document_of_an_instance() {
    let cloud = Cloud::start().await;
    let agent = cloud.attested(config()).await.unwrap();
    assert_eq!(
        agent.id.to_string(),
        format!("spiffe://example.org/spire/agent/aws_iid/{ACCOUNT}/us-east-1/{INSTANCE}")
    );
    assert!(!agent.can_reattest);
    let expected = [
        "aws_iid:account_id:123456789012",
        "aws_iid:az:us-east-1b",
        "aws_iid:iamrole:arn:aws:iam::123456789012:role/Blog",
        "aws_iid:iamrole:arn:aws:iam::123456789012:role/Logs",
        "aws_iid:image:id:ami-5fb8c835",
        "aws_iid:instance:id:i-1234567890abcdef0",
        "aws_iid:region:us-east-1",
        "aws_iid:sg:id:sg-01234567",
        "aws_iid:sg:id:sg-76543210",
        "aws_iid:sg:name:blog",
        "aws_iid:sg:name:web & ssh",
        "aws_iid:tag:name:blog",
        "aws_iid:tag:team:core",
    ];
    assert_eq!(values(&agent), expected);

    let asked = cloud.web.asked();
    let [token, document, old, new, ec2, iam] = &asked[..] else {
        panic!("{asked:?}");
    };
    assert_eq!(token.method, Method::PUT);
    assert!(
        token
            .headers
            .contains_key("x-aws-ec2-metadata-token-ttl-seconds")
    );
    for read in [document, old, new] {
        assert_eq!(read.headers["x-aws-ec2-metadata-token"], "of-this-visit");
    }
    for (asked, words) in [
        (
            ec2,
            format!(
                "Action=DescribeInstances&Version=2016-11-15&InstanceId.1={INSTANCE}&Filter.1.Name=instance-state-name&Filter.1.Value.1=pending&Filter.1.Value.2=running"
            ),
        ),
        (
            iam,
            "Action=GetInstanceProfile&Version=2010-05-08&InstanceProfileName=Webserver".into(),
        ),
    ] {
        assert_eq!(asked.body, words);
        let authorization = asked.headers["authorization"].to_str().unwrap();
        assert!(
            authorization.starts_with("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/"),
            "{authorization}"
        );
    }
}

// Inventory, NodeAttestor aws_iid: `agent_path_template`, `disable_instance_profile_selectors`.
#[tokio::test]
async fn aws_iid_names_agents_and_leaves_roles_out_if_told_so() {
    let cloud = Cloud::start().await;
    let agent = cloud
        .attested(AwsIidServerConfig {
            agent_path_template: "/{{ .PluginName }}/{{ .Tags.team | upper }}/{{ .Region }}/{{ .AccountID }}/{{ .InstanceID }}".into(),
            disable_instance_profile_selectors: true,
            ..config()
        })
        .await
        .unwrap();
    assert_eq!(
        agent.id.path(),
        format!("/spire/agent/aws_iid/CORE/us-east-1/{ACCOUNT}/{INSTANCE}")
    );
    assert!(!values(&agent).iter().any(|it| it.contains("iamrole")));
    assert!(cloud.asked("/iam").is_empty());
    let untagged = AwsIidServerConfig {
        agent_path_template: "/{{ .Tags.stage }}".into(),
        ..config()
    };
    let report = cloud.refused(untagged).await;
    assert!(
        report.contains("the instance has no tag for Tag(\"stage\")"),
        "{report}"
    );
}

#[tokio::test]
async fn aws_iid_refuses_what_aws_did_not_sign() {
    let cloud = Cloud::start().await;
    let text = document().to_string();
    let other = Issuer::new();
    let data = hex("06092a864886f70d010701");
    let wrong_digest = [
        attribute("06092a864886f70d010903", &data),
        attribute("06092a864886f70d010904", &[&[4, 32][..], &[7; 32]].concat()),
    ]
    .concat();
    let no_type = attribute("06092a864886f70d010904", &[&[4, 32][..], &[7; 32]].concat());
    let mut changed = signed(&cloud.issuer, text.as_bytes(), &[]);
    let at = changed.len() - 12;
    changed[at] ^= 1;
    for (document, signature, expected) in [
        (
            text.clone(),
            signed(&other, text.as_bytes(), &[other.certificate.der()]),
            "another certificate is named as the signer's (region \"us-east-1\")",
        ),
        (
            text.clone(),
            changed,
            "the signature is not of the signer's key",
        ),
        (
            text.replace(INSTANCE, "i-00000000000000000"),
            signed(&cloud.issuer, text.as_bytes(), &[]),
            "instance identity document does not match the verified PKCS7 content",
        ),
        (
            text.clone(),
            signed_with(&cloud.issuer, text.as_bytes(), &[], &wrong_digest),
            "its signed attributes are about other content",
        ),
        (
            text.clone(),
            signed_with(&cloud.issuer, text.as_bytes(), &[], &no_type),
            "its signed attributes are about content of another type",
        ),
        (text.clone(), b"\x30\x00".repeat(40), "SignedData"),
        (
            text.replace("us-east-1\"", "mars-1\""),
            vec![0; 65],
            "region \"mars-1\": unsupported region",
        ),
        ("{}x".into(), vec![0; 65], "failed to unmarshal the IID"),
    ] {
        cloud.shows_with(&document, &signature);
        let report = cloud.refused(config()).await;
        assert!(report.contains(expected), "{expected}: {report}");
    }
    let mut nameless = document();
    nameless["instanceId"] = json!("../x");
    cloud.shows(&nameless);
    let report = cloud.refused(config()).await;
    assert!(
        report.contains("no instanceId that can be used"),
        "{report}"
    );
    // An old agent has the RSA-1024 signature alone.
    cloud.shows(&document());
    cloud
        .web
        .answers("/latest/dynamic/instance-identity/rsa2048", "");
    let report = cloud.refused(config()).await;
    assert!(report.contains("there is none with RSA-2048"), "{report}");
    assert!(cloud.asked("/ec2").is_empty());
}

// Inventory, NodeAttestor aws_iid: `skip_block_device`, `account_ids_for_local_validation`.
#[tokio::test]
async fn aws_iid_looks_whether_the_root_volume_came_with_the_instance() {
    let cloud = Cloud::start().await;
    let whole = description("2026-01-01T10:00:00.000Z");
    for (description, expected) in [
        (
            description("2026-01-01T10:01:31.000Z"),
            "attach times differ by 61 seconds",
        ),
        (
            whole.replace("<rootDeviceName>/dev/xvda", "<rootDeviceName>/dev/sda1"),
            "failed to locate the root device block mapping with name \"/dev/sda1\"",
        ),
        (
            whole.replace("<deviceIndex>0<", "<deviceIndex>2<"),
            "network interface with device index 0 is inaccessible",
        ),
    ] {
        cloud.describes(&description);
        let report = cloud.refused(config()).await;
        assert!(report.contains(expected), "{report}");
        for lenient in [
            AwsIidServerConfig {
                skip_block_device: true,
                ..config()
            },
            AwsIidServerConfig {
                account_ids_for_local_validation: vec![ACCOUNT.into()],
                ..config()
            },
        ] {
            cloud.attested(lenient).await.unwrap();
        }
        let others = AwsIidServerConfig {
            account_ids_for_local_validation: vec!["999999999999".into()],
            ..config()
        };
        let report = cloud.refused(others).await;
        assert!(report.contains(expected), "{report}");
    }
    let stored = description("2020-01-01T00:00:00.000Z");
    cloud.describes(&stored.replace("<rootDeviceType>ebs", "<rootDeviceType>instance-store"));
    cloud.attested(config()).await.unwrap();

    // An instance has to be there, whatever is left out.
    let lenient = AwsIidServerConfig {
        skip_block_device: true,
        ..config()
    };
    cloud.describes("<DescribeInstancesResponse><reservationSet/></DescribeInstancesResponse>");
    let report = cloud.refused(lenient.clone()).await;
    assert!(report.contains("returned no reservations"), "{report}");
    cloud.describes(&whole.replace(INSTANCE, "i-0"));
    let report = cloud.refused(lenient.clone()).await;
    assert!(report.contains("and \"i-0\" was described"), "{report}");
    let denied = Response::builder().status(StatusCode::FORBIDDEN);
    let denied = denied.body("<Response><Errors><Error><Code>UnauthorizedOperation</Code><Message>You are not authorized</Message></Error></Errors></Response>".into());
    cloud.web.answers_with("/ec2/", denied.unwrap());
    let report = cloud.refused(lenient).await;
    assert!(
        report.contains("failed to describe instance: ")
            && report.contains("403 Forbidden: UnauthorizedOperation: You are not authorized"),
        "{report}"
    );
}

// Inventory, NodeAttestor aws_iid: `access_key_id`, `secret_access_key`, `assume_role`, `partition`.
#[tokio::test]
async fn aws_iid_asks_in_a_role_of_the_instances_account() {
    let cloud = Cloud::start().await;
    let role = |until: &str| {
        cloud.web.answers("/sts/", format!(
            r#"<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>
<AccessKeyId>ASIAROLE</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>of-the-role</SessionToken>
<Expiration>{until}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"#
        ));
    };
    role("2065-01-01T00:00:00Z");
    let server = cloud
        .server_with(AwsIidServerConfig {
            access_key_id: "AKIDOFFILE".into(),
            secret_access_key: "x".to_owned().into(),
            assume_role: "spire-server-delegate".into(),
            partition: "aws-us-gov".into(),
            ..config()
        })
        .unwrap();
    cloud.attested_by(&server).await.unwrap();
    let asked = cloud.web.asked();
    let sts = asked.iter().find(|asked| asked.target == "/sts/").unwrap();
    let form = "Version=2011-06-15&RoleSessionName=spire&Action=AssumeRole&RoleArn=arn%3Aaws-us-gov%3Aiam%3A%3A123456789012%3Arole%2Fspire-server-delegate&DurationSeconds=900";
    assert_eq!(sts.body, form);
    let own = sts.headers["authorization"].to_str().unwrap();
    assert!(own.contains("Credential=AKIDOFFILE/"), "{own}");
    // The role's keys are kept until they end.
    cloud.attested_by(&server).await.unwrap();
    let expected = (
        "ASIAROLE/us-east-1/ec2/aws4_request".to_owned(),
        "of-the-role".to_owned(),
    );
    assert_eq!(cloud.asked("/ec2"), [expected]);
    cloud.attested_by(&server).await.unwrap();
    assert!(cloud.asked("/sts").is_empty());
    let ended = cloud
        .server_with(AwsIidServerConfig {
            assume_role: "r".into(),
            ..config()
        })
        .unwrap();
    role("2015-01-01T00:00:00Z");
    cloud.attested_by(&ended).await.unwrap();
    assert_eq!(cloud.asked("/sts").len(), 2, "one for EC2, one for IAM");
    let denied = Response::builder().status(StatusCode::FORBIDDEN);
    let denied = denied.body("<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>".into());
    cloud.web.answers_with("/sts/", denied.unwrap());
    let error = cloud.attested_by(&ended).await.unwrap_err().to_string();
    assert!(
        error.contains(
            "no credentials for AWS: the role arn:aws:iam::123456789012:role/r is not assumed"
        ) && error.contains("AccessDenied: no"),
        "{error}"
    );
}

// Inventory, NodeAttestor aws_iid: `verify_organization` with AWS.
#[tokio::test]
async fn aws_iid_lets_in_the_active_accounts_of_an_organization() {
    let cloud = Cloud::start().await;
    let credentials = |key: &str| {
        format!(
            "<R><Credentials><AccessKeyId>{key}</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken><Expiration>2065-01-01T00:00:00Z</Expiration></Credentials></R>"
        )
    };
    cloud.web.answers("/sts/", credentials("ASIAORG"));
    let page = |accounts: Value, next: Value| {
        Response::new(
            json!({"Accounts": accounts, "NextToken": next})
                .to_string()
                .into(),
        )
    };
    let account = |id: &str, status: &str| json!({"Id": id, "Status": status});
    let lists = |status: &str| {
        cloud.web.answers_with(
            "/organizations/",
            page(json!([account("1", "ACTIVE")]), json!("more")),
        );
        cloud.web.answers_if(
            "/organizations/",
            "{\"NextToken\":\"more\"}",
            page(json!([account(ACCOUNT, status)]), Value::Null),
        );
    };
    lists("ACTIVE");
    let config = || AwsIidServerConfig {
        verify_organization: Some(OrganizationConfig {
            management_account_id: "210987654321".into(),
            assume_org_role: "lister".into(),
            org_account_map_ttl: Some(Duration::from_mins(1)),
            ..Default::default()
        }),
        ..config()
    };
    let server = cloud.server_with(config()).unwrap();
    cloud.attested_by(&server).await.unwrap();
    let asked = cloud.web.asked();
    let sts = asked.iter().find(|asked| asked.target == "/sts/").unwrap();
    assert!(
        sts.body
            .contains("arn%3Aaws%3Aiam%3A%3A210987654321%3Arole%2Flister"),
        "{}",
        sts.body
    );
    let of_sts = sts.headers["authorization"].to_str().unwrap();
    assert!(of_sts.contains("/us-west-2/sts/"), "{of_sts}");
    let lists_asked: Vec<_> = asked
        .iter()
        .filter(|it| it.target == "/organizations/")
        .collect();
    assert_eq!(lists_asked.len(), 2);
    assert_eq!(
        lists_asked[0].headers["x-amz-target"],
        "AWSOrganizationsV20161128.ListAccounts"
    );
    let signed = lists_asked[0].headers["authorization"].to_str().unwrap();
    assert!(signed.contains("/us-east-1/organizations/"), "{signed}");

    // The list counts for a minute; then the account's state is seen.
    lists("SUSPENDED");
    cloud.attested_by(&server).await.unwrap();
    assert!(cloud.asked("/organizations").is_empty());
    let later = SystemTime::now() + Duration::from_secs(61);
    let error = attest(&cloud.agent(), &server, later).await.unwrap_err();
    assert!(matches!(error, AttestError::Refused(_)), "{error:?}");
    assert!(
        error
            .to_string()
            .contains("is not part of configured organization or doesn't have ACTIVE status")
    );
    // An unknown account makes it be fetched again, five times at most.
    for _ in 0..7 {
        attest(&cloud.agent(), &server, later).await.unwrap_err();
    }
    assert_eq!(cloud.asked("/organizations").len(), 2 * (1 + 5));

    let elsewhere = AwsIidServerConfig {
        verify_organization: Some(OrganizationConfig {
            management_account_region: "eu-west-3".into(),
            ..config().verify_organization.unwrap()
        }),
        ..config()
    };
    cloud.refused(elsewhere).await;
    let (scope, _) = cloud.asked("/sts").remove(0);
    assert_eq!(scope, "AKIDEXAMPLE/eu-west-3/sts/aws4_request");
    cloud.web.answers("/organizations/", "[");
    let report = cloud.refused(config()).await;
    assert!(
        report.contains("issue while getting list of accounts: the answer of organizations"),
        "{report}"
    );
}

// Inventory, NodeAttestor aws_iid: `verify_organization { account_list_file }`.
#[tokio::test]
async fn aws_iid_reads_the_accounts_of_an_organization_from_a_file() {
    let cloud = Cloud::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("accounts.json");
    let with = |organization: OrganizationConfig| AwsIidServerConfig {
        verify_organization: Some(organization),
        ..config()
    };
    let from_file = || OrganizationConfig {
        account_list_file: file.clone(),
        ..Default::default()
    };
    let told = |organization: OrganizationConfig| {
        let error = cloud.server_with(with(organization)).err().unwrap();
        error.to_string()
    };
    assert!(told(from_file()).contains("invalid \"account_list_file\""));
    for (text, expected) in [
        ("{}", "expected a JSON array of account IDs"),
        (
            "[\"12\"]",
            "invalid account id \"12\", expected a 12-digit AWS account id",
        ),
    ] {
        std::fs::write(&file, text).unwrap();
        assert!(
            told(from_file()).contains(expected),
            "{}",
            told(from_file())
        );
    }
    std::fs::write(&file, format!("[\"{ACCOUNT}\"]")).unwrap();
    let both = OrganizationConfig {
        assume_org_role: "r".into(),
        ..from_file()
    };
    assert!(told(both).contains("\"account_list_file\" is mutually exclusive"));
    let half = OrganizationConfig {
        management_account_id: "1".into(),
        ..Default::default()
    };
    assert!(told(half).contains("\"management_account_id\" & \"assume_org_role\" are present"));
    let short = OrganizationConfig {
        org_account_map_ttl: Some(Duration::from_secs(59)),
        ..from_file()
    };
    assert!(told(short).contains("greater than or equal to \"1m\""));

    let server = cloud.server_with(with(from_file())).unwrap();
    cloud.attested_by(&server).await.unwrap();
    assert!(cloud.asked("/organizations").is_empty());
    // Three minutes later it is read again; what cannot be read lets nobody in.
    let later = SystemTime::now() + Duration::from_secs(181);
    std::fs::write(&file, "[]").unwrap();
    let error = attest(&cloud.agent(), &server, later).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("is not part of configured organization")
    );
    std::fs::write(&file, "[").unwrap();
    let later = later + Duration::from_secs(181);
    let error = attest(&cloud.agent(), &server, later).await.unwrap_err();
    let told = error.to_string();
    assert!(told.contains("failed to load org account list"), "{told}");
}

// Inventory, NodeAttestor aws_iid: `validate_eks_cluster_membership`.
#[tokio::test]
async fn aws_iid_lets_in_the_nodes_of_clusters() {
    let cloud = Cloud::start().await;
    let clusters = |names: &[&str]| AwsIidServerConfig {
        validate_eks_cluster_membership: Some(EksConfig {
            eks_cluster_names: names.iter().map(ToString::to_string).collect(),
        }),
        ..config()
    };
    let groups = "/eks/clusters/here/node-groups";
    cloud
        .web
        .answers(groups, json!({"nodegroups": ["empty"], "nextToken": "a/b"}));
    let second = json!({"nodegroups": ["workers"]}).to_string();
    cloud
        .web
        .answers_if(groups, "nextToken=a%2Fb", Response::new(second.into()));
    cloud.web.answers(
        &format!("{groups}/empty"),
        json!({"nodegroup": {"resources": {}}}),
    );
    cloud.web.answers(
        &format!("{groups}/workers"),
        json!({"nodegroup": {"resources": {"autoScalingGroups": [{"name": "scaled 1"}]}}}),
    );
    let scaled = |id: &str, next: &str| {
        let members = format!(
            "<AutoScalingGroups><member><Instances><member><InstanceId>{id}</InstanceId></member></Instances></member></AutoScalingGroups>{next}"
        );
        Response::new(format!("<R><DescribeAutoScalingGroupsResult>{members}</DescribeAutoScalingGroupsResult></R>").into())
    };
    let first = "AutoScalingGroupNames.member.1=scaled%201";
    cloud.web.answers_if(
        "/auto_scaling/",
        first,
        scaled("i-0", "<NextToken>n</NextToken>"),
    );
    cloud
        .web
        .answers_if("/auto_scaling/", "NextToken=n", scaled(INSTANCE, ""));
    let server = cloud.server_with(clusters(&["here"])).unwrap();
    cloud.attested_by(&server).await.unwrap();
    let (scope, _) = cloud.asked("/eks").remove(0);
    assert_eq!(scope, "AKIDEXAMPLE/us-east-1/eks/aws4_request");
    cloud.attested_by(&server).await.unwrap();
    assert!(cloud.asked("/eks").is_empty(), "the list is kept");

    cloud
        .web
        .answers_if("/auto_scaling/", "NextToken=n", scaled("i-1", ""));
    let report = cloud.refused(clusters(&["here"])).await;
    assert!(
        report.contains(&format!(
            "nodes id: {INSTANCE} is not part of configured EKS cluster"
        )),
        "{report}"
    );
    let report = cloud.refused(clusters(&["there"])).await;
    assert!(
        report.contains("issue while getting list of EKS Nodegroups") && report.contains("404"),
        "{report}"
    );
    for names in [&[][..], &[""]] {
        let error = cloud.server_with(clusters(names)).err().unwrap();
        assert!(
            error.to_string().contains("eks_cluster_names is required"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn aws_iid_says_what_is_wrong_with_its_settings_and_its_place() {
    let mut cloud = Cloud::start().await;
    cloud.environment.retain(|(name, _)| !name.contains("KEY"));
    for (config, expected) in [
        (
            AwsIidServerConfig {
                partition: "azure".into(),
                ..config()
            },
            "invalid partition \"azure\", must be one of: [aws aws-cn aws-us-gov]",
        ),
        (
            AwsIidServerConfig {
                access_key_id: "a".into(),
                ..config()
            },
            "configuration missing secret access key, but has access key id",
        ),
        (
            AwsIidServerConfig {
                secret_access_key: "a".to_owned().into(),
                ..config()
            },
            "configuration missing access key id, but has secret access key",
        ),
        (
            AwsIidServerConfig {
                agent_path_template: "/{{ .Zone }}".into(),
                ..config()
            },
            ".Zone is not known; known are .PluginName, .AccountID, .Region, .InstanceID and .Tags.<key>",
        ),
    ] {
        let error = cloud.server_with(config).err().unwrap();
        assert!(error.to_string().contains(expected), "{error}");
    }
    let config = AwsIidAgentConfig {
        ec2_metadata_endpoint: "ftp://x".into(),
    };
    let error = AwsIidAgent::configure(&config, &Environment::default())
        .err()
        .unwrap();
    assert!(
        error
            .to_string()
            .contains("ec2_metadata_endpoint: \"ftp://x\""),
        "{error}"
    );
    // Without a token there is the first version, unless it is forbidden.
    let missing = Response::builder().status(StatusCode::NOT_FOUND);
    let missing = missing.body(bytes::Bytes::new()).unwrap();
    cloud.web.answers_with("/latest/api/token", missing);
    cloud.agent().begin().await.unwrap();
    let asked = cloud.web.asked();
    assert!(!asked[1].headers.contains_key("x-aws-ec2-metadata-token"));
    let endpoint = (
        "AWS_EC2_METADATA_SERVICE_ENDPOINT".to_owned(),
        cloud.web.url(""),
    );
    let strict = ("AWS_EC2_METADATA_V1_DISABLED".to_owned(), "true".to_owned());
    let strict = AwsIidAgent::configure(
        &AwsIidAgentConfig::default(),
        &[endpoint, strict].into_iter().collect(),
    );
    let error = strict.unwrap().begin().await.err().unwrap();
    assert!(
        error
            .to_string()
            .contains("api/token: unexpected status code: 404"),
        "{error}"
    );
}

// The certificates are those of AWS's documentation, one a region.
#[tokio::test]
async fn aws_iid_knows_the_certificates_of_all_regions() {
    let amazon = Amazon::of_process();
    let names: Vec<_> = amazon
        .certificates
        .lines()
        .filter(|line| line.contains("-1") && line.len() < 20)
        .collect();
    assert!(
        names.len() > 20 && names.contains(&"cn-north-1") && names.contains(&"us-gov-west-1"),
        "{names:?}"
    );
    assert_eq!(amazon.certificates.matches("BEGIN CERTIFICATE").count(), 39);
    let real = Amazon {
        environment: Environment::default(),
        ..amazon
    };
    let domain = TrustDomain::new("example.org").unwrap();
    let server = AwsIidServer::configure(config(), domain, real).unwrap();
    let cloud = Cloud::start().await;
    let error = cloud.attested_by(&server).await.unwrap_err();
    assert!(
        error.to_string().contains("(region \"us-east-1\")"),
        "{error}"
    );
}
