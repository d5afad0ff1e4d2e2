use super::*;

const EC2: Service = Service::regional("EC2", "ec2");
const IAM: Service = Service::global("IAM", "iam");
const ORGANIZATIONS: Service = Service::global("ORGANIZATIONS", "organizations");

fn environment(variables: &[(&str, &str)]) -> Environment {
    let variables = variables.iter();
    variables
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn services_are_where_aws_has_them() {
    for (service, region, url, signed_for) in [
        (
            EC2,
            "eu-west-1",
            "https://ec2.eu-west-1.amazonaws.com",
            "eu-west-1",
        ),
        (
            EC2,
            "cn-north-1",
            "https://ec2.cn-north-1.amazonaws.com.cn",
            "cn-north-1",
        ),
        (
            EC2,
            "us-gov-west-1",
            "https://ec2.us-gov-west-1.amazonaws.com",
            "us-gov-west-1",
        ),
        (
            EC2,
            "eusc-de-east-1",
            "https://ec2.eusc-de-east-1.amazonaws.eu",
            "eusc-de-east-1",
        ),
        (
            Service::STS,
            "eu-west-1",
            "https://sts.eu-west-1.amazonaws.com",
            "eu-west-1",
        ),
        (IAM, "eu-west-1", "https://iam.amazonaws.com", "us-east-1"),
        (
            IAM,
            "cn-northwest-1",
            "https://iam.cn-north-1.amazonaws.com.cn",
            "cn-north-1",
        ),
        (
            IAM,
            "us-gov-east-1",
            "https://iam.us-gov.amazonaws.com",
            "us-gov-west-1",
        ),
        (
            ORGANIZATIONS,
            "eu-west-1",
            "https://organizations.us-east-1.amazonaws.com",
            "us-east-1",
        ),
        (
            ORGANIZATIONS,
            "cn-north-1",
            "https://organizations.cn-northwest-1.amazonaws.com.cn",
            "cn-northwest-1",
        ),
        (
            ORGANIZATIONS,
            "us-gov-east-1",
            "https://organizations.us-gov-west-1.amazonaws.com",
            "us-gov-west-1",
        ),
    ] {
        let endpoint = service.endpoint(&Environment::default(), region);
        assert_eq!(endpoint, Ok((url.to_owned(), signed_for.to_owned())));
    }
    let error = EC2.endpoint(&Environment::default(), "x/y").unwrap_err();
    assert_eq!(error, "\"x/y\" is no region of AWS");
}

#[test]
fn endpoints_are_taken_from_the_environment() {
    let of = |variables: &[(&str, &str)]| {
        EC2.endpoint(&environment(variables), "eu-west-1")
            .map(|(url, _)| url)
    };
    let all = ("AWS_ENDPOINT_URL", "http://all/");
    let one = ("AWS_ENDPOINT_URL_EC2", "http://one");
    let ignored = ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "True");
    assert_eq!(of(&[all]).unwrap(), "http://all");
    assert_eq!(of(&[all, one]).unwrap(), "http://one");
    assert_eq!(
        of(&[all, one, ignored]).unwrap(),
        "https://ec2.eu-west-1.amazonaws.com"
    );
    for name in ["AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT"] {
        let error = of(&[(name, "true")]).unwrap_err();
        assert!(error.starts_with(name), "{error}");
    }
}

#[test]
fn the_environment_is_awss_alone_and_not_printed() {
    let environment = environment(&[
        ("AWS_SECRET_ACCESS_KEY", "hush"),
        ("PATH", "/bin"),
        ("AWS_PROFILE", ""),
    ]);
    assert_eq!(
        format!("{environment:?}"),
        "{\"AWS_PROFILE\", \"AWS_SECRET_ACCESS_KEY\"}"
    );
    assert_eq!(environment.variable("PATH"), None);
    assert_eq!(environment.variable("AWS_PROFILE"), None);
}
