//! `spire.api.server.entry.v1.Entry`

use std::collections::BTreeSet;
use std::sync::Arc;

use ah_spire_wire::encoded::entry_server::Entry as Service;
use ah_spire_wire::encoded::{GetAuthorizedEntriesResponse, SyncAuthorizedEntriesResponse};
use ah_spire_wire::server::entry::{
    BatchCreateEntryRequest, BatchCreateEntryResponse, BatchDeleteEntryRequest,
    BatchDeleteEntryResponse, BatchUpdateEntryRequest, BatchUpdateEntryResponse,
    CountEntriesRequest, CountEntriesResponse, GetAuthorizedEntriesRequest, GetEntryRequest,
    ListEntriesRequest, ListEntriesResponse, SyncAuthorizedEntriesRequest,
    batch_create_entry_response, batch_delete_entry_response, batch_update_entry_response,
    count_entries_request, list_entries_request,
};
use ah_spire_wire::{entry_to_wire, model, types};
use spiffe::TrustDomain;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::audit::{self, Audit, Fields};
use super::{
    Core, caller, caller_id, convert, count, failed, internal, invalid, item, mask, page,
    store_code, sync,
};
use crate::entries::encoded;
use crate::ids::{self, Kind};
use crate::store::{Created, EntryFilter, EntryMask, Match, Store, StoreError};

pub(super) struct Entries<S>(pub(super) Arc<Core<S>>);

#[tonic::async_trait]
impl<S: Store> Service for Entries<S> {
    async fn count_entries(
        &self,
        request: Request<CountEntriesRequest>,
    ) -> Result<Response<CountEntriesResponse>, Status> {
        let audit = Audit::of(&request);
        let filter = request.into_inner().filter.map(Filter::from);
        let filter = self.filter(filter, &audit)?;
        let rows = self.0.store.count_entries(&filter).await;
        let rows = rows.map_err(|error| internal("failed to count entries", error))?;
        Ok(Response::new(CountEntriesResponse { count: count(rows) }))
    }

    async fn list_entries(
        &self,
        request: Request<ListEntriesRequest>,
    ) -> Result<Response<ListEntriesResponse>, Status> {
        let audit = Audit::of(&request);
        let request = request.into_inner();
        let filter = self.filter(request.filter.map(Filter::from), &audit)?;
        let page = page(request.page_size, request.page_token);
        let found = self.0.store.entries(&filter, &page).await;
        let found = found.map_err(|error| internal("failed to list entries", error))?;
        let entries = found.rows.iter().map(entry_to_wire);
        Ok(Response::new(ListEntriesResponse {
            entries: entries
                .map(|entry| mask::entry(entry, request.output_mask.as_ref()))
                .collect(),
            next_page_token: found.next,
        }))
    }

    async fn get_entry(
        &self,
        request: Request<GetEntryRequest>,
    ) -> Result<Response<types::Entry>, Status> {
        let audit = Audit::of(&request);
        let request = request.into_inner();
        if request.id.is_empty() {
            return Err(Status::invalid_argument("missing ID"));
        }
        audit.about(|| Fields::default().with("entry_id", request.id.clone()));
        let found = self.0.store.entry(&request.id).await;
        let found = found.map_err(|error| internal("failed to fetch entry", error))?;
        let found = found.ok_or_else(|| Status::not_found("entry not found"))?;
        let entry = mask::entry(entry_to_wire(&found), request.output_mask.as_ref());
        Ok(Response::new(entry))
    }

    async fn batch_create_entry(
        &self,
        request: Request<BatchCreateEntryRequest>,
    ) -> Result<Response<BatchCreateEntryResponse>, Status> {
        let audit = Audit::of(&request);
        let request = request.into_inner();
        let mut results = Vec::with_capacity(request.entries.len());
        for wire in &request.entries {
            let (status, entry) = match self.create(wire).await {
                Ok(Created::New(entry)) => (Ok(()), Some(entry)),
                Ok(Created::Similar(entry)) => {
                    let similar = Status::already_exists("similar entry already exists");
                    (Err(similar), Some(entry))
                }
                Err(status) => (Err(status), None),
            };
            let status = item(status);
            audit.item(&status, || audit::entry(wire, None));
            results.push(batch_create_entry_response::Result {
                status: Some(status),
                entry: entry
                    .map(|entry| mask::entry(entry_to_wire(&entry), request.output_mask.as_ref())),
            });
        }
        audit.apart();
        Ok(Response::new(BatchCreateEntryResponse { results }))
    }

    async fn batch_update_entry(
        &self,
        request: Request<BatchUpdateEntryRequest>,
    ) -> Result<Response<BatchUpdateEntryResponse>, Status> {
        let audit = Audit::of(&request);
        let request = request.into_inner();
        let mut results = Vec::with_capacity(request.entries.len());
        let input = mask::update(request.input_mask.as_ref());
        for wire in &request.entries {
            let (status, entry) = match self.update(wire, &input).await {
                Ok(entry) => (Ok(()), Some(entry)),
                Err(status) => (Err(status), None),
            };
            let status = item(status);
            audit.item(&status, || audit::entry(wire, request.input_mask.as_ref()));
            results.push(batch_update_entry_response::Result {
                status: Some(status),
                entry: entry
                    .map(|entry| mask::entry(entry_to_wire(&entry), request.output_mask.as_ref())),
            });
        }
        audit.apart();
        Ok(Response::new(BatchUpdateEntryResponse { results }))
    }

    async fn batch_delete_entry(
        &self,
        request: Request<BatchDeleteEntryRequest>,
    ) -> Result<Response<BatchDeleteEntryResponse>, Status> {
        let audit = Audit::of(&request);
        let ids = request.into_inner().ids;
        let mut results = Vec::with_capacity(ids.len());
        for id in ids {
            let status = item(self.delete(&id).await);
            audit.item(&status, || Fields::default().with("entry_id", id.clone()));
            results.push(batch_delete_entry_response::Result {
                status: Some(status),
                id,
            });
        }
        audit.apart();
        Ok(Response::new(BatchDeleteEntryResponse { results }))
    }

    async fn get_authorized_entries(
        &self,
        request: Request<GetAuthorizedEntriesRequest>,
    ) -> Result<Response<GetAuthorizedEntriesResponse>, Status> {
        let entries = self.0.entries.authorized(caller_id(&caller(&request)?)?);
        let mask = request.into_inner().output_mask;
        Ok(Response::new(GetAuthorizedEntriesResponse {
            entries: encoded(&entries, mask.as_ref().into()),
        }))
    }

    type SyncAuthorizedEntriesStream =
        ReceiverStream<Result<SyncAuthorizedEntriesResponse, Status>>;

    async fn sync_authorized_entries(
        &self,
        request: Request<Streaming<SyncAuthorizedEntriesRequest>>,
    ) -> Result<Response<Self::SyncAuthorizedEntriesStream>, Status> {
        let entries = self.0.entries.authorized(caller_id(&caller(&request)?)?);
        let audit = Audit::of(&request);
        let requests = request.into_inner();
        Ok(Response::new(sync::start(
            requests,
            entries,
            sync::PAGE,
            audit,
        )))
    }
}

impl<S: Store> Entries<S> {
    async fn create(&self, wire: &types::Entry) -> Result<Created, Status> {
        let entry = convert::entry(wire, &self.0.trust_domain, &EntryMask::ALL)
            .map_err(|why| invalid("failed to convert entry", why))?;
        let created = self.0.store.create_entry(entry).await;
        created.map_err(|error| failed(store_code(&error), "failed to create entry", error))
    }

    async fn update(&self, wire: &types::Entry, input: &EntryMask) -> Result<model::Entry, Status> {
        let entry = convert::entry(wire, &self.0.trust_domain, input)
            .map_err(|why| invalid("failed to convert entry", why))?;
        let updated = self.0.store.update_entry(entry, input).await;
        updated.map_err(|error| failed(store_code(&error), "failed to update entry", error))
    }

    async fn delete(&self, id: &str) -> Result<(), Status> {
        if id.is_empty() {
            return Err(Status::invalid_argument("missing entry ID"));
        }
        match self.0.store.delete_entry(id).await {
            Ok(_) => Ok(()),
            Err(StoreError::NotFound(_)) => Err(Status::not_found("entry not found")),
            Err(error) => Err(internal("failed to delete entry", error)),
        }
    }

    fn filter(&self, filter: Option<Filter>, audit: &Audit) -> Result<EntryFilter, Status> {
        let filter = filter.unwrap_or_default();
        audit.about(|| filter.audited());
        filter.into_store(&self.0.trust_domain)
    }
}

/// The filter of counting and listing, which the wire has twice.
#[derive(Default)]
struct Filter {
    spiffe_id: Option<types::Spiffeid>,
    parent_id: Option<types::Spiffeid>,
    selectors: Option<types::SelectorMatch>,
    federates_with: Option<types::FederatesWithMatch>,
    hint: Option<String>,
    downstream: Option<bool>,
}

macro_rules! from_wire {
    ($wire:ty) => {
        impl From<$wire> for Filter {
            fn from(wire: $wire) -> Self {
                Self {
                    spiffe_id: wire.by_spiffe_id,
                    parent_id: wire.by_parent_id,
                    selectors: wire.by_selectors,
                    federates_with: wire.by_federates_with,
                    hint: wire.by_hint,
                    downstream: wire.by_downstream,
                }
            }
        }
    };
}

from_wire!(count_entries_request::Filter);
from_wire!(list_entries_request::Filter);

impl Filter {
    fn audited(&self) -> Fields {
        Fields::default()
            .maybe("hint", self.hint.clone())
            .maybe("parent_id", audit::id(self.parent_id.as_ref()))
            .maybe("spiffe_id", audit::id(self.spiffe_id.as_ref()))
            .and(audit::selector_match(self.selectors.as_ref()))
            .and(audit::federates_match(self.federates_with.as_ref()))
            .maybe("downstream", self.downstream)
    }

    fn into_store(self, of: &TrustDomain) -> Result<EntryFilter, Status> {
        let id = |id: Option<types::Spiffeid>, kind, what| {
            id.map(|id| ids::of_domain(Some(&id), of, kind))
                .transpose()
                .map_err(|why| invalid(what, why))
        };
        let selectors = self.selectors.map(|wire| convert::selector_match(&wire));
        let selectors = not_empty(
            selectors,
            "empty selector set",
            "malformed selectors filter",
        )?;
        let domains = self
            .federates_with
            .map(|wire| convert::federates_match(&wire));
        let federates_with = not_empty(
            domains,
            "empty trust domain set",
            "malformed federates with filter",
        )?;
        Ok(EntryFilter {
            parent_id: id(self.parent_id, Kind::Member, "malformed parent ID filter")?,
            spiffe_id: id(self.spiffe_id, Kind::Workload, "malformed SPIFFE ID filter")?,
            selectors,
            federates_with,
            // An empty hint asks for nothing.
            hint: self.hint.filter(|hint| !hint.is_empty()),
            downstream: self.downstream,
        })
    }
}

/// A match against nothing is a mistake.
fn not_empty<T>(
    found: Option<Result<(Match, BTreeSet<T>), String>>,
    empty: &str,
    what: &str,
) -> Result<Option<(Match, BTreeSet<T>)>, Status> {
    let found = found.transpose().map_err(|why| invalid(what, why))?;
    match &found {
        Some((_, set)) if set.is_empty() => Err(invalid(what, empty)),
        _ => Ok(found),
    }
}
