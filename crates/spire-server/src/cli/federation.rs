//! `federation create`, `update`, `delete`, `list`, `show` and `refresh`

use ah_spire_plugin::goflag::{FlagSet, Flags};
use ah_spire_wire::bundle::bundle_to_wire;
use ah_spire_wire::server::trustdomain::{
    BatchCreateFederationRelationshipRequest, BatchDeleteFederationRelationshipRequest,
    BatchUpdateFederationRelationshipRequest, GetFederationRelationshipRequest,
    ListFederationRelationshipsRequest, RefreshBundleRequest,
};
use ah_spire_wire::types::federation_relationship::BundleEndpointProfile;
use ah_spire_wire::types::{
    Bundle, FederationRelationship, HttpsWebProfile, HttpsspiffeProfile, Status as ItemStatus,
};
use serde_json::{Value, json};
use tonic::Code;

use super::bundle::{Format, read_bundle};
use super::entry_file::{self, Fields};
use super::{Call, Failure, code_name, json as told};
use crate::ids;

const HTTPS_WEB: &str = "https_web";
const HTTPS_SPIFFE: &str = "https_spiffe";

pub(super) fn relationship_flags(flags: FlagSet) -> FlagSet {
    flags
        .string("data", "", "Path to a file containing federation relationships in JSON format (optional). If set to '-', read the JSON from stdin.")
        .string("trustDomain", "", "Name of the trust domain to federate with (e.g., example.org)")
        .string("bundleEndpointURL", "", "URL of the SPIFFE bundle endpoint that provides the trust bundle (must use the HTTPS protocol)")
        .string("bundleEndpointProfile", "", "Endpoint profile type (either \"https_web\" or \"https_spiffe\")")
        .string("endpointSpiffeID", "", "SPIFFE ID of the SPIFFE bundle endpoint server. Only used for 'spiffe' profile.")
        .string("trustDomainBundlePath", "", "Path to the trust domain bundle data (optional).")
        .string("trustDomainBundleFormat", "pem", "The format of the bundle data (optional). Either \"pem\" or \"spiffe\".")
}

pub(super) fn show_flags(flags: FlagSet) -> FlagSet {
    flags.string(
        "trustDomain",
        "",
        "The trust domain name of the federation relationship to show",
    )
}

pub(super) fn id_flags(flags: FlagSet) -> FlagSet {
    flags.string("id", "", "SPIFFE ID of the trust domain")
}

pub(super) async fn create(call: &mut Call<'_>) -> Result<(), Failure> {
    let asked = asked(call.flags)?;
    let request = BatchCreateFederationRelationshipRequest {
        federation_relationships: asked.clone(),
        output_mask: None,
    };
    let mut client = call.server.trust_domains().await.map_err(of_request)?;
    let answer = client.batch_create_federation_relationship(request).await;
    let answer = answer.map_err(|error| of_request(error.into()))?;
    let results = { answer.into_inner().results.into_iter() }
        .map(|result| (result.status, result.federation_relationship));
    told_results(call, "create", &asked, results.collect())
}

pub(super) async fn update(call: &mut Call<'_>) -> Result<(), Failure> {
    let asked = asked(call.flags)?;
    let request = BatchUpdateFederationRelationshipRequest {
        federation_relationships: asked.clone(),
        input_mask: None,
        output_mask: None,
    };
    let mut client = call.server.trust_domains().await.map_err(of_request)?;
    let answer = client.batch_update_federation_relationship(request).await;
    let answer = answer.map_err(|error| of_request(error.into()))?;
    let results = { answer.into_inner().results.into_iter() }
        .map(|result| (result.status, result.federation_relationship));
    told_results(call, "update", &asked, results.collect())
}

fn of_request(failure: Failure) -> Failure {
    failure.during("request failed")
}

fn told_results(
    call: &mut Call<'_>,
    verb: &str,
    asked: &[FederationRelationship],
    results: Vec<(Option<ItemStatus>, Option<FederationRelationship>)>,
) -> Result<(), Failure> {
    if call.out.is_json() {
        let results = results.iter().map(|(status, done)| {
            let done = done.as_ref().map(told::relationship);
            told::result(status.as_ref(), "federation_relationship", done)
        });
        call.out
            .json(&json!({ "results": results.collect::<Vec<_>>() }));
        return Ok(());
    }
    // The answer has not what failed: the request has.
    let mut failed = Vec::new();
    for ((status, done), asked) in results.into_iter().zip(asked) {
        let status = status.unwrap_or_default();
        if status.code == 0 {
            call.out.line("");
            call.out.text(&printed(&done.unwrap_or_default()));
        } else {
            failed.push((status, asked));
        }
    }
    for (status, asked) in &failed {
        let code = code_name(Code::from_i32(status.code));
        call.out.line("");
        call.out.error_line(&format!(
            "Failed to {verb} the following federation relationship (code: {code}, msg: {:?}):",
            status.message
        ));
        call.out.error_text(&printed(asked));
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure(format!(
        "failed to {verb} one or more federation relationships"
    )))
}

pub(super) async fn list(call: &mut Call<'_>) -> Result<(), Failure> {
    let what = "error listing federation relationship";
    let request = ListFederationRelationshipsRequest::default();
    let client = call.server.trust_domains().await;
    let mut client = client.map_err(|failure| failure.during(what))?;
    let listed = client.list_federation_relationships(request).await;
    let listed = listed.map_err(|error| Failure::from(error).during(what))?;
    let listed = listed.into_inner();
    let found = &listed.federation_relationships;
    if call.out.is_json() {
        let relationships: Vec<Value> = found.iter().map(told::relationship).collect();
        let token = listed.next_page_token;
        call.out
            .json(&json!({ "federation_relationships": relationships, "next_page_token": token }));
        return Ok(());
    }
    let (count, plural) = (found.len(), if found.len() == 1 { "" } else { "s" });
    call.out
        .line(&format!("Found {count} federation relationship{plural}"));
    for relationship in found {
        call.out.line("");
        call.out.text(&printed(relationship));
    }
    Ok(())
}

pub(super) async fn show(call: &mut Call<'_>) -> Result<(), Failure> {
    let name = { call.flags.nonempty("trustDomain") }.ok_or("a trust domain name is required")?;
    let what = "error showing federation relationship";
    let request = GetFederationRelationshipRequest {
        trust_domain: name.to_owned(),
        output_mask: None,
    };
    let client = call.server.trust_domains().await;
    let mut client = client.map_err(|failure| failure.during(what))?;
    let found = client.get_federation_relationship(request).await;
    let found = found.map_err(|error| Failure::from(error).during(what))?;
    let found = found.into_inner();
    if call.out.is_json() {
        call.out.json(&told::relationship(&found));
        return Ok(());
    }
    call.out.line(&format!(
        "Found a federation relationship with trust domain {name}:\n"
    ));
    call.out.text(&printed(&found));
    Ok(())
}

pub(super) async fn delete(call: &mut Call<'_>) -> Result<(), Failure> {
    let id = call.flags.nonempty("id").ok_or("id is required")?;
    let what = "failed to delete federation relationship";
    let request = BatchDeleteFederationRelationshipRequest {
        trust_domains: vec![id.to_owned()],
    };
    let client = call.server.trust_domains().await;
    let mut client = client.map_err(|failure| failure.during(what))?;
    let answer = client.batch_delete_federation_relationship(request).await;
    let answer = answer.map_err(|error| Failure::from(error).during(what))?;
    let results = answer.into_inner().results.into_iter();
    let results = results.map(|result| (result.status, result.trust_domain));
    super::bundle::told_deletion(call, "federation relationship", results.collect())
}

pub(super) async fn refresh(call: &mut Call<'_>) -> Result<(), Failure> {
    let id = call.flags.nonempty("id").ok_or("id is required")?;
    let what = "failed to refresh bundle";
    let request = RefreshBundleRequest {
        trust_domain: id.to_owned(),
    };
    let client = call.server.trust_domains().await;
    let mut client = client.map_err(|failure| failure.during(what))?;
    match client.refresh_bundle(request).await {
        Ok(_) if call.out.is_json() => call.out.json(&told::status(&ItemStatus {
            code: 0,
            message: "OK".into(),
        })),
        Ok(_) => call.out.line("Bundle refreshed"),
        Err(status) if status.code() == Code::NotFound => {
            return Err(Failure(format!(
                "there is no federation relationship with trust domain \"{id}\""
            )));
        }
        Err(status) => return Err(Failure::from(status).during(what)),
    }
    Ok(())
}

fn printed(relationship: &FederationRelationship) -> String {
    let mut text = format!(
        "Trust domain              : {}\nBundle endpoint URL       : {}\n",
        relationship.trust_domain, relationship.bundle_endpoint_url
    );
    match &relationship.bundle_endpoint_profile {
        None => {}
        Some(BundleEndpointProfile::HttpsWeb(_)) => {
            text.push_str("Bundle endpoint profile   : https_web\n");
        }
        Some(BundleEndpointProfile::HttpsSpiffe(spiffe)) => text.push_str(&format!(
            "Bundle endpoint profile   : https_spiffe\nEndpoint SPIFFE ID        : {}\n",
            spiffe.endpoint_spiffe_id
        )),
    }
    text
}

/// What flags or a file say of one relationship.
#[derive(Default)]
struct Asked {
    trust_domain: String,
    url: String,
    profile: String,
    endpoint_id: String,
    bundle: Option<Given>,
    format: String,
}

/// A bundle, in a file or in the document that the relationship stands in.
enum Given {
    Path(String),
    Inline(Value),
}

const OF_ONE: [&str; 5] = [
    "trustDomain",
    "bundleEndpointURL",
    "bundleEndpointProfile",
    "endpointSpiffeID",
    "trustDomainBundlePath",
];

fn asked(flags: &Flags) -> Result<Vec<FederationRelationship>, Failure> {
    let text = |name: &str| flags.string(name).to_owned();
    let format = text("trustDomainBundleFormat");
    let Some(path) = flags.nonempty("data") else {
        let asked = Asked {
            trust_domain: text("trustDomain"),
            url: text("bundleEndpointURL"),
            profile: text("bundleEndpointProfile"),
            endpoint_id: text("endpointSpiffeID"),
            bundle: { flags.nonempty("trustDomainBundlePath") }
                .map(|path| Given::Path(path.to_owned())),
            format,
        };
        return Ok(vec![asked.relationship()?]);
    };
    if format != "pem" || OF_ONE.iter().any(|name| flags.nonempty(name).is_some()) {
        return Err(
            "cannot use other flags to specify relationship fields when 'data' flag is set".into(),
        );
    }
    let document = entry_file::text(path)?;
    let document = serde_json::from_str(&document)
        .map_err(|error| Failure::because("failed to parse JSON", error))?;
    from_document(&document)
}

fn from_document(document: &Value) -> Result<Vec<FederationRelationship>, Failure> {
    let fields = Fields::of(document, "the document")?;
    let items = fields
        .list("federationRelationships")?
        .into_iter()
        .flatten();
    let each = items.enumerate().map(|(at, item)| {
        Asked::from_item(item)
            .and_then(Asked::relationship)
            .map_err(|failure| failure.during(&format!("could not parse item {at}")))
    });
    each.collect()
}

impl Asked {
    fn from_item(item: &Value) -> Result<Self, Failure> {
        let fields = Fields::of(item, "it")?;
        Ok(Self {
            trust_domain: fields.text("trustDomain")?,
            url: fields.text("bundleEndpointURL")?,
            profile: fields.text("bundleEndpointProfile")?,
            endpoint_id: fields.text("endpointSPIFFEID")?,
            bundle: { fields.get("trustDomainBundle") }
                .cloned()
                .map(Given::Inline),
            format: fields.text("trustDomainBundleFormat")?,
        })
    }

    fn relationship(self) -> Result<FederationRelationship, Failure> {
        if self.trust_domain.is_empty() {
            return Err("trust domain is required".into());
        }
        if self.url.is_empty() {
            return Err("bundle endpoint URL is required".into());
        }
        let mut bundle_domain = self.trust_domain.clone();
        let profile = match self.profile.as_str() {
            HTTPS_WEB => BundleEndpointProfile::HttpsWeb(HttpsWebProfile {}),
            HTTPS_SPIFFE if self.endpoint_id.is_empty() => {
                return Err(
                    "endpoint SPIFFE ID is required if 'https_spiffe' endpoint profile is set"
                        .into(),
                );
            }
            HTTPS_SPIFFE => {
                let id = ids::parse(&self.endpoint_id).map_err(|why| {
                    Failure::because("cannot parse bundle endpoint SPIFFE ID", why)
                })?;
                // As upstream: the bundle is the one that the endpoint is judged by.
                bundle_domain = id.trust_domain().to_string();
                BundleEndpointProfile::HttpsSpiffe(HttpsspiffeProfile {
                    endpoint_spiffe_id: self.endpoint_id,
                })
            }
            other => {
                return Err(Failure(format!(
                    "unknown bundle endpoint profile type: {other:?}"
                )));
            }
        };
        let bundle = self
            .bundle
            .map(|given| given.read(&bundle_domain, &self.format));
        Ok(FederationRelationship {
            trust_domain: self.trust_domain,
            bundle_endpoint_url: self.url,
            bundle_endpoint_profile: Some(profile),
            trust_domain_bundle: bundle.transpose()?,
        })
    }
}

impl Given {
    fn read(self, domain: &str, format: &str) -> Result<Bundle, Failure> {
        let (text, what) = match self {
            Self::Path(path) => {
                let text = std::fs::read(&path).map_err(|error| {
                    Failure(format!("cannot read bundle file: {path}: {error}"))
                })?;
                (text, "cannot parse bundle file")
            }
            Self::Inline(value) => {
                let text = match (format, value) {
                    ("pem", Value::String(pem)) => pem,
                    ("pem", _) => {
                        return Err("cannot parse bundle raw message: a bundle of the format \"pem\" is a JSON string".into());
                    }
                    ("spiffe", value) => value.to_string(),
                    (other, _) => {
                        return Err(Failure(format!(
                            "cannot parse bundle raw message: bundle format {other:?} is unsupported"
                        )));
                    }
                };
                (text.into_bytes(), "cannot parse bundle raw message")
            }
        };
        let format = match format {
            "pem" => Format::Pem,
            "spiffe" => Format::Spiffe,
            other => {
                return Err(Failure(format!(
                    "{what}: bundle format {other:?} is unsupported"
                )));
            }
        };
        let domain = ids::trust_domain(domain).map_err(|why| Failure::because(what, why))?;
        let bundle = read_bundle(&domain, format, &text).map_err(|failure| failure.during(what))?;
        Ok(bundle_to_wire(&bundle))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(document: Value) -> Result<Vec<FederationRelationship>, String> {
        from_document(&document).map_err(|failure| failure.0)
    }

    fn item(change: impl FnOnce(&mut Value)) -> Result<Vec<FederationRelationship>, String> {
        let mut item = json!({
            "trustDomain": "a.test",
            "bundleEndpointURL": "https://a.test",
            "bundleEndpointProfile": "https_spiffe",
            "endpointSPIFFEID": "spiffe://a.test/spire/server",
            "trustDomainBundle": { "keys": [] },
            "trustDomainBundleFormat": "spiffe",
        });
        change(&mut item);
        read(json!({ "federationRelationships": [item] }))
    }

    // Inventory section 6: `federation create -data`.
    #[test]
    fn relationships_are_read_from_a_document() {
        let read = item(|_| {}).unwrap();
        assert_eq!(read[0].trust_domain, "a.test");
        let bundle = read[0].trust_domain_bundle.as_ref().unwrap();
        assert_eq!(bundle.trust_domain, "a.test");
        assert!(matches!(
            read[0].bundle_endpoint_profile,
            Some(BundleEndpointProfile::HttpsSpiffe(_))
        ));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_item() {
        let at = |key: &'static str, value: Value| move |item: &mut Value| item[key] = value;
        for (read, why) in [
            (
                item(at("trustDomain", json!(""))),
                "trust domain is required",
            ),
            (
                item(at("bundleEndpointURL", json!(""))),
                "bundle endpoint URL is required",
            ),
            (
                item(at("bundleEndpointProfile", json!("x"))),
                "unknown bundle endpoint profile type: \"x\"",
            ),
            (
                item(at("endpointSPIFFEID", json!(""))),
                "endpoint SPIFFE ID is required if 'https_spiffe' endpoint profile is set",
            ),
            (
                item(at("endpointSPIFFEID", json!("x"))),
                "cannot parse bundle endpoint SPIFFE ID: scheme is missing or invalid",
            ),
            (
                item(at("trustDomainBundleFormat", json!("x"))),
                "cannot parse bundle raw message: bundle format \"x\" is unsupported",
            ),
            (
                item(at("trustDomainBundleFormat", json!("pem"))),
                "cannot parse bundle raw message: a bundle of the format \"pem\" is a JSON string",
            ),
        ] {
            assert_eq!(read.unwrap_err(), format!("could not parse item 0: {why}"));
        }
    }
}
