//! The services of AWS, and where they are.

use crate::aws::Environment;

/// A service of AWS.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// Its name in `AWS_ENDPOINT_URL_<id>`.
    pub id: &'static str,
    /// The first part of its host, and the name it is signed for.
    pub name: &'static str,
    /// Whether a partition has it once.
    pub global: bool,
}

impl Service {
    /// Security Token Service
    pub const STS: Self = Self::regional("STS", "sts");

    /// A service that each region has.
    pub const fn regional(id: &'static str, name: &'static str) -> Self {
        Self {
            id,
            name,
            global: false,
        }
    }

    /// A service that a partition has once, for all its regions.
    pub const fn global(id: &'static str, name: &'static str) -> Self {
        Self {
            id,
            name,
            global: true,
        }
    }

    /// The service's URL without a path, and the region that it is signed for.
    ///
    /// # Errors
    /// `region` is no name of a region, or the environment asks for endpoints that are not served.
    pub fn endpoint(
        &self,
        environment: &Environment,
        region: &str,
    ) -> Result<(String, String), String> {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if region.is_empty() || !region.bytes().all(fits) {
            return Err(format!("{region:?} is no region of AWS"));
        }
        for name in ["AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT"] {
            if environment.is_true(name) {
                return Err(format!(
                    "{name} is set, which is not served; name the endpoint in AWS_ENDPOINT_URL_{}",
                    self.id
                ));
            }
        }
        let (suffix, home) = if region.starts_with("cn-") {
            ("amazonaws.com.cn", "cn-north-1")
        } else if region.starts_with("us-gov-") {
            ("amazonaws.com", "us-gov-west-1")
        } else if region.starts_with("eusc-") {
            ("amazonaws.eu", "eusc-de-east-1")
        } else {
            ("amazonaws.com", "us-east-1")
        };
        // Organizations is in China's other region.
        let home = match (self.name, home) {
            ("organizations", "cn-north-1") => "cn-northwest-1",
            _ => home,
        };
        let signed_for = if self.global { home } else { region };
        let configured = if environment.is_true("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS") {
            None
        } else {
            let own = environment.variable(&format!("AWS_ENDPOINT_URL_{}", self.id));
            own.or_else(|| environment.variable("AWS_ENDPOINT_URL"))
        };
        let url = match (configured, self.name, home) {
            (Some(url), _, _) => url.trim_end_matches('/').to_owned(),
            (None, "iam", "us-east-1") => format!("https://iam.{suffix}"),
            (None, "iam", "us-gov-west-1") => format!("https://iam.us-gov.{suffix}"),
            (None, name, _) => format!("https://{name}.{signed_for}.{suffix}"),
        };
        Ok((url, signed_for.to_owned()))
    }
}
