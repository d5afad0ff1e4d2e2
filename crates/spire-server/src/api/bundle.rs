//! `spire.api.server.bundle.v1.Bundle`

use std::sync::Arc;

use ah_spire_wire::bundle::{bundle_from_wire, bundle_to_wire, jwt_key_from_wire, jwt_key_to_wire};
use ah_spire_wire::model::{self, X509Authority};
use ah_spire_wire::server::bundle::batch_delete_federated_bundle_request::Mode;
use ah_spire_wire::server::bundle::bundle_server::Bundle as Service;
use ah_spire_wire::server::bundle::{
    AppendBundleRequest, BatchCreateFederatedBundleRequest, BatchCreateFederatedBundleResponse,
    BatchDeleteFederatedBundleRequest, BatchDeleteFederatedBundleResponse,
    BatchSetFederatedBundleRequest, BatchSetFederatedBundleResponse,
    BatchUpdateFederatedBundleRequest, BatchUpdateFederatedBundleResponse, CountBundlesRequest,
    CountBundlesResponse, GetBundleRequest, GetFederatedBundleRequest, ListFederatedBundlesRequest,
    ListFederatedBundlesResponse, PublishJwtAuthorityRequest, PublishJwtAuthorityResponse,
    PublishWitAuthorityRequest, PublishWitAuthorityResponse,
    batch_create_federated_bundle_response, batch_delete_federated_bundle_response,
    batch_set_federated_bundle_response, batch_update_federated_bundle_response,
};
use ah_spire_wire::types;
use spiffe::TrustDomain;
use tonic::{Request, Response, Status};

use super::audit::{self, Audit, Fields};
use super::{Core, caller, count, failed, internal, invalid, item, mask, page, store_code};
use crate::ids;
use crate::store::{BundleChange, BundleDeletion, Store, StoreError};

pub(super) struct Bundles<S>(pub(super) Arc<Core<S>>);

#[tonic::async_trait]
impl<S: Store> Service for Bundles<S> {
    async fn count_bundles(
        &self,
        _request: Request<CountBundlesRequest>,
    ) -> Result<Response<CountBundlesResponse>, Status> {
        let rows = self.0.store.count_bundles().await;
        let rows = rows.map_err(|error| internal("failed to count bundles", error))?;
        Ok(Response::new(CountBundlesResponse { count: count(rows) }))
    }

    async fn get_bundle(
        &self,
        request: Request<GetBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        Audit::of(&request)
            .about(|| Fields::default().with("trust_domain_id", self.0.trust_domain.as_str()));
        let mask = request.into_inner().output_mask;
        let bundle = self.stored(&self.0.trust_domain).await?;
        Ok(Response::new(told(&bundle, mask.as_ref())))
    }

    async fn append_bundle(
        &self,
        request: Request<AppendBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let audit = Audit::of(&request);
        let request = request.into_inner();
        audit.about(|| {
            let jwt = audit::jwt_keys(&request.jwt_authorities);
            jwt.and(audit::x509_authorities(&request.x509_authorities))
        });
        if request.jwt_authorities.is_empty() && request.x509_authorities.is_empty() {
            return Err(Status::invalid_argument("no authorities to append"));
        }
        let mut jwt = Vec::with_capacity(request.jwt_authorities.len());
        for key in &request.jwt_authorities {
            let key = jwt_key_from_wire(key);
            jwt.push(key.map_err(|why| invalid("failed to convert JWT authority", why))?);
        }
        let given = types::Bundle {
            trust_domain: self.0.trust_domain.to_string(),
            x509_authorities: request.x509_authorities,
            ..types::Bundle::default()
        };
        let given = bundle_from_wire(&given)
            .map_err(|why| invalid("failed to convert X.509 authority", why))?;
        let ours = self.0.trust_domain.clone();
        let append = move |stored: Option<model::Bundle>| {
            let mut bundle = stored.unwrap_or_else(|| empty(ours));
            for key in jwt {
                if bundle.jwt.iter().all(|known| known.id != key.id) {
                    bundle.jwt.push(key);
                }
            }
            for ca in given.x509 {
                if bundle.x509.iter().all(|known| known.der != ca.der) {
                    bundle.x509.push(ca);
                }
            }
            Some(bundle)
        };
        let appended = self
            .0
            .store
            .update_bundle(&self.0.trust_domain, BundleChange::Append, append)
            .await
            .map_err(|error| internal("failed to append bundle", error))?;
        let bundle = appended.ok_or_else(|| Status::internal("failed to append bundle"))?;
        Ok(Response::new(told(&bundle, request.output_mask.as_ref())))
    }

    async fn publish_jwt_authority(
        &self,
        request: Request<PublishJwtAuthorityRequest>,
    ) -> Result<Response<PublishJwtAuthorityResponse>, Status> {
        if let Some(key) = &request.get_ref().jwt_authority {
            Audit::of(&request).about(|| {
                Fields::default()
                    .with("jwt_authority_expires_at", key.expires_at)
                    .with("jwt_authority_key_id", key.key_id.clone())
                    .with(
                        "jwt_authority_public_key_sha256",
                        audit::sha256(&key.public_key),
                    )
            });
        }
        let address = caller(&request)?.address().map(|address| address.ip());
        self.0.limits.publish_jwt.wait(address, 1).await?;
        let key = request.into_inner().jwt_authority;
        let key = key.ok_or_else(|| Status::invalid_argument("missing JWT authority"))?;
        let key = jwt_key_from_wire(&key).map_err(|why| invalid("invalid JWT authority", why))?;
        let keys = self.0.authority.publish_jwt_key(key).await;
        let keys = keys.map_err(|error| internal("failed to publish JWT key", error))?;
        Ok(Response::new(PublishJwtAuthorityResponse {
            jwt_authorities: keys.iter().map(jwt_key_to_wire).collect(),
        }))
    }

    async fn publish_wit_authority(
        &self,
        _request: Request<PublishWitAuthorityRequest>,
    ) -> Result<Response<PublishWitAuthorityResponse>, Status> {
        Err(Status::unimplemented(
            "WIT-SVID functionality is not yet implemented",
        ))
    }

    async fn list_federated_bundles(
        &self,
        request: Request<ListFederatedBundlesRequest>,
    ) -> Result<Response<ListFederatedBundlesResponse>, Status> {
        let request = request.into_inner();
        let page = page(request.page_size, request.page_token);
        let found = self.0.store.bundles(&page).await;
        let found = found.map_err(|error| internal("failed to list bundles", error))?;
        let federated = found
            .rows
            .iter()
            .filter(|bundle| bundle.trust_domain != self.0.trust_domain);
        Ok(Response::new(ListFederatedBundlesResponse {
            bundles: federated
                .map(|bundle| told(bundle, request.output_mask.as_ref()))
                .collect(),
            next_page_token: found.next,
        }))
    }

    async fn get_federated_bundle(
        &self,
        request: Request<GetFederatedBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let audit = Audit::of(&request);
        let request = request.into_inner();
        audit.about(|| Fields::default().with("trust_domain_id", request.trust_domain.clone()));
        let domain = self.federated(
            &request.trust_domain,
            "getting a federated bundle for the server's own trust domain is not allowed",
        )?;
        let bundle = self.stored(&domain).await?;
        Ok(Response::new(told(&bundle, request.output_mask.as_ref())))
    }

    async fn batch_create_federated_bundle(
        &self,
        request: Request<BatchCreateFederatedBundleRequest>,
    ) -> Result<Response<BatchCreateFederatedBundleResponse>, Status> {
        let audit = Audit::of(&request);
        let request = request.into_inner();
        let mut results = Vec::with_capacity(request.bundle.len());
        for wire in &request.bundle {
            let (status, bundle) = apart(self.create(wire).await);
            audit.item(&status, || audit::bundle(wire, None));
            results.push(batch_create_federated_bundle_response::Result {
                status: Some(status),
                bundle: bundle.map(|bundle| told(&bundle, request.output_mask.as_ref())),
            });
        }
        audit.apart();
        Ok(Response::new(BatchCreateFederatedBundleResponse {
            results,
        }))
    }

    async fn batch_update_federated_bundle(
        &self,
        request: Request<BatchUpdateFederatedBundleRequest>,
    ) -> Result<Response<BatchUpdateFederatedBundleResponse>, Status> {
        let audit = Audit::of(&request);
        let request = request.into_inner();
        let mut results = Vec::with_capacity(request.bundle.len());
        for wire in &request.bundle {
            let updated = self.update(wire, request.input_mask.as_ref()).await;
            let (status, bundle) = apart(updated);
            audit.item(&status, || audit::bundle(wire, request.input_mask.as_ref()));
            results.push(batch_update_federated_bundle_response::Result {
                status: Some(status),
                bundle: bundle.map(|bundle| told(&bundle, request.output_mask.as_ref())),
            });
        }
        audit.apart();
        Ok(Response::new(BatchUpdateFederatedBundleResponse {
            results,
        }))
    }

    async fn batch_set_federated_bundle(
        &self,
        request: Request<BatchSetFederatedBundleRequest>,
    ) -> Result<Response<BatchSetFederatedBundleResponse>, Status> {
        let audit = Audit::of(&request);
        let request = request.into_inner();
        let mut results = Vec::with_capacity(request.bundle.len());
        for wire in &request.bundle {
            let (status, bundle) = apart(self.set(wire).await);
            audit.item(&status, || audit::bundle(wire, None));
            results.push(batch_set_federated_bundle_response::Result {
                status: Some(status),
                bundle: bundle.map(|bundle| told(&bundle, request.output_mask.as_ref())),
            });
        }
        audit.apart();
        Ok(Response::new(BatchSetFederatedBundleResponse { results }))
    }

    async fn batch_delete_federated_bundle(
        &self,
        request: Request<BatchDeleteFederatedBundleRequest>,
    ) -> Result<Response<BatchDeleteFederatedBundleResponse>, Status> {
        let audit = Audit::of(&request);
        let request = request.into_inner();
        let Ok(wire) = Mode::try_from(request.mode) else {
            let why = format!("unhandled delete mode \"{}\"", request.mode);
            return Err(invalid("failed to parse deletion mode", why));
        };
        let mode = match wire {
            Mode::Restrict => BundleDeletion::Restrict,
            Mode::Delete => BundleDeletion::Delete,
            Mode::Dissociate => BundleDeletion::Dissociate,
        };
        let mut results = Vec::with_capacity(request.trust_domains.len());
        for trust_domain in request.trust_domains {
            let status = item(self.delete(&trust_domain, mode).await);
            audit.item(&status, || {
                Fields::default()
                    .with("trust_domain_id", trust_domain.clone())
                    .with("mode", wire.as_str_name())
            });
            results.push(batch_delete_federated_bundle_response::Result {
                status: Some(status),
                trust_domain,
            });
        }
        audit.apart();
        Ok(Response::new(BatchDeleteFederatedBundleResponse {
            results,
        }))
    }
}

impl<S: Store> Bundles<S> {
    async fn stored(&self, of: &TrustDomain) -> Result<model::Bundle, Status> {
        let bundle = self.0.store.bundle(of).await;
        let bundle = bundle.map_err(|error| internal("failed to fetch bundle", error))?;
        bundle.ok_or_else(|| Status::not_found("bundle not found"))
    }

    /// A trust domain that is not our own; `own` says what is not allowed.
    fn federated(&self, domain: &str, own: &str) -> Result<TrustDomain, Status> {
        let domain = ids::trust_domain(domain)
            .map_err(|why| invalid("trust domain argument is not valid", why))?;
        if domain == self.0.trust_domain {
            return Err(Status::invalid_argument(own));
        }
        Ok(domain)
    }

    fn given(&self, wire: &types::Bundle, own: &str) -> Result<model::Bundle, Status> {
        self.federated(&wire.trust_domain, own)?;
        given(wire).map_err(|why| invalid("failed to convert bundle", why))
    }

    async fn create(&self, wire: &types::Bundle) -> Result<model::Bundle, Status> {
        let given = self.given(
            wire,
            "creating a federated bundle for the server's own trust domain is not allowed",
        )?;
        let domain = given.trust_domain.clone();
        let mut existed = false;
        let create = |stored: Option<model::Bundle>| {
            existed = stored.is_some();
            stored.is_none().then_some(given)
        };
        let how = BundleChange::Create;
        let created = self.0.store.update_bundle(&domain, how, create).await;
        let created = created.map_err(|error| internal("unable to create bundle", error))?;
        match created {
            Some(bundle) if !existed => {
                self.0.federation.changed();
                Ok(bundle)
            }
            _ => Err(Status::already_exists("bundle already exists")),
        }
    }

    async fn set(&self, wire: &types::Bundle) -> Result<model::Bundle, Status> {
        let given = self.given(
            wire,
            "setting a federated bundle for the server's own trust domain is not allowed",
        )?;
        let put = self.0.store.put_bundle(&given).await;
        put.map_err(|error| internal("failed to set bundle", error))?;
        self.0.federation.changed();
        self.stored(&given.trust_domain).await
    }

    async fn update(
        &self,
        wire: &types::Bundle,
        input: Option<&types::BundleMask>,
    ) -> Result<model::Bundle, Status> {
        let given = self.given(
            wire,
            "updating a federated bundle for the server's own trust domain is not allowed",
        )?;
        let domain = given.trust_domain.clone();
        let mask = input.copied();
        let takes = move |field: fn(&types::BundleMask) -> bool| mask.as_ref().is_none_or(field);
        let change = |stored: Option<model::Bundle>| {
            let mut bundle = stored?;
            if takes(|mask| mask.x509_authorities) {
                bundle.x509 = given.x509;
            }
            if takes(|mask| mask.jwt_authorities) {
                bundle.jwt = given.jwt;
            }
            // No bundle document tells them: who sends none does not mean that they are gone.
            if takes(|mask| mask.wit_authorities) && !given.wit.is_empty() {
                bundle.wit = given.wit;
            }
            if takes(|mask| mask.refresh_hint) {
                bundle.refresh_hint = given.refresh_hint;
            }
            if takes(|mask| mask.sequence_number) {
                bundle.sequence = given.sequence;
            }
            Some(bundle)
        };
        let how = BundleChange::Update;
        match self.0.store.update_bundle(&domain, how, change).await {
            Ok(Some(bundle)) => Ok(bundle),
            Ok(None) | Err(StoreError::NotFound(_)) => Err(Status::not_found("bundle not found")),
            Err(error) => Err(internal("failed to update bundle", error)),
        }
    }

    async fn delete(&self, domain: &str, mode: BundleDeletion) -> Result<(), Status> {
        let domain = self.federated(
            domain,
            "removing the bundle for the server trust domain is not allowed",
        )?;
        match self.0.store.delete_bundle(&domain, mode).await {
            Ok(()) => Ok(()),
            Err(StoreError::NotFound(_)) => Err(Status::not_found("bundle not found")),
            Err(error) => {
                let code = store_code(&error);
                Err(failed(code, "failed to delete federated bundle", error))
            }
        }
    }
}

/// A bundle of the wire, which may name its trust domain by an ID.
pub(super) fn given(wire: &types::Bundle) -> Result<model::Bundle, String> {
    let wire = types::Bundle {
        trust_domain: ids::trust_domain(&wire.trust_domain)?.to_string(),
        ..wire.clone()
    };
    bundle_from_wire(&wire).map_err(|why| why.to_string())
}

fn apart(result: Result<model::Bundle, Status>) -> (types::Status, Option<model::Bundle>) {
    match result {
        Ok(bundle) => (item(Ok(())), Some(bundle)),
        Err(status) => (item(Err(status)), None),
    }
}

fn told(bundle: &model::Bundle, mask: Option<&types::BundleMask>) -> types::Bundle {
    mask::bundle(bundle_to_wire(bundle), mask)
}

fn empty(trust_domain: TrustDomain) -> model::Bundle {
    model::Bundle {
        trust_domain,
        x509: Vec::<X509Authority>::new(),
        jwt: Vec::new(),
        wit: Vec::new(),
        refresh_hint: 0,
        sequence: 0,
    }
}
