//! `spire.api.server.trustdomain.v1.TrustDomain`

use std::collections::BTreeMap;
use std::sync::Arc;

use ah_spire_wire::bundle::bundle_to_wire;
use ah_spire_wire::model::Bundle;
use ah_spire_wire::server::trustdomain::trust_domain_server::TrustDomain as Service;
use ah_spire_wire::server::trustdomain::{
    BatchCreateFederationRelationshipRequest, BatchCreateFederationRelationshipResponse,
    BatchDeleteFederationRelationshipRequest, BatchDeleteFederationRelationshipResponse,
    BatchUpdateFederationRelationshipRequest, BatchUpdateFederationRelationshipResponse,
    GetFederationRelationshipRequest, ListFederationRelationshipsRequest,
    ListFederationRelationshipsResponse, RefreshBundleRequest,
    batch_create_federation_relationship_response, batch_delete_federation_relationship_response,
    batch_update_federation_relationship_response,
};
use ah_spire_wire::types;
use ah_spire_wire::types::federation_relationship::BundleEndpointProfile;
use spiffe::TrustDomain;
use tonic::{Request, Response, Status};

use super::audit::{self, Audit, Fields};
use super::{Core, internal, invalid, item, mask, page};
use crate::federation::endpoint_url;
use crate::ids;
use crate::store::{Page, Profile, Relationship, Store, StoreError};

pub(super) struct TrustDomains<S>(pub(super) Arc<Core<S>>);

/// A relationship as it came, with the bundle that came with it.
struct Given {
    relationship: Relationship,
    bundle: Option<Bundle>,
}

#[tonic::async_trait]
impl<S: Store> Service for TrustDomains<S> {
    async fn list_federation_relationships(
        &self,
        request: Request<ListFederationRelationshipsRequest>,
    ) -> Result<Response<ListFederationRelationshipsResponse>, Status> {
        let request = request.into_inner();
        let mask = request.output_mask.as_ref();
        let page = page(request.page_size, request.page_token);
        let unlisted = |error| internal("failed to list federation relationships", error);
        let found = self.0.store.relationships(&page).await.map_err(unlisted)?;
        // One question for all of them.
        let bundles = match mask.is_none_or(|mask| mask.trust_domain_bundle) {
            true if !found.rows.is_empty() => self.0.store.bundles(&Page::default()).await,
            _ => Ok(crate::store::Paged {
                rows: Vec::new(),
                next: String::new(),
            }),
        };
        let bundles = bundles.map_err(unlisted)?.rows.into_iter();
        let bundles: BTreeMap<_, _> = bundles
            .map(|bundle| (bundle.trust_domain.clone(), bundle))
            .collect();
        let told = found
            .rows
            .iter()
            .map(|one| told(one, bundles.get(&one.trust_domain), mask));
        Ok(Response::new(ListFederationRelationshipsResponse {
            federation_relationships: told.collect(),
            next_page_token: found.next,
        }))
    }

    async fn get_federation_relationship(
        &self,
        request: Request<GetFederationRelationshipRequest>,
    ) -> Result<Response<types::FederationRelationship>, Status> {
        let audit = Audit::of(&request);
        let request = request.into_inner();
        audit.about(|| about(&request.trust_domain));
        let domain = named(&request.trust_domain)?;
        let unfetched = |error| internal("failed to fetch federation relationship", error);
        let found = self
            .0
            .store
            .relationship(&domain)
            .await
            .map_err(unfetched)?;
        let found =
            found.ok_or_else(|| Status::not_found("federation relationship does not exist"))?;
        let bundle = self.0.store.bundle(&domain).await.map_err(unfetched)?;
        let mask = request.output_mask.as_ref();
        Ok(Response::new(told(&found, bundle.as_ref(), mask)))
    }

    async fn batch_create_federation_relationship(
        &self,
        request: Request<BatchCreateFederationRelationshipRequest>,
    ) -> Result<Response<BatchCreateFederationRelationshipResponse>, Status> {
        let audit = Audit::of(&request);
        let request = request.into_inner();
        let mask = request.output_mask.as_ref();
        let mut results = Vec::with_capacity(request.federation_relationships.len());
        for wire in &request.federation_relationships {
            let (status, told) = apart(self.create(wire, mask).await);
            audit.item(&status, || audit::relationship(wire, None));
            results.push(batch_create_federation_relationship_response::Result {
                status: Some(status),
                federation_relationship: told,
            });
        }
        audit.apart();
        self.look_again(results.iter().map(|result| result.status.as_ref()));
        Ok(Response::new(BatchCreateFederationRelationshipResponse {
            results,
        }))
    }

    async fn batch_update_federation_relationship(
        &self,
        request: Request<BatchUpdateFederationRelationshipRequest>,
    ) -> Result<Response<BatchUpdateFederationRelationshipResponse>, Status> {
        let audit = Audit::of(&request);
        let request = request.into_inner();
        let (input, output) = (request.input_mask.as_ref(), request.output_mask.as_ref());
        let mut results = Vec::with_capacity(request.federation_relationships.len());
        for wire in &request.federation_relationships {
            let (status, told) = apart(self.update(wire, input, output).await);
            audit.item(&status, || audit::relationship(wire, input));
            results.push(batch_update_federation_relationship_response::Result {
                status: Some(status),
                federation_relationship: told,
            });
        }
        audit.apart();
        self.look_again(results.iter().map(|result| result.status.as_ref()));
        Ok(Response::new(BatchUpdateFederationRelationshipResponse {
            results,
        }))
    }

    async fn batch_delete_federation_relationship(
        &self,
        request: Request<BatchDeleteFederationRelationshipRequest>,
    ) -> Result<Response<BatchDeleteFederationRelationshipResponse>, Status> {
        let audit = Audit::of(&request);
        let request = request.into_inner();
        let mut results = Vec::with_capacity(request.trust_domains.len());
        for name in request.trust_domains {
            let (trust_domain, deleted) = self.delete(&name).await;
            let status = item(deleted);
            audit.item(&status, || about(&name));
            results.push(batch_delete_federation_relationship_response::Result {
                status: Some(status),
                trust_domain,
            });
        }
        audit.apart();
        self.look_again(results.iter().map(|result| result.status.as_ref()));
        Ok(Response::new(BatchDeleteFederationRelationshipResponse {
            results,
        }))
    }

    async fn refresh_bundle(
        &self,
        request: Request<RefreshBundleRequest>,
    ) -> Result<Response<()>, Status> {
        let audit = Audit::of(&request);
        let request = request.into_inner();
        let domain = named(&request.trust_domain)?;
        audit.about(|| about(&request.trust_domain));
        let refreshed = self.0.federation.refresh(&domain).await;
        match refreshed.map_err(|why| internal("failed to refresh bundle", why))? {
            true => Ok(Response::new(())),
            false => Err(Status::not_found(format!(
                "no relationship with trust domain \"{domain}\""
            ))),
        }
    }
}

impl<S: Store> TrustDomains<S> {
    /// Tells whoever polls, when something changed.
    fn look_again<'a>(&self, mut results: impl Iterator<Item = Option<&'a types::Status>>) {
        if results.any(|status| status.is_some_and(|status| status.code == 0)) {
            self.0.federation.changed();
        }
    }

    async fn create(
        &self,
        wire: &types::FederationRelationship,
        output: Option<&types::FederationRelationshipMask>,
    ) -> Result<types::FederationRelationship, Status> {
        let given =
            given(wire).map_err(|why| invalid("failed to convert federation relationship", why))?;
        let relationship = &given.relationship;
        if relationship.trust_domain == self.0.trust_domain {
            return Err(Status::invalid_argument(
                "unable to create federation relationship for server trust domain",
            ));
        }
        let created = self
            .0
            .store
            .create_relationship(relationship, given.bundle.as_ref())
            .await;
        created.map_err(|error| internal("failed to create federation relationship", error))?;
        self.warn_without_bundle(relationship).await;
        Ok(told(relationship, given.bundle.as_ref(), output))
    }

    async fn update(
        &self,
        wire: &types::FederationRelationship,
        input: Option<&types::FederationRelationshipMask>,
        output: Option<&types::FederationRelationshipMask>,
    ) -> Result<types::FederationRelationship, Status> {
        let Given {
            relationship,
            bundle,
        } = given(wire).map_err(|why| invalid("failed to convert federation relationship", why))?;
        let takes = |field: fn(&types::FederationRelationshipMask) -> bool| input.is_none_or(field);
        let (url, profile) = (
            takes(|mask| mask.bundle_endpoint_url),
            takes(|mask| mask.bundle_endpoint_profile),
        );
        let bundle = bundle.filter(|_| takes(|mask| mask.trust_domain_bundle));
        let domain = relationship.trust_domain.clone();
        let change = |stored: &mut Relationship| {
            if url {
                stored.endpoint_url = relationship.endpoint_url;
            }
            if profile {
                stored.profile = relationship.profile;
            }
        };
        let updated = self
            .0
            .store
            .update_relationship(&domain, change, bundle.as_ref())
            .await;
        let what = "failed to update federation relationship";
        let updated = updated.map_err(|error| match error {
            StoreError::NotFound(_) => internal(what, "federation relationship does not exist"),
            error => internal(what, error),
        })?;
        self.warn_without_bundle(&updated).await;
        let stored = self.0.store.bundle(&domain).await;
        let stored = stored.map_err(|error| internal(what, error))?;
        Ok(told(&updated, stored.as_ref(), output))
    }

    /// The trust domain as it is answered, and what became of it.
    async fn delete(&self, name: &str) -> (String, Result<(), Status>) {
        if name.is_empty() {
            let missing = Status::invalid_argument("missing trust domain");
            return (String::new(), Err(missing));
        }
        let domain = match named(name) {
            Ok(domain) => domain,
            Err(status) => return (name.to_owned(), Err(status)),
        };
        let deleted = self.0.store.delete_relationship(&domain).await;
        let deleted = deleted.map_err(|error| match error {
            StoreError::NotFound(_) => Status::not_found("federation relationship not found"),
            error => internal("failed to delete federation relationship", error),
        });
        (domain.to_string(), deleted)
    }

    /// Its endpoint cannot be proved before somebody sets that bundle.
    async fn warn_without_bundle(&self, relationship: &Relationship) {
        let Profile::HttpsSpiffe(id) = &relationship.profile else {
            return;
        };
        match self.0.store.bundle(id.trust_domain()).await {
            Ok(Some(_)) => {}
            Ok(None) => tracing::warn!(
                endpoint_spiffe_id = %id,
                "bundle not found for the endpoint SPIFFE ID trust domain"
            ),
            Err(error) => tracing::warn!(
                endpoint_spiffe_id = %id,
                %error,
                "failed to check whether a bundle exists for the endpoint SPIFFE ID trust domain"
            ),
        }
    }
}

fn about(name: &str) -> Fields {
    Fields::default().with("trust_domain_id", name)
}

fn named(name: &str) -> Result<TrustDomain, Status> {
    ids::trust_domain(name).map_err(|why| invalid("failed to parse trust domain", why))
}

fn apart(
    result: Result<types::FederationRelationship, Status>,
) -> (types::Status, Option<types::FederationRelationship>) {
    match result {
        Ok(told) => (item(Ok(())), Some(told)),
        Err(status) => (item(Err(status)), None),
    }
}

/// All of it is judged, whatever an update takes over, in the words of upstream.
fn given(wire: &types::FederationRelationship) -> Result<Given, String> {
    let trust_domain = ids::trust_domain(&wire.trust_domain)
        .map_err(|why| format!("failed to parse trust domain: {why}"))?;
    let endpoint_url = endpoint_url(&wire.bundle_endpoint_url)?;
    let profile = match &wire.bundle_endpoint_profile {
        Some(BundleEndpointProfile::HttpsWeb(_)) => Profile::HttpsWeb,
        Some(BundleEndpointProfile::HttpsSpiffe(spiffe)) => {
            let id = ids::parse(&spiffe.endpoint_spiffe_id);
            let id = id.map_err(|why| format!("failed to parse endpoint SPIFFE ID: {why}"))?;
            Profile::HttpsSpiffe(id)
        }
        None => return Err("unsupported bundle endpoint profile type: <nil>".into()),
    };
    let bundle = match &wire.trust_domain_bundle {
        None => None,
        Some(bundle) => {
            let bundle = super::bundle::given(bundle)
                .map_err(|why| format!("failed to parse bundle: {why}"))?;
            if bundle.trust_domain != trust_domain {
                return Err(format!(
                    "trust domain bundle (\"{}\") must match the trust domain of the federation relationship (\"{trust_domain}\")",
                    bundle.trust_domain
                ));
            }
            Some(bundle)
        }
    };
    Ok(Given {
        relationship: Relationship {
            trust_domain,
            endpoint_url,
            profile,
        },
        bundle,
    })
}

fn told(
    relationship: &Relationship,
    bundle: Option<&Bundle>,
    output: Option<&types::FederationRelationshipMask>,
) -> types::FederationRelationship {
    let profile = match &relationship.profile {
        Profile::HttpsWeb => BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {}),
        Profile::HttpsSpiffe(id) => BundleEndpointProfile::HttpsSpiffe(types::HttpsspiffeProfile {
            endpoint_spiffe_id: id.to_string(),
        }),
    };
    let told = types::FederationRelationship {
        trust_domain: relationship.trust_domain.to_string(),
        bundle_endpoint_url: relationship.endpoint_url.clone(),
        bundle_endpoint_profile: Some(profile),
        trust_domain_bundle: bundle.map(bundle_to_wire),
    };
    mask::relationship(told, output)
}
