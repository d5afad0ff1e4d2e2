//! `entry create`, `update`, `show`, `count` and `delete`

mod asked;
mod listed;

use ah_spire_wire::server::entry::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, BatchUpdateEntryRequest, CountEntriesRequest,
    GetEntryRequest, ListEntriesRequest, count_entries_request, list_entries_request,
};
use ah_spire_wire::types::entry::AdditionalAttributes;
use ah_spire_wire::types::{Entry, Status};
use serde_json::{Value, json};

pub(super) use self::asked::{create_flags, delete_flags, filter_flags, show_flags, update_flags};
use self::asked::{created, filter, updated};
use self::listed::{printed, sort};
use super::matching::counted;
use super::output::Output;
use super::{Call, Failure, code_name, entry_file, json as told};

/// Entries asked for at a time.
const PAGE: i32 = 500;

pub(super) async fn create(call: &mut Call<'_>) -> Result<(), Failure> {
    let flags = call.flags;
    let entries = match flags.nonempty("data") {
        Some(path) => entry_file::entries(path)?,
        None => vec![created(flags)?],
    };
    let request = BatchCreateEntryRequest {
        entries: entries.clone(),
        output_mask: None,
    };
    let answer = call
        .server
        .entries()
        .await?
        .batch_create_entry(request)
        .await?;
    let results = answer.into_inner().results;
    let results = results.into_iter().map(|it| (it.status, it.entry));
    report(&mut call.out, "create", entries, results)
}

pub(super) async fn update(call: &mut Call<'_>) -> Result<(), Failure> {
    let flags = call.flags;
    let mut client = call.server.entries();
    let entries = match flags.nonempty("data") {
        Some(path) => entry_file::entries(path)?,
        None => {
            let mut entry = updated(flags)?;
            if let Some(given) = entry.additional_attributes {
                // The wire has no mask for the single attributes: those that are not given keep their values.
                let id = entry.id.clone();
                let request = GetEntryRequest {
                    id,
                    output_mask: None,
                };
                let what = "failed to fetch existing entry to merge additional attributes";
                let mut connected = client.await?;
                let stored = connected.get_entry(request).await;
                let stored = stored.map_err(|error| Failure::from(error).during(what))?;
                let stored = stored
                    .into_inner()
                    .additional_attributes
                    .unwrap_or_default();
                entry.additional_attributes = Some(AdditionalAttributes {
                    disable_x509_svid_prefetch: given.disable_x509_svid_prefetch
                        || stored.disable_x509_svid_prefetch,
                    jwt_svid_include_jti: given.jwt_svid_include_jti || stored.jwt_svid_include_jti,
                });
                client = call.server.entries();
            }
            vec![entry]
        }
    };
    let request = BatchUpdateEntryRequest {
        entries: entries.clone(),
        input_mask: None,
        output_mask: None,
    };
    let answer = client.await?.batch_update_entry(request).await?;
    let results = answer.into_inner().results;
    let results = results.into_iter().map(|it| (it.status, it.entry));
    report(&mut call.out, "update", entries, results)
}

pub(super) async fn show(call: &mut Call<'_>) -> Result<(), Failure> {
    let flags = call.flags;
    let mut entries = match flags.nonempty("entryID") {
        Some(id) => {
            let other = ["parentID", "spiffeID"]
                .iter()
                .any(|name| flags.nonempty(name).is_some());
            if other || !flags.list("selector").is_empty() {
                return Err("the -entryID flag can't be combined with others".into());
            }
            let request = GetEntryRequest {
                id: id.to_owned(),
                output_mask: None,
            };
            let what = format!("error fetching entry ID {id}");
            let entry = call.server.entries().await;
            let entry = entry
                .map_err(|failure| failure.during(&what))?
                .get_entry(request)
                .await;
            let entry = entry.map_err(|error| Failure::from(error).during(&what))?;
            vec![entry.into_inner()]
        }
        None => {
            let filter = filter(flags)?.into_list();
            let all = all(call, filter).await;
            all.map_err(|failure| failure.during("error fetching entries"))?
        }
    };
    sort(&mut entries);
    if call.out.is_json() {
        let entries: Vec<Value> = entries.iter().map(told::entry).collect();
        call.out
            .json(&json!({ "entries": entries, "next_page_token": "" }));
        return Ok(());
    }
    let noun = counted(entries.len(), "entry", "entries");
    call.out.line(&format!("Found {} {noun}", entries.len()));
    for entry in &entries {
        call.out.text(&printed(entry));
    }
    Ok(())
}

/// Every entry that matches.
pub(super) async fn all(
    call: &mut Call<'_>,
    filter: list_entries_request::Filter,
) -> Result<Vec<Entry>, Failure> {
    let mut client = call.server.entries().await?;
    let mut found = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListEntriesRequest {
            filter: Some(filter.clone()),
            output_mask: None,
            page_size: PAGE,
            page_token,
        };
        let page = client.list_entries(request).await?.into_inner();
        found.extend(page.entries);
        if page.next_page_token.is_empty() {
            return Ok(found);
        }
        page_token = page.next_page_token;
    }
}

pub(super) async fn count(call: &mut Call<'_>) -> Result<(), Failure> {
    let filter = filter(call.flags)?;
    let request = CountEntriesRequest {
        filter: Some(count_entries_request::Filter {
            by_spiffe_id: filter.by_spiffe_id,
            by_parent_id: filter.by_parent_id,
            by_selectors: filter.by_selectors,
            by_federates_with: filter.by_federates_with,
            by_hint: filter.by_hint,
            by_downstream: filter.by_downstream,
        }),
    };
    let count = call.server.entries().await?.count_entries(request).await?;
    let count = count.into_inner().count;
    if call.out.is_json() {
        call.out.json(&told::count(count));
    } else {
        let noun = if count == 1 { "entry" } else { "entries" };
        call.out.line(&format!("{count} registration {noun}"));
    }
    Ok(())
}

pub(super) async fn delete(call: &mut Call<'_>) -> Result<(), Failure> {
    let ids = match (call.flags.nonempty("file"), call.flags.nonempty("entryID")) {
        (Some(path), _) => entry_file::ids(path)?,
        (None, Some(id)) => vec![id.to_owned()],
        (None, None) => return Err("an entry ID is required".into()),
    };
    let request = BatchDeleteEntryRequest { ids };
    let answer = call
        .server
        .entries()
        .await?
        .batch_delete_entry(request)
        .await?;
    let results = answer.into_inner().results;
    if call.out.is_json() {
        let one = |it: &ah_spire_wire::server::entry::batch_delete_entry_response::Result| {
            told::result(it.status.as_ref(), "id", Some(json!(it.id)))
        };
        let results: Vec<Value> = results.iter().map(one).collect();
        call.out.json(&json!({ "results": results }));
        return Ok(());
    }
    let (mut deleted, mut failed) = (0_usize, 0_usize);
    for result in &results {
        let status = result.status.clone().unwrap_or_default();
        if status.code == 0 {
            deleted += 1;
            call.out
                .line(&format!("Deleted entry with ID: {}", result.id));
        } else {
            failed += 1;
            call.out.error_line(&format!(
                "Failed to delete entry with ID {} ({})",
                result.id,
                why(&status)
            ));
        }
    }
    if deleted > 0 {
        call.out.text("\n\n");
    }
    if failed == 0 {
        call.out
            .text(&format!("Deleted {deleted} entries successfully"));
        return Ok(());
    }
    call.out.text("\n\n");
    call.out.text(&if deleted == 0 {
        format!("Failed to delete {failed} entries")
    } else {
        format!("Deleted {deleted} entries successfully, but failed to delete {failed} entries")
    });
    Err("failed to delete one or more entries".into())
}

fn why(status: &Status) -> String {
    format!(
        "code: {}, msg: {:?}",
        code_name(status.code.into()),
        status.message
    )
}

/// Prints what became of `entries`: those that did not pass are told from the request.
fn report(
    out: &mut Output,
    verb: &str,
    entries: Vec<Entry>,
    results: impl Iterator<Item = (Option<Status>, Option<Entry>)>,
) -> Result<(), Failure> {
    let results: Vec<(Status, Entry)> = entries
        .into_iter()
        .zip(results)
        .map(|(asked, (status, entry))| {
            let status = status.unwrap_or_default();
            let entry = entry.filter(|_| status.code == 0);
            (status, entry.unwrap_or(asked))
        })
        .collect();
    if out.is_json() {
        let one = |(status, entry): &(Status, Entry)| {
            told::result(Some(status), "entry", Some(told::entry(entry)))
        };
        let results: Vec<Value> = results.iter().map(one).collect();
        out.json(&json!({ "results": results }));
        return Ok(());
    }
    let mut failed = false;
    for (status, entry) in &results {
        if status.code == 0 {
            out.text(&printed(entry));
        } else {
            failed = true;
            out.error_line(&format!(
                "Failed to {verb} the following entry ({}):",
                why(status)
            ));
            out.error_text(&printed(entry));
        }
    }
    if failed {
        return Err(Failure(format!("failed to {verb} one or more entries")));
    }
    Ok(())
}
