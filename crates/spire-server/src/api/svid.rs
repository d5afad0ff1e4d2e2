//! `spire.api.server.svid.v1.SVID`

use std::sync::Arc;
use std::time::Duration;

use ah_spire_wire::server::svid::svid_server::Svid as Service;
use ah_spire_wire::server::svid::{
    BatchNewWitsvidRequest, BatchNewWitsvidResponse, BatchNewX509svidRequest,
    BatchNewX509svidResponse, MintJwtsvidRequest, MintJwtsvidResponse, MintWitsvidRequest,
    MintWitsvidResponse, MintX509svidRequest, MintX509svidResponse, NewDownstreamX509caRequest,
    NewDownstreamX509caResponse, NewJwtsvidRequest, NewJwtsvidResponse, NewWitsvidParams,
    NewX509svidParams, batch_new_witsvid_response, batch_new_x509svid_response,
};
use ah_spire_wire::types::{self, Jwtsvid, Witsvid, X509svid};
use ah_spire_wire::{spiffe_id_from_wire, spiffe_id_to_wire};
use spiffe::SpiffeId;
use tonic::{Request, Response, Status};

use super::attest::x509svid;
use super::audit::{self, Audit, Fields};
use super::csr::{BadCsr, Csr};
use super::{Core, Right, caller, caller_id, dns, internal, invalid, item, unix};
use crate::ca::{BadHolderKey, HolderKey, JwtSvidRequest, WitSvidRequest, X509SvidRequest};
use crate::entries::Held;
use crate::ids::{self, Kind};
use crate::moment;
use crate::store::Store;

pub(super) struct Svids<S>(pub(super) Arc<Core<S>>);

#[tonic::async_trait]
impl<S: Store> Service for Svids<S> {
    async fn mint_x509svid(
        &self,
        request: Request<MintX509svidRequest>,
    ) -> Result<Response<MintX509svidResponse>, Status> {
        let audit = Audit::of(&request);
        let request = request.into_inner();
        audit.about(|| {
            Fields::default()
                .with("csr", audit::sha256(&request.csr))
                .with("ttl", request.ttl)
        });
        let csr = read(&request.csr, "failed to verify CSR signature")?;
        let uri = match csr.uris.as_slice() {
            [uri] => uri,
            [] => return Err(Status::invalid_argument("CSR URI SAN is required")),
            _ => return Err(Status::invalid_argument("only one URI SAN is expected")),
        };
        let id = ids::parse(uri)
            .and_then(|id| ids::check(&id, &self.0.trust_domain, Kind::Workload).map(|()| id))
            .map_err(|why| invalid("CSR URI SAN is invalid", why))?;
        for name in &csr.dns_names {
            dns::check(name).map_err(|why| invalid("CSR DNS name is invalid", why))?;
        }
        dns::check_overlap(&csr.dns_names).map_err(|why| {
            invalid(
                "CSR DNS name contains a wildcard that covers another non-wildcard name",
                why,
            )
        })?;
        audit.about(|| {
            Fields::default()
                .with("spiffe_id", id.to_string())
                .with("dns_name", csr.dns_names.join(","))
        });
        let signed = self.0.authority.sign_x509_svid(X509SvidRequest {
            spiffe_id: id.clone(),
            spki: csr.spki,
            dns_names: csr.dns_names,
            ttl: ttl(request.ttl),
        });
        let signed = signed.map_err(|error| internal("failed to sign X509-SVID", error))?;
        audit.about(|| {
            Fields::default().with("expires_at", moment::rfc3339(unix(signed.not_after)))
        });
        Ok(Response::new(MintX509svidResponse {
            svid: Some(x509svid(&id, &signed)),
        }))
    }

    async fn mint_jwtsvid(
        &self,
        request: Request<MintJwtsvidRequest>,
    ) -> Result<Response<MintJwtsvidResponse>, Status> {
        self.jwt_enabled()?;
        let audit = Audit::of(&request);
        let request = request.into_inner();
        audit.about(|| {
            Fields::default()
                .with("ttl", request.ttl)
                .maybe("spiffe_id", audit::id(request.id.as_ref()))
                .with("audience", request.audience.join(","))
        });
        let id = ids::of_domain(request.id.as_ref(), &self.0.trust_domain, Kind::Workload)
            .map_err(|why| invalid("invalid SPIFFE ID", why))?;
        let svid = self.jwt(id, request.audience, request.ttl, false)?;
        Ok(Response::new(MintJwtsvidResponse { svid: Some(svid) }))
    }

    async fn mint_witsvid(
        &self,
        request: Request<MintWitsvidRequest>,
    ) -> Result<Response<MintWitsvidResponse>, Status> {
        self.wit_enabled()?;
        let audit = Audit::of(&request);
        let request = request.into_inner();
        audit.about(|| {
            Fields::default()
                .with("ttl", request.ttl)
                .maybe("spiffe_id", audit::id(request.id.as_ref()))
        });
        let id = ids::of_domain(request.id.as_ref(), &self.0.trust_domain, Kind::Workload)
            .map_err(|why| invalid("invalid SPIFFE ID", why))?;
        let holder = holder(
            &request.public_key,
            &request.signing_algorithm,
            "invalid public key",
        )?;
        let svid = self.wit(&id, holder, request.ttl)?;
        Ok(Response::new(MintWitsvidResponse { svid: Some(svid) }))
    }

    async fn batch_new_x509svid(
        &self,
        request: Request<BatchNewX509svidRequest>,
    ) -> Result<Response<BatchNewX509svidResponse>, Status> {
        let (caller, audit) = (caller(&request)?, Audit::of(&request));
        let params = request.into_inner().params;
        if params.is_empty() {
            return Err(Status::invalid_argument("missing parameters"));
        }
        let address = caller.address().map(|address| address.ip());
        self.0.limits.x509.wait(address, params.len()).await?;
        let agent = caller_id(&caller)?;
        let mut results = Vec::with_capacity(params.len());
        for one in params {
            let (status, svid) = match self.new_x509(&one, agent) {
                Ok(svid) => (Ok(()), Some(svid)),
                Err(status) => (Err(status), None),
            };
            let status = item(status);
            audit.item(&status, || about_new(&one, svid.as_ref()));
            results.push(batch_new_x509svid_response::Result {
                status: Some(status),
                svid,
            });
            // Each costs a verification and a signature: others get their turn in between.
            tokio::task::yield_now().await;
        }
        audit.apart();
        Ok(Response::new(BatchNewX509svidResponse { results }))
    }

    async fn new_jwtsvid(
        &self,
        request: Request<NewJwtsvidRequest>,
    ) -> Result<Response<NewJwtsvidResponse>, Status> {
        let (caller, audit) = (caller(&request)?, Audit::of(&request));
        audit.about(|| {
            let request = request.get_ref();
            Fields::default()
                .with("entry_id", request.entry_id.clone())
                .with("audience", request.audience.join(","))
        });
        let address = caller.address().map(|address| address.ip());
        self.0.limits.jwt.wait(address, 1).await?;
        self.jwt_enabled()?;
        let request = request.into_inner();
        let entry = self
            .0
            .entries
            .authorized_entry(caller_id(&caller)?, &request.entry_id)
            .ok_or_else(|| Status::not_found("entry not found or not authorized"))?;
        let (entry, spiffe_id) = read_entry(&entry)?;
        ids::check(&spiffe_id, &self.0.trust_domain, Kind::Workload)
            .map_err(|why| invalid("invalid SPIFFE ID", why))?;
        audit.about(|| {
            Fields::default()
                .with("spiffe_id", spiffe_id.to_string())
                .with("ttl", entry.jwt_svid_ttl)
        });
        let more = entry.additional_attributes.unwrap_or_default();
        let svid = self.jwt(
            spiffe_id,
            request.audience,
            entry.jwt_svid_ttl,
            more.jwt_svid_include_jti,
        )?;
        Ok(Response::new(NewJwtsvidResponse { svid: Some(svid) }))
    }

    async fn batch_new_witsvid(
        &self,
        request: Request<BatchNewWitsvidRequest>,
    ) -> Result<Response<BatchNewWitsvidResponse>, Status> {
        let (caller, audit) = (caller(&request)?, Audit::of(&request));
        self.wit_enabled()?;
        let params = request.into_inner().params;
        if params.is_empty() {
            return Err(Status::invalid_argument("missing parameters"));
        }
        let address = caller.address().map(|address| address.ip());
        self.0.limits.wit.wait(address, params.len()).await?;
        let agent = caller_id(&caller)?;
        let mut results = Vec::with_capacity(params.len());
        for one in params {
            let (status, svid) = match self.new_wit(&one, agent) {
                Ok(svid) => (Ok(()), Some(svid)),
                Err(status) => (Err(status), None),
            };
            let status = item(status);
            audit.item(&status, || {
                let svid = svid.as_ref();
                let id = svid.and_then(|svid| audit::id(svid.id.as_ref()));
                Fields::default()
                    .with("entry_id", one.entry_id.clone())
                    .with("spiffe_id", id.unwrap_or_default())
                    .maybe("expires_at", svid.map(|svid| svid.expires_at))
            });
            results.push(batch_new_witsvid_response::Result {
                status: Some(status),
                svid,
            });
            tokio::task::yield_now().await;
        }
        audit.apart();
        Ok(Response::new(BatchNewWitsvidResponse { results }))
    }

    async fn new_downstream_x509ca(
        &self,
        request: Request<NewDownstreamX509caRequest>,
    ) -> Result<Response<NewDownstreamX509caResponse>, Status> {
        let (caller, audit) = (caller(&request)?, Audit::of(&request));
        audit.about(|| {
            Fields::default()
                .with("csr", audit::sha256(&request.get_ref().csr))
                .with("trust_domain_id", self.0.trust_domain.id_string())
        });
        let address = caller.address().map(|address| address.ip());
        self.0.limits.downstream.wait(address, 1).await?;
        if !matches!(caller.right(), Right::Downstream(_)) {
            return Err(Status::internal("caller is not a downstream workload"));
        }
        let request = request.into_inner();
        let csr = read(&request.csr, "invalid CSR signature")?;
        let signed = self
            .0
            .authority
            .sign_downstream_ca(&csr.spki, ttl(request.preferred_ttl));
        let signed =
            signed.map_err(|error| internal("failed to sign downstream X.509 CA", error))?;
        let bundle = self.0.store.bundle(&self.0.trust_domain).await;
        let bundle = bundle.map_err(|error| internal("failed to fetch bundle", error))?;
        let bundle = bundle.ok_or_else(|| Status::not_found("bundle not found"))?;
        Ok(Response::new(NewDownstreamX509caResponse {
            ca_cert_chain: signed,
            x509_authorities: bundle.x509.into_iter().map(|ca| ca.der).collect(),
        }))
    }
}

impl<S: Store> Svids<S> {
    fn new_x509(&self, params: &NewX509svidParams, agent: &SpiffeId) -> Result<X509svid, Status> {
        if params.entry_id.is_empty() {
            return Err(Status::invalid_argument("missing entry ID"));
        }
        if params.csr.is_empty() {
            return Err(Status::invalid_argument("missing CSR"));
        }
        let entry = self
            .0
            .entries
            .authorized_entry(agent, &params.entry_id)
            .ok_or_else(|| Status::not_found("entry not found or not authorized"))?;
        let csr = read(&params.csr, "invalid CSR signature")?;
        let (entry, spiffe_id) = read_entry(&entry)?;
        ids::check(&spiffe_id, &self.0.trust_domain, Kind::Member)
            .map_err(|why| internal("entry has malformed SPIFFE ID", why))?;
        let signed = self.0.authority.sign_x509_svid(X509SvidRequest {
            spiffe_id: spiffe_id.clone(),
            spki: csr.spki,
            dns_names: entry.dns_names,
            ttl: ttl(entry.x509_svid_ttl),
        });
        let signed = signed.map_err(|error| internal("failed to sign X509-SVID", error))?;
        Ok(x509svid(&spiffe_id, &signed))
    }

    fn jwt(
        &self,
        id: SpiffeId,
        audience: Vec<String>,
        seconds: i32,
        include_jti: bool,
    ) -> Result<Jwtsvid, Status> {
        if audience.is_empty() {
            return Err(Status::invalid_argument(
                "at least one audience is required",
            ));
        }
        let signed = self.0.authority.sign_jwt_svid(JwtSvidRequest {
            spiffe_id: id.clone(),
            audience,
            ttl: ttl(seconds),
            include_jti,
        });
        let signed = signed.map_err(|error| internal("failed to sign JWT-SVID", error))?;
        Ok(Jwtsvid {
            token: signed.token,
            id: Some(spiffe_id_to_wire(&id)),
            expires_at: unix(signed.expires_at),
            issued_at: unix(signed.issued_at),
            hint: String::new(),
        })
    }

    /// As long as an X509-SVID of the entry: it has no time for WIT-SVIDs.
    fn new_wit(&self, params: &NewWitsvidParams, agent: &SpiffeId) -> Result<Witsvid, Status> {
        if params.entry_id.is_empty() {
            return Err(Status::invalid_argument("missing entry ID"));
        }
        if params.public_key.is_empty() {
            return Err(Status::invalid_argument("missing public key"));
        }
        let entry = self
            .0
            .entries
            .authorized_entry(agent, &params.entry_id)
            .ok_or_else(|| Status::not_found("entry not found or not authorized"))?;
        let holder = holder(
            &params.public_key,
            &params.signing_algorithm,
            "malformed public key",
        )?;
        let (entry, spiffe_id) = read_entry(&entry)?;
        ids::check(&spiffe_id, &self.0.trust_domain, Kind::Member)
            .map_err(|why| internal("entry has malformed SPIFFE ID", why))?;
        self.wit(&spiffe_id, holder, entry.x509_svid_ttl)
    }

    fn wit(&self, id: &SpiffeId, holder: HolderKey, seconds: i32) -> Result<Witsvid, Status> {
        let signed = self.0.authority.sign_wit_svid(WitSvidRequest {
            spiffe_id: id.clone(),
            holder,
            ttl: ttl(seconds),
        });
        let signed = signed.map_err(|error| internal("failed to sign WIT-SVID", error))?;
        Ok(Witsvid {
            token: signed.token,
            id: Some(spiffe_id_to_wire(id)),
            expires_at: unix(signed.expires_at),
            issued_at: unix(signed.issued_at),
            hint: String::new(),
        })
    }

    fn wit_enabled(&self) -> Result<(), Status> {
        if self.0.authority.wit_disabled() {
            return Err(Status::unimplemented("WIT functionality is disabled"));
        }
        Ok(())
    }

    fn jwt_enabled(&self) -> Result<(), Status> {
        if self.0.authority.jwt_disabled() {
            return Err(Status::unimplemented("JWT functionality is disabled"));
        }
        Ok(())
    }
}

/// With what is issued.
fn read_entry(held: &Held) -> Result<(types::Entry, SpiffeId), Status> {
    let entry = held.to_wire();
    let entry = entry.map_err(|why| internal("failed to read entry", why))?;
    let spiffe_id = spiffe_id_from_wire(entry.spiffe_id.as_ref(), "spiffe_id")
        .map_err(|why| internal("entry has malformed SPIFFE ID", why))?;
    Ok((entry, spiffe_id))
}

fn about_new(params: &NewX509svidParams, svid: Option<&X509svid>) -> Fields {
    let id = svid.and_then(|svid| audit::id(svid.id.as_ref()));
    Fields::default()
        .with("csr", audit::sha256(&params.csr))
        .with("entry_id", params.entry_id.clone())
        .with("spiffe_id", id.unwrap_or_default())
        .maybe("expires_at", svid.map(|svid| svid.expires_at))
}

fn read(csr: &[u8], bad_signature: &str) -> Result<Csr, Status> {
    if csr.is_empty() {
        return Err(Status::invalid_argument("missing CSR"));
    }
    Csr::read(csr).map_err(|why| match why {
        BadCsr::Malformed => invalid("malformed CSR", why),
        BadCsr::Signature => invalid(bad_signature, why),
    })
}

/// Seconds on the wire; 0 and less is the server's default.
fn ttl(seconds: i32) -> Option<Duration> {
    let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds > 0);
    seconds.map(Duration::from_secs)
}

fn holder(spki: &[u8], algorithm: &str, malformed: &str) -> Result<HolderKey, Status> {
    HolderKey::new(spki, algorithm).map_err(|why| match why {
        BadHolderKey::Key(why) => invalid(malformed, why),
        BadHolderKey::Algorithm(why) => invalid("invalid signing algorithm or key type", why),
    })
}
