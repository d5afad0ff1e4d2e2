//! What an engine says of a container (Docker Engine API, which Podman serves too).

use std::collections::BTreeMap;
use std::time::Duration;

use ah_spire_wire::http_client::{MAX_BYTES, exchange};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use serde::Deserialize;
use tokio::net::UnixStream;

use crate::AttestError;
use crate::workload::docker::sockets::EngineSocket;

/// The waits between attempts: an engine that restarts is there again within moments.
const WAITS: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
];

pub(super) struct Engine<'a> {
    pub(super) socket: EngineSocket,
    /// Of the API; empty for the engine's newest.
    pub(super) version: &'a str,
}

/// `ContainerInspectResponse`, with what is used of it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Container {
    id: String,
    /// The ID of the image that it was made of.
    image: String,
    config: Option<Config>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Config {
    labels: Option<BTreeMap<String, String>>,
    env: Option<Vec<String>>,
    /// The name of the image, as whoever made the container gave it.
    image: String,
}

/// `ImageInspect`, with what is used of it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Image {
    id: String,
    /// What registries call it: `registry/repository@sha256:…`
    repo_digests: Option<Vec<String>>,
}

/// What is told of a container.
pub(super) struct Described {
    /// Values of selectors.
    pub(super) values: Vec<String>,
    /// The name of the image, as whoever made the container gave it.
    pub(super) image: String,
    /// The image, as registries have it.
    pub(super) digests: Vec<String>,
}

/// Why there is no answer.
enum Fault {
    /// Nothing said so far is about the container: it may be tried again.
    Passing(String),
    Lasting(String),
}

impl Engine<'_> {
    /// The container `id`.
    pub(super) async fn describe(&self, id: &str) -> Result<Described, AttestError> {
        let container = self.container(id).await.map_err(|why| {
            let path = self.socket.path.display();
            AttestError::unavailable(
                format!("container {id}: {path}: {why}"),
                "let docker_socket_path (podman_socket_path, podman_socket_path_template) name the socket of the \
                 engine that runs the container, which the agent's user must be allowed to use",
            )
        })?;
        let image = self.image_of(&container).await;
        let config = container.config.unwrap_or_default();
        let labels = config.labels.unwrap_or_default();
        let mut values: Vec<String> = labels
            .iter()
            .map(|(key, value)| format!("label:{key}:{value}"))
            .collect();
        let variables = config.env.unwrap_or_default();
        values.extend(variables.iter().map(|variable| format!("env:{variable}")));
        if !config.image.is_empty() {
            values.push(format!("image_id:{}", config.image));
        }
        let mut digests = Vec::new();
        if let Some(image) = image {
            values.push(format!("image_config_digest:{}", image.id));
            digests = image.repo_digests.unwrap_or_default();
        }
        Ok(Described {
            values,
            image: config.image,
            digests,
        })
    }

    async fn container(&self, id: &str) -> Result<Container, String> {
        if !is_id(id) {
            return Err(format!("{id:?} is no ID of a container"));
        }
        let path = format!("/containers/{id}/json");
        let mut waits = WAITS.into_iter();
        let container: Container = loop {
            match self.get(&path).await {
                Ok(container) => break container,
                Err(Fault::Lasting(why)) => return Err(why),
                Err(Fault::Passing(why)) => match waits.next() {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => return Err(why),
                },
            }
        };
        // An engine also takes the start of an ID, and names that users give.
        if container.id.starts_with(id) || id.starts_with(&container.id) {
            return Ok(container);
        }
        Err(format!(
            "the answer is about the container {:?}",
            container.id
        ))
    }

    /// The image that `container` was made of. The image's name may be another image's by now.
    async fn image_of(&self, container: &Container) -> Option<Image> {
        let name = container.config.as_ref().map_or("", |config| &config.image);
        let named = self.image(name).await;
        let made_of = &container.image;
        let same = |image: &Image| made_of.is_empty() || image.id == *made_of;
        match named.filter(same) {
            Some(image) => Some(image),
            None => self.image(made_of).await,
        }
    }

    async fn image(&self, name: &str) -> Option<Image> {
        if !is_reference(name) {
            return None;
        }
        match self.get::<Image>(&format!("/images/{name}/json")).await {
            Ok(image) => Some(image).filter(|image| !image.id.is_empty()),
            Err(Fault::Lasting(error) | Fault::Passing(error)) => {
                tracing::debug!(image = name, error, "an image has no image_config_digest");
                None
            }
        }
    }

    async fn get<T: for<'a> Deserialize<'a>>(&self, path: &str) -> Result<T, Fault> {
        let version = match self.version {
            "" => String::new(),
            version => format!("/v{version}"),
        };
        let request = Request::get(format!("http://localhost{version}{path}"));
        let request = request.body(Bytes::new());
        let request = request.map_err(|error| Fault::Lasting(error.to_string()))?;
        let answer = self.ask(request).await.map_err(Fault::Passing)?;
        let status = answer.status();
        if status.is_success() {
            return serde_json::from_slice(answer.body()).map_err(|error| {
                Fault::Lasting(format!("the answer is not what was asked for: {error}"))
            });
        }
        let told = refusal(&answer);
        Err(
            if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
                Fault::Passing(told)
            } else {
                Fault::Lasting(told)
            },
        )
    }

    async fn ask(&self, request: Request<Bytes>) -> Result<Response<Bytes>, String> {
        let stream = UnixStream::connect(&self.socket.path).await;
        let stream = stream.map_err(|error| error.to_string())?;
        if let Some(owner) = self.socket.owner {
            let credentials = stream.peer_cred().map_err(|error| error.to_string())?;
            if credentials.uid() != owner {
                return Err(format!(
                    "it is user {}'s and not user {owner}'s",
                    credentials.uid()
                ));
            }
        }
        exchange(request, stream, MAX_BYTES).await
    }
}

/// What the engine says is wrong, in its words where it has some.
fn refusal(answer: &Response<Bytes>) -> String {
    #[derive(Deserialize)]
    struct Told {
        message: String,
    }

    let told = serde_json::from_slice::<Told>(answer.body());
    told.map_or_else(
        |_| format!("the answer is {}", answer.status()),
        |told| told.message,
    )
}

/// What goes into a path as it is: an ID, or a name that a pattern took for one.
fn is_id(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.bytes().all(fits)
}

/// What goes into a path as it is: `registry:5000/name:tag@sha256:…`.
fn is_reference(text: &str) -> bool {
    let is_name = |name: &str| is_id(&name.replace([':', '@', '+'], "x"));
    text.split('/').all(is_name)
}
