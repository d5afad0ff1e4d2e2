//! `bundle show`, `list`, `set`, `count` and `delete`

use ah_spire_plugin::goflag::FlagSet;
use ah_spire_wire::bundle::{
    Contents, bundle_from_wire, bundle_to_wire, from_document, from_pem, pem, to_document,
};
use ah_spire_wire::model;
use ah_spire_wire::server::bundle::{
    BatchDeleteFederatedBundleRequest, BatchSetFederatedBundleRequest, CountBundlesRequest,
    GetBundleRequest, GetFederatedBundleRequest, ListFederatedBundlesRequest,
    batch_delete_federated_bundle_request::Mode,
};
use ah_spire_wire::types::{Bundle, Status};
use serde_json::{Value, json};
use spiffe::TrustDomain;

use super::{Call, Failure, entry_file, json as told};
use crate::ids;

/// How a bundle is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Pem,
    Spiffe,
}

impl Format {
    fn parse(text: &str) -> Result<Self, Failure> {
        match text.to_ascii_lowercase().as_str() {
            "" | "pem" => Ok(Self::Pem),
            "spiffe" => Ok(Self::Spiffe),
            other => Err(Failure(format!("invalid format: \"{other}\""))),
        }
    }
}

pub(super) fn show_flags(flags: FlagSet) -> FlagSet {
    flags.string("format", "pem", "The format to show the bundle (only pretty output format supports this flag). Either \"pem\" or \"spiffe\".")
}

pub(super) fn list_flags(flags: FlagSet) -> FlagSet {
    flags
        .string("id", "", "SPIFFE ID of the trust domain")
        .string("format", "pem", "The format to list federated bundles (only pretty output format supports this flag). Either \"pem\" or \"spiffe\".")
}

pub(super) fn set_flags(flags: FlagSet) -> FlagSet {
    flags
        .string("id", "", "SPIFFE ID of the trust domain")
        .string("path", "", "Path to the bundle data")
        .string(
            "format",
            "pem",
            "The format of the bundle data. Either \"pem\" or \"spiffe\".",
        )
}

pub(super) fn delete_flags(flags: FlagSet) -> FlagSet {
    flags
        .string("id", "", "SPIFFE ID of the trust domain")
        .string(
            "mode",
            "restrict",
            "Deletion mode: one of restrict, delete, or dissociate",
        )
}

pub(super) async fn show(call: &mut Call<'_>) -> Result<(), Failure> {
    let request = GetBundleRequest { output_mask: None };
    let bundle = call.server.bundles().await?.get_bundle(request).await?;
    one(call, &bundle.into_inner())
}

pub(super) async fn list(call: &mut Call<'_>) -> Result<(), Failure> {
    let mut client = call.server.bundles().await?;
    if let Some(id) = call.flags.nonempty("id") {
        let request = GetFederatedBundleRequest {
            trust_domain: id.to_owned(),
            output_mask: None,
        };
        let bundle = client.get_federated_bundle(request).await?;
        return one(call, &bundle.into_inner());
    }
    let request = ListFederatedBundlesRequest::default();
    let listed = client.list_federated_bundles(request).await?.into_inner();
    if call.out.is_json() {
        let bundles: Vec<Value> = listed.bundles.iter().map(told::bundle).collect();
        let token = listed.next_page_token;
        call.out
            .json(&json!({ "bundles": bundles, "next_page_token": token }));
        return Ok(());
    }
    let format = Format::parse(call.flags.string("format"))?;
    for (at, bundle) in listed.bundles.iter().enumerate() {
        if at > 0 {
            call.out.line("");
        }
        let stars = "*".repeat(40);
        call.out
            .line(&format!("{stars}\n* {}\n{stars}", bundle.trust_domain));
        call.out.text(&printed(bundle, format)?);
    }
    Ok(())
}

fn one(call: &mut Call<'_>, bundle: &Bundle) -> Result<(), Failure> {
    if call.out.is_json() {
        call.out.json(&told::bundle(bundle));
        return Ok(());
    }
    let format = Format::parse(call.flags.string("format"))?;
    call.out.text(&printed(bundle, format)?);
    Ok(())
}

fn printed(bundle: &Bundle, format: Format) -> Result<String, Failure> {
    if format == Format::Pem {
        return Ok(bundle
            .x509_authorities
            .iter()
            .map(|ca| pem(&ca.asn1))
            .collect());
    }
    let bundle = bundle_from_wire(bundle).map_err(|error| Failure::new(error.to_string()))?;
    let document =
        to_document(&bundle, Contents::Spiffe).map_err(|error| Failure::new(error.to_string()))?;
    Ok(format!("{document}\n"))
}

pub(super) async fn set(call: &mut Call<'_>) -> Result<(), Failure> {
    let id = call.flags.nonempty("id").ok_or("id flag is required")?;
    let format = Format::parse(call.flags.string("format"))?;
    let path = call.flags.nonempty("path").unwrap_or("-");
    let text = entry_file::text(path);
    let text = text.map_err(|failure| failure.during("unable to load bundle data"))?;
    let domain = ids::trust_domain(id)?;
    let bundle = read_bundle(&domain, format, text.as_bytes())?;
    let request = BatchSetFederatedBundleRequest {
        bundle: vec![bundle_to_wire(&bundle)],
        output_mask: None,
    };
    let what = "failed to set federated bundle";
    let answer = call.server.bundles().await;
    let answer = answer.map_err(|failure| failure.during(what))?;
    let answer = { answer }.batch_set_federated_bundle(request).await;
    let answer = answer.map_err(|error| Failure::from(error).during(what))?;
    let results = answer.into_inner().results;
    if call.out.is_json() {
        let results = results.iter().map(|it| {
            told::result(
                it.status.as_ref(),
                "bundle",
                it.bundle.as_ref().map(told::bundle),
            )
        });
        call.out
            .json(&json!({ "results": results.collect::<Vec<_>>() }));
        return Ok(());
    }
    let status = results.first().and_then(|it| it.status.clone());
    match status.unwrap_or_default() {
        status if status.code == 0 => call.out.line("bundle set."),
        status => return Err(Failure::because(what, status.message)),
    }
    Ok(())
}

/// A bundle of `domain` as somebody wrote it.
pub(super) fn read_bundle(
    domain: &TrustDomain,
    format: Format,
    text: &[u8],
) -> Result<model::Bundle, Failure> {
    match format {
        Format::Pem => from_pem(domain, text)
            .map_err(|error| Failure::because("unable to parse bundle data", error)),
        Format::Spiffe => from_document(domain, text)
            .map_err(|error| Failure::because("unable to parse to spiffe bundle", error)),
    }
}

pub(super) async fn count(call: &mut Call<'_>) -> Result<(), Failure> {
    let request = CountBundlesRequest {};
    let count = call.server.bundles().await?.count_bundles(request).await?;
    let count = count.into_inner().count;
    if call.out.is_json() {
        call.out.json(&told::count(count));
    } else {
        let noun = if count == 1 { "bundle" } else { "bundles" };
        call.out.line(&format!("{count} {noun}"));
    }
    Ok(())
}

pub(super) async fn delete(call: &mut Call<'_>) -> Result<(), Failure> {
    let id = call.flags.nonempty("id").ok_or("id is required")?;
    let mode = match call.flags.string("mode") {
        "" | "restrict" => Mode::Restrict,
        "dissociate" => Mode::Dissociate,
        "delete" => Mode::Delete,
        other => return Err(Failure(format!("unsupported mode \"{other}\""))),
    };
    let request = BatchDeleteFederatedBundleRequest {
        trust_domains: vec![id.to_owned()],
        mode: mode.into(),
    };
    let what = "failed to delete federated bundle";
    let mut client = call
        .server
        .bundles()
        .await
        .map_err(|failure| failure.during(what))?;
    let answer = client.batch_delete_federated_bundle(request).await;
    let answer = answer.map_err(|error| Failure::from(error).during(what))?;
    let results = answer.into_inner().results.into_iter();
    let results = results.map(|result| (result.status, result.trust_domain));
    told_deletion(call, "federated bundle", results.collect())
}

/// What became of the one trust domain whose bundle or relationship, `what`, was to be deleted.
pub(super) fn told_deletion(
    call: &mut Call<'_>,
    what: &str,
    results: Vec<(Option<Status>, String)>,
) -> Result<(), Failure> {
    if call.out.is_json() {
        let results = results
            .iter()
            .map(|(status, id)| told::result(status.as_ref(), "trust_domain", Some(json!(id))));
        call.out
            .json(&json!({ "results": results.collect::<Vec<_>>() }));
        return Ok(());
    }
    let (status, id) = results.into_iter().next().unwrap_or_default();
    let status = status.unwrap_or_default();
    if status.code != 0 {
        let why = status.message;
        return Err(Failure(format!("failed to delete {what} \"{id}\": {why}")));
    }
    // "bundle deleted.", "federation relationship deleted."
    let what = what.strip_prefix("federated ").unwrap_or(what);
    call.out.line(&format!("{what} deleted."));
    Ok(())
}
