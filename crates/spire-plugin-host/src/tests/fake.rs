//! A plugin that speaks gRPC, in a process of its own: this test's program with `BEHAVIOUR` set.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use ah_spire_wire::{Limits, serve};
use tokio::net::UnixListener;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use super::SERVICE;
use crate::packages::plugin as go;
use crate::packages::spire::plugin::agent::workloadattestor::v1 as workload;
use crate::packages::spire::service::common::config::v1 as config;
use crate::packages::spire::service::private::init::v1 as init;

/// Does nothing unless it is started as a plugin.
#[tokio::test]
async fn plays_the_plugin() {
    let Ok(behaviour) = std::env::var("BEHAVIOUR") else {
        return;
    };
    let socket = PathBuf::from(std::env::var_os("PLUGIN_UNIX_SOCKET_DIR").unwrap()).join("plugin");
    let listener = UnixListener::bind(&socket).unwrap();
    let routes = Routes::new(init::init_server::InitServer::new(Fake::new(&behaviour)))
        .add_service(go::grpc_controller_server::GrpcControllerServer::new(Ends));
    let fake: &'static Fake = Box::leak(Box::new(Fake::new(&behaviour)));
    let routes = routes
        .add_service(config::config_server::ConfigServer::new(fake))
        .add_service(workload::workload_attestor_server::WorkloadAttestorServer::new(fake));
    std::fs::write("pid", std::process::id().to_string()).unwrap();
    // The harness has stdout.
    let mut stdout = std::fs::OpenOptions::new()
        .write(true)
        .open("/proc/self/fd/3")
        .unwrap();
    writeln!(stdout, "1|1|unix|{}|grpc", socket.display()).unwrap();
    drop(stdout);
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let routes = routes.clone();
        tokio::spawn(serve(
            stream,
            routes,
            Limits::default(),
            std::future::pending(),
        ));
    }
}

struct Fake {
    behaviour: String,
    told: Mutex<String>,
}

impl Fake {
    fn new(behaviour: &str) -> Self {
        Self {
            behaviour: behaviour.to_owned(),
            told: Mutex::default(),
        }
    }
}

/// Whether this is the first process that comes here.
fn is_first() -> bool {
    let mark = Path::new("was-here");
    !mark.exists() && std::fs::write(mark, "").is_ok()
}

#[tonic::async_trait]
impl init::init_server::Init for Fake {
    async fn init(
        &self,
        request: Request<init::InitRequest>,
    ) -> Result<Response<init::InitResponse>, Status> {
        let offered = request.into_inner().host_service_names;
        assert_eq!(offered, ["spire.hostservice.common.metrics.v1.Metrics"]);
        let names = match self.behaviour.as_str() {
            "other" => vec!["other.Service"],
            "unconfigurable" => vec![SERVICE],
            _ => vec![SERVICE, "spire.service.common.config.v1.Config", "one.More"],
        };
        Ok(Response::new(init::InitResponse {
            plugin_service_names: names.into_iter().map(str::to_owned).collect(),
        }))
    }

    async fn deinit(
        &self,
        _: Request<init::DeinitRequest>,
    ) -> Result<Response<init::DeinitResponse>, Status> {
        std::fs::write("deinitialised", "").unwrap();
        Ok(Response::new(init::DeinitResponse {}))
    }
}

struct Ends;

#[tonic::async_trait]
impl go::grpc_controller_server::GrpcController for Ends {
    async fn shutdown(&self, _: Request<go::Empty>) -> Result<Response<go::Empty>, Status> {
        std::process::exit(0);
    }
}

#[tonic::async_trait]
impl config::config_server::Config for &'static Fake {
    async fn configure(
        &self,
        request: Request<config::ConfigureRequest>,
    ) -> Result<Response<config::ConfigureResponse>, Status> {
        let request = request.into_inner();
        assert_eq!(
            request.core_configuration.unwrap().trust_domain,
            "example.org"
        );
        if request.hcl_configuration == "refused" {
            return Err(Status::invalid_argument("this is refused"));
        }
        *self.told.lock().unwrap() = request.hcl_configuration;
        Ok(Response::new(config::ConfigureResponse {}))
    }

    async fn validate(
        &self,
        request: Request<config::ValidateRequest>,
    ) -> Result<Response<config::ValidateResponse>, Status> {
        let valid = request.into_inner().hcl_configuration != "refused";
        let notes = if valid {
            vec![]
        } else {
            vec!["this is refused".to_owned()]
        };
        Ok(Response::new(config::ValidateResponse { valid, notes }))
    }
}

#[tonic::async_trait]
impl workload::workload_attestor_server::WorkloadAttestor for &'static Fake {
    /// By reference alone, as newer plugins may.
    async fn attest(
        &self,
        _: Request<workload::AttestRequest>,
    ) -> Result<Response<workload::AttestResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn attest_reference(
        &self,
        request: Request<workload::AttestReferenceRequest>,
    ) -> Result<Response<workload::AttestReferenceResponse>, Status> {
        let broker = request.metadata().get("spire-agent-broker-caller-id");
        let broker = broker.map(|id| format!("for {}", id.to_str().unwrap()));
        let reference = request.into_inner().reference.unwrap();
        if !reference
            .type_url
            .ends_with("spiffe.broker.WorkloadPIDReference")
        {
            return match reference.value.as_slice() {
                b"gone" => Err(Status::not_found("there is no such thing")),
                b"unknown" => Err(Status::unimplemented("not this kind")),
                value => Ok(Response::new(workload::AttestReferenceResponse {
                    selector_values: vec![
                        format!("{} {}", reference.type_url, value.escape_ascii()),
                        broker.unwrap(),
                    ],
                })),
            };
        }
        match self.behaviour.as_str() {
            "mortal" if is_first() => std::process::exit(3),
            "freezing" if is_first() => {
                let own = nix::unistd::Pid::this();
                nix::sys::signal::kill(own, nix::sys::signal::Signal::SIGSTOP).unwrap();
                // Another thread may be stopped before this one, which must not answer meanwhile.
                loop {
                    std::thread::park();
                }
            }
            _ => {}
        }
        Ok(Response::new(workload::AttestReferenceResponse {
            selector_values: [self.told.lock().unwrap().clone()]
                .into_iter()
                .chain(broker)
                .collect(),
        }))
    }
}
