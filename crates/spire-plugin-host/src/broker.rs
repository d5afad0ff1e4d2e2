//! The plugin's way to the daemon's services: a socket, and the stream that tells where it is.

use std::io;
use std::path::Path;

use ah_spire_wire::{Channel, Limits, serve};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::Code;
use tonic::service::Routes;

use crate::packages::plugin::ConnInfo;
use crate::packages::plugin::grpc_broker_client::GrpcBrokerClient;

/// The number under which SPIRE's SDK asks for the host's services.
const HOST_SERVICES: u32 = 1;

/// Ends with its plugin.
pub(crate) struct Broker {
    _serving: AbortOnDropHandle<()>,
    _telling: AbortOnDropHandle<()>,
    /// The stream is open for as long as this is.
    _open: mpsc::Sender<ConnInfo>,
}

impl Broker {
    /// Serves `routes` on a socket in `folder`, which is open to this user alone, and tells the plugin of it.
    pub(crate) fn start(channel: &Channel, folder: &Path, routes: Routes) -> io::Result<Self> {
        let path = folder.join("host");
        let listener = UnixListener::bind(&path)?;
        let (open, stream) = mpsc::channel(1);
        let told = open.try_send(ConnInfo {
            service_id: HOST_SERVICES,
            network: "unix".to_owned(),
            address: path.to_string_lossy().into_owned(),
            knock: None,
        });
        told.map_err(io::Error::other)?;
        let mut client = GrpcBrokerClient::with_origin(channel.clone(), Channel::origin());
        let telling = async move {
            // The answer comes when the plugin has something to tell, or never.
            match client.start_stream(ReceiverStream::new(stream)).await {
                Ok(answer) => {
                    let mut answer = answer.into_inner();
                    while let Ok(Some(_)) = answer.message().await {}
                }
                Err(status) if status.code() == Code::Unimplemented => {
                    tracing::debug!("the plugin has no broker, and cannot call the host services");
                }
                // It has ended.
                Err(_) => {}
            }
        };
        Ok(Self {
            _serving: AbortOnDropHandle::new(tokio::spawn(accept(listener, routes))),
            _telling: AbortOnDropHandle::new(tokio::spawn(telling)),
            _open: open,
        })
    }
}

async fn accept(listener: UnixListener, routes: Routes) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            taken = listener.accept() => match taken {
                Ok((stream, _)) => {
                    let routes = routes.clone();
                    connections.spawn(async move {
                        let limits = Limits::default();
                        let served = serve(stream, routes, limits, std::future::pending());
                        if let Err(error) = served.await {
                            tracing::debug!(%error, "a plugin's connection to the host services broke");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a plugin cannot reach the host services");
                    return;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}
