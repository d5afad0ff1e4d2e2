//! Where calls to AWS get their credentials.

use std::time::SystemTime;

use ah_spire_wire::aws::{Caller, Environment, Service};
use ah_testkit::web::Web;
use bytes::Bytes;
use http::Request;
use serde_json::json;

use crate::k8s::cluster::Cluster;

const EC2: Service = Service::regional("EC2", "ec2");

fn environment(web: &Web, more: &[(&str, &str)]) -> Environment {
    let own = [
        ("AWS_ENDPOINT_URL".to_owned(), web.url("/aws")),
        ("AWS_EC2_METADATA_DISABLED".to_owned(), "true".to_owned()),
    ];
    let more = more.iter();
    own.into_iter()
        .chain(more.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
        .collect()
}

/// The key that a call is signed with, and its token.
async fn caller(web: &Web, environment: Environment) -> Result<(String, String), String> {
    let caller = Caller::new(environment, "eu-west-1", None);
    let request = Request::get("/path").body(Bytes::new()).unwrap();
    caller.call(EC2, request, SystemTime::now()).await?;
    let asked = web.asked();
    let headers = &asked.last().unwrap().headers;
    let authorization = headers["authorization"].to_str().unwrap();
    let key = authorization.split_once("Credential=").unwrap().1;
    let key = key.split('/').next().unwrap().to_owned();
    let token = headers.get("x-amz-security-token");
    let token = token.map_or(String::new(), |it| it.to_str().unwrap().to_owned());
    Ok((key, token))
}

fn pair(key: &str, token: &str) -> (String, String) {
    (key.to_owned(), token.to_owned())
}

#[tokio::test]
async fn credentials_are_found_where_awss_sdks_find_them() {
    let web = Web::start().await;
    web.answers("/aws/path", "");
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };

    let keys = [
        ("AWS_ACCESS_KEY_ID", "A"),
        ("AWS_SECRET_ACCESS_KEY", "s"),
        ("AWS_SESSION_TOKEN", "t"),
    ];
    let found = caller(&web, environment(&web, &keys)).await;
    assert_eq!(found, Ok(pair("A", "t")));

    let shared = file(
        "credentials",
        "[default]\naws_access_key_id = D\naws_secret_access_key = s\n[ other ]\naws_access_key_id=O\naws_secret_access_key=s\naws_session_token = o\n[role]\nrole_arn = x\n[half]\naws_access_key_id = H\n",
    );
    let with = |profile| {
        environment(
            &web,
            &[
                ("AWS_SHARED_CREDENTIALS_FILE", &shared),
                ("AWS_PROFILE", profile),
            ],
        )
    };
    assert_eq!(caller(&web, with("")).await, Ok(pair("D", "")));
    assert_eq!(caller(&web, with("other")).await, Ok(pair("O", "o")));
    for (profile, expected) in [
        ("role", "role_arn of the profile \"role\" is not served"),
        ("half", "needs aws_access_key_id and aws_secret_access_key"),
        ("none", "there is no profile \"none\" in "),
    ] {
        let error = caller(&web, with(profile)).await.unwrap_err();
        assert!(error.contains(expected), "{error}");
    }

    let given = json!({"AccessKeyId": "C", "SecretAccessKey": "s", "Token": "c", "Expiration": "2065-01-01T00:00:00Z"});
    web.answers("/container", &given);
    let token = file("token", "of-the-pod\n");
    let container = environment(
        &web,
        &[
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &web.url("/container")),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &token),
        ],
    );
    let request = Request::get("/path").body(Bytes::new()).unwrap();
    let of_pod = Caller::new(container, "eu-west-1", None);
    of_pod.call(EC2, request, SystemTime::now()).await.unwrap();
    let asked = web.asked();
    assert_eq!(asked[0].headers["authorization"], "of-the-pod");
    assert_eq!(asked[1].headers["x-amz-security-token"], "c");
    let far = [("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://192.0.2.1/x")];
    let error = caller(&web, environment(&web, &far)).await.unwrap_err();
    assert!(
        error.contains("asked for by https, or on this machine"),
        "{error}"
    );

    web.answers("/latest/api/token", "v2");
    let roles = "/latest/meta-data/iam/security-credentials/";
    web.answers(roles, "node-role\n");
    web.answers(&format!("{roles}node-role"), &given);
    let instance = environment(
        &web,
        &[
            ("AWS_EC2_METADATA_DISABLED", ""),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &web.url("")),
        ],
    );
    assert_eq!(caller(&web, instance).await, Ok(pair("C", "c")));

    let error = caller(&web, environment(&web, &[])).await.unwrap_err();
    assert!(
        error.contains("no credentials for AWS: there are none"),
        "{error}"
    );
}

#[tokio::test]
async fn both_shared_files_make_a_profile() {
    let web = Web::start().await;
    web.answers("/aws/path", "");
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join(".aws");
    std::fs::create_dir(&folder).unwrap();
    let config = "# ours
[default]
region = eu-west-1
AWS_ACCESS_KEY_ID = D # a remark
aws_secret_access_key = s
endpoint_url =
s3 =
  endpoint_url = http://192.0.2.1
[profile both]
aws_access_key_id = of the configuration
aws_secret_access_key = s
[profile 'plain']
aws_access_key_id = P
aws_secret_access_key = s
[both]
credential_process = of nobody
[profile person]
sso_session = us
[profile elsewhere]
aws_access_key_id = E
aws_secret_access_key = s
endpoint_url = http://192.0.2.1
[profile fips]
use_fips_endpoint = true
[profile no-fips]
use_fips_endpoint = false
aws_access_key_id = N
aws_secret_access_key = s
";
    std::fs::write(folder.join("config"), config).unwrap();
    let keys = "[both]\naws_access_key_id = B\naws_session_token = b\n[profile plain]\naws_access_key_id = X\n";
    std::fs::write(folder.join("credentials"), keys).unwrap();
    let home = home.path().to_str().unwrap();
    let with = |profile| environment(&web, &[("HOME", home), ("AWS_PROFILE", profile)]);
    for (profile, key, token) in [
        ("", "D", ""),
        ("both", "B", "b"),
        ("plain", "P", ""),
        ("no-fips", "N", ""),
    ] {
        assert_eq!(caller(&web, with(profile)).await, Ok(pair(key, token)));
    }
    for (profile, expected) in [
        (
            "person",
            "/.aws/config: sso_session of the profile \"person\" is not served; give it keys",
        ),
        (
            "elsewhere",
            "endpoint_url of the profile \"elsewhere\" is not served; take it out, and set AWS_ENDPOINT_URL",
        ),
        (
            "fips",
            "use_fips_endpoint of the profile \"fips\" is not served",
        ),
        ("none", "there is no profile \"none\" in "),
    ] {
        let error = caller(&web, with(profile)).await.unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    // Keys of the environment do not make up for an endpoint that is not asked.
    let keys = [
        ("HOME", home),
        ("AWS_PROFILE", "elsewhere"),
        ("AWS_ACCESS_KEY_ID", "A"),
        ("AWS_SECRET_ACCESS_KEY", "s"),
    ];
    let error = caller(&web, environment(&web, &keys)).await.unwrap_err();
    assert!(error.contains("endpoint_url of the profile"), "{error}");
    let moved = format!("{home}/.aws/config");
    let moved = [
        ("AWS_CONFIG_FILE", &*moved),
        ("AWS_DEFAULT_PROFILE", "plain"),
    ];
    let found = caller(&web, environment(&web, &moved)).await;
    assert_eq!(found, Ok(pair("P", "")));
}

#[tokio::test]
async fn the_cas_of_aws_are_those_of_its_bundle() {
    let cluster = Cluster::start().await;
    let file = cluster.folder.path().join("ca.pem");
    std::fs::write(&file, cluster.ca_pem()).unwrap();
    let with = async |bundle: &str| {
        let url = cluster.url();
        let variables = [
            ("AWS_ENDPOINT_URL", url.as_str()),
            ("AWS_CA_BUNDLE", bundle),
            ("AWS_ACCESS_KEY_ID", "A"),
            ("AWS_SECRET_ACCESS_KEY", "s"),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let caller = Caller::new(variables.into_iter().collect(), "eu-west-1", None);
        let request = Request::get("/path").body(Bytes::new()).unwrap();
        let answer = caller.call(EC2, request, SystemTime::now()).await;
        answer.unwrap_err().to_string()
    };
    let error = with(file.to_str().unwrap()).await;
    // It answers: it does not know this caller.
    assert!(error.contains("401 Unauthorized"), "{error}");
    assert!(with("").await.contains("TLS: "));
    std::fs::write(&file, "nothing").unwrap();
    let error = with(file.to_str().unwrap()).await;
    assert!(error.ends_with("it has no certificates in PEM"), "{error}");
    let error = with("/nowhere").await;
    assert!(error.starts_with("AWS_CA_BUNDLE: /nowhere: "), "{error}");
}

#[tokio::test]
async fn a_web_identity_takes_on_its_role() {
    let web = Web::start().await;
    web.answers("/aws/path", "");
    web.answers("/aws/", "<R><Credentials><AccessKeyId>W</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>w</SessionToken><Expiration>2065-01-01T00:00:00Z</Expiration></Credentials></R>");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "of.a.pod\n").unwrap();
    let of_pod = environment(
        &web,
        &[
            ("AWS_WEB_IDENTITY_TOKEN_FILE", file.to_str().unwrap()),
            ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r"),
            ("AWS_ROLE_SESSION_NAME", "mine"),
        ],
    );
    let request = Request::get("/path").body(Bytes::new()).unwrap();
    let caller = Caller::new(of_pod, "eu-west-1", None);
    caller.call(EC2, request, SystemTime::now()).await.unwrap();
    let asked = web.asked();
    assert_eq!(
        asked[0].body,
        "Version=2011-06-15&RoleSessionName=mine&Action=AssumeRoleWithWebIdentity&RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fr&WebIdentityToken=of.a.pod"
    );
    assert!(!asked[0].headers.contains_key("authorization"));
    assert_eq!(asked[1].headers["x-amz-security-token"], "w");
}
