//! AWS: BundlePublishers `aws_s3` and `aws_rolesanywhere_trustanchor`.

use std::net::IpAddr;
use std::time::SystemTime;

use ah_spire_wire::aws::{Caller, Service};
use ah_spire_wire::model::Bundle;
use ah_spire_wire::sigv4::percent_encoded;
use bytes::Bytes;
use http::{Request, header};
use serde_json::json;

use super::{Formatted, Publisher, certificates};

/// The most PEM that a trust anchor takes, in bytes.
const ANCHOR_TAKES: usize = 8000;

/// `aws_s3`: an object of a bucket.
pub struct S3Publisher {
    caller: Caller,
    bucket: String,
    key: String,
    /// Whether the bucket stands in the path, and not in the host's name.
    in_path: bool,
    formatted: Formatted,
}

impl S3Publisher {
    /// Simple Storage Service
    pub const SERVICE: Service = Service::regional("S3", "s3");

    /// Publishes to the object `key` of `bucket`. With `in_path`, as services want it that are S3's in protocol alone, the
    /// bucket is part of the path; else where its name can be none of a host.
    pub fn new(
        caller: Caller,
        (bucket, key): (String, String),
        in_path: bool,
        formatted: Formatted,
    ) -> Self {
        Self {
            caller,
            bucket,
            key,
            in_path,
            formatted,
        }
    }

    /// The URL that the object is at, without its path, and that.
    fn place(&self, url: &str) -> (String, String) {
        // Folders are part of a key.
        let key: Vec<String> = self.key.split('/').map(percent_encoded).collect();
        let key = key.join("/");
        let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
        let host = rest.split(['/', ':']).next().unwrap_or_default();
        let address = rest.starts_with('[') || host.parse::<IpAddr>().is_ok();
        if self.in_path || address || !is_label(&self.bucket) {
            return (
                url.to_owned(),
                format!("/{}/{key}", percent_encoded(&self.bucket)),
            );
        }
        (
            format!("{scheme}://{}.{rest}", self.bucket),
            format!("/{key}"),
        )
    }

    async fn put(&self, data: String) -> Result<(), String> {
        let (url, region) = self.caller.endpoint(Self::SERVICE)?;
        let (url, path) = self.place(&url);
        let request = Request::put(path)
            .header(header::CONTENT_TYPE, self.formatted.format().media_type())
            .body(Bytes::from(data))
            .map_err(|error| error.to_string())?;
        let at = (Self::SERVICE, region.as_str());
        let put = self.caller.call_at(&url, at, request, SystemTime::now());
        put.await.map(|_| ()).map_err(|fault| {
            let elsewhere = ["PermanentRedirect", "AuthorizationHeaderMalformed"];
            if elsewhere.iter().any(|code| fault.is(code)) {
                return format!("{fault} (region has to be the bucket's)");
            }
            fault.into()
        })
    }
}

/// Whether a bucket of this name can be the first part of a host that has a certificate of AWS's: a name with dots cannot.
fn is_label(bucket: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (3..=63).contains(&bucket.len())
        && bucket.bytes().all(fits)
        && !bucket.starts_with('-')
        && !bucket.ends_with('-')
}

#[tonic::async_trait]
impl Publisher for S3Publisher {
    fn name(&self) -> &str {
        "aws_s3"
    }

    async fn publish(&self, bundle: &Bundle) -> Result<(), String> {
        let put = self.put(self.formatted.of(bundle)?).await;
        let Self { bucket, key, .. } = self;
        put.map_err(|why| format!("failed to put object: {bucket}/{key}: {why}"))
    }
}

/// `aws_rolesanywhere_trustanchor`: the certificates of a trust anchor of IAM Roles Anywhere.
pub struct TrustAnchor {
    caller: Caller,
    id: String,
}

impl TrustAnchor {
    /// IAM Roles Anywhere
    pub const SERVICE: Service = Service::regional("ROLESANYWHERE", "rolesanywhere");

    /// Publishes to the trust anchor `id`, which is there already.
    pub fn new(caller: Caller, id: String) -> Self {
        Self { caller, id }
    }
}

#[tonic::async_trait]
impl Publisher for TrustAnchor {
    fn name(&self) -> &str {
        "aws_rolesanywhere_trustanchor"
    }

    async fn publish(&self, bundle: &Bundle) -> Result<(), String> {
        let data = certificates(bundle);
        if data.len() > ANCHOR_TAKES {
            return Err(format!(
                "bundle too large: {} bytes of PEM, and a trust anchor takes {ANCHOR_TAKES}; wait until old authorities have ended, or use smaller CA keys",
                data.len()
            ));
        }
        let body = json!({
            "source": {
                "sourceType": "CERTIFICATE_BUNDLE",
                "sourceData": {"x509CertificateData": data},
            },
        });
        let request = Request::patch(format!("/trustanchor/{}", percent_encoded(&self.id)))
            .header(header::CONTENT_TYPE, "application/json")
            .body(body.to_string().into())
            .map_err(|error| error.to_string())?;
        let update = self.caller.call(Self::SERVICE, request, SystemTime::now());
        let id = &self.id;
        let told = update.await;
        told.map(|_| ())
            .map_err(|fault| format!("failed to update trust anchor: {id}: {fault}"))
    }
}

#[cfg(test)]
mod tests {
    use ah_spire_wire::aws::Environment;

    use super::*;

    // Where the buckets are, as AWS's SDKs find them.
    #[test]
    fn buckets_are_in_hosts_names_or_in_paths() {
        let of = |url: &str, bucket: &str, key: &str, in_path: bool| {
            let caller = Caller::new(Environment::default(), "eu-central-1", None);
            let formatted = Formatted::read("pem", "").unwrap();
            let place = (bucket.to_owned(), key.to_owned());
            let (url, path) = S3Publisher::new(caller, place, in_path, formatted).place(url);
            format!("{url}{path}")
        };
        let aws = "https://s3.eu-central-1.amazonaws.com";
        for (url, bucket, key, in_path, expected) in [
            (
                aws,
                "trust",
                "a/b c.json",
                false,
                "https://trust.s3.eu-central-1.amazonaws.com/a/b%20c.json",
            ),
            (
                aws,
                "trust.example.org",
                "a",
                false,
                "https://s3.eu-central-1.amazonaws.com/trust.example.org/a",
            ),
            (
                aws,
                "Trust",
                "a",
                false,
                "https://s3.eu-central-1.amazonaws.com/Trust/a",
            ),
            (
                "https://minio.example:9000",
                "trust",
                "a",
                true,
                "https://minio.example:9000/trust/a",
            ),
            (
                "http://minio.example:9000/s3",
                "trust",
                "a",
                false,
                "http://trust.minio.example:9000/s3/a",
            ),
            (
                "http://127.0.0.1:9000",
                "trust",
                "a",
                false,
                "http://127.0.0.1:9000/trust/a",
            ),
            (
                "http://[::1]:9000",
                "trust",
                "a",
                false,
                "http://[::1]:9000/trust/a",
            ),
        ] {
            assert_eq!(of(url, bucket, key, in_path), expected);
        }
    }
}
