use ah_spire_attest::peer::PeerInfo;
use ah_spire_attest::workload::docker::{Docker, DockerConfig};
use ah_spire_attest::workload::{ProcRoot, WorkloadAttestor, attest};
use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use crate::cgroups::{FakeProc, Grouped, this_process, unique};
use crate::web::Site;

const ID: &str = "6469646e742065787065637420616e796f6e6520746f20726561642074686973";
const IMAGE: &str = "sha256:2c4fdb0c2b5a5e5b6f2a0c2ac3f3f5ad0a9f2b3ec3b8c7d5f1e0d9c8b7a69584";

/// An engine, and the attestor that asks it.
struct Rig {
    folder: TempDir,
    engine: Site,
    proc: FakeProc,
}

impl Rig {
    fn new(cgroup: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let engine = Site::on_socket(&folder.path().join("engine.sock"));
        Self {
            folder,
            engine,
            proc: FakeProc::with(cgroup),
        }
    }

    /// With a container in the unified hierarchy, whose engine knows it.
    fn with_container() -> Self {
        let rig = Self::new(&format!("0::/system.slice/docker-{ID}.scope\n"));
        rig.engine.answers(&inspect(ID), container(ID, &json!({})));
        rig
    }

    fn config(&self) -> DockerConfig {
        let socket = format!("unix://{}/engine.sock", self.folder.path().display());
        DockerConfig {
            docker_socket_path: socket,
            podman_socket_path: "unix:///nowhere/podman.sock".into(),
            ..Default::default()
        }
    }

    async fn values(&self) -> Result<Vec<String>, String> {
        self.values_with(&self.config()).await
    }

    async fn values_with(&self, config: &DockerConfig) -> Result<Vec<String>, String> {
        values(config, self.proc.root(), &this_process()).await
    }

    fn asked(&self) -> Vec<String> {
        let asked = self.engine.asked();
        asked.into_iter().map(|asked| asked.target).collect()
    }
}

async fn values(
    config: &DockerConfig,
    proc: ProcRoot,
    peer: &PeerInfo,
) -> Result<Vec<String>, String> {
    let docker = Docker::configure(config, proc)
        .await
        .map_err(|error| error.to_string())?;
    let selectors = docker.attest(peer).await;
    let selectors = selectors.map_err(|error| error.explained().report())?;
    assert!(selectors.iter().all(|selector| selector.kind == "docker"));
    Ok(selectors
        .into_iter()
        .map(|selector| selector.value)
        .collect())
}

fn inspect(id: &str) -> String {
    format!("/containers/{id}/json")
}

/// An answer as the Docker Engine gives it.
fn container(id: &str, labels: &Value) -> Value {
    json!({
        "Id": id,
        "Created": "2026-03-01T10:00:00.000000000Z",
        "Path": "/bin/server",
        "Args": [],
        "State": {"Status": "running", "Running": true, "Pid": 4711, "ExitCode": 0},
        "Image": IMAGE,
        "Name": "/brave_hopper",
        "HostConfig": {"NetworkMode": "default", "Binds": null},
        "Config": {
            "Hostname": "6469646e7420",
            "Env": ["PATH=/usr/bin", "TIER=prod"],
            "Cmd": ["/bin/server"],
            "Image": "registry.example:5000/team/server:1.2",
            "Volumes": null,
            "Labels": labels,
        },
        "NetworkSettings": {"Networks": {}},
    })
}

const NAMED: &str = "/images/registry.example:5000/team/server:1.2/json";

#[tokio::test]
async fn a_container_has_its_labels_its_environment_and_its_image() {
    for cgroup in [
        format!("0::/system.slice/docker-{ID}.scope\n"),
        format!(
            "12:pids:/docker/{ID}\n1:name=systemd:/docker/{ID}\n0::/system.slice/containerd.service\n"
        ),
    ] {
        let rig = Rig::new(&cgroup);
        let labels = json!({"com.example.name": "server", "empty": ""});
        rig.engine.answers(&inspect(ID), container(ID, &labels));
        rig.engine
            .answers(NAMED, json!({"Id": IMAGE, "RepoTags": [], "Size": 7}));
        let expected = [
            "label:com.example.name:server".to_owned(),
            "label:empty:".to_owned(),
            "env:PATH=/usr/bin".to_owned(),
            "env:TIER=prod".to_owned(),
            "image_id:registry.example:5000/team/server:1.2".to_owned(),
            format!("image_config_digest:{IMAGE}"),
        ];
        assert_eq!(rig.values().await.unwrap(), expected, "{cgroup}");
        assert_eq!(rig.asked(), [inspect(ID), NAMED.to_owned()]);
    }
}

#[tokio::test]
async fn a_process_in_no_container_has_no_selectors_and_nobody_is_asked() {
    let rig = Rig::new("12:pids:/\n0::/user.slice/user-1000.slice/session-3.scope\n");
    assert_eq!(rig.values().await, Ok(Vec::new()));
    assert!(rig.asked().is_empty());
}

// The kernel's own files, of both versions of control groups.
#[tokio::test]
async fn a_process_in_a_real_control_group_is_found() {
    let rig = Rig::new("");
    for kind in ["cgroup", "cgroup2"] {
        let id = format!("{:064x}", unique());
        let Some(grouped) = Grouped::in_group(kind, &format!("docker-{id}.scope")) else {
            continue;
        };
        rig.engine
            .answers(&inspect(&id), container(&id, &json!({"by": kind})));
        let found = values(&rig.config(), ProcRoot::own(), &grouped.peer()).await;
        assert!(found.unwrap().contains(&format!("label:by:{kind}")));
    }
}

#[tokio::test]
async fn podman_is_asked_at_its_own_sockets() {
    let uid = nix::unistd::getuid();
    for (cgroup, socket) in [
        (
            format!("0::/machine.slice/libpod-{ID}.scope/container\n"),
            "podman.sock".to_owned(),
        ),
        (
            format!(
                "0::/user.slice/user-{uid}.slice/user@{uid}.service/user.slice/libpod-{ID}.scope\n"
            ),
            format!("{uid}.sock"),
        ),
    ] {
        let rig = Rig::new(&cgroup);
        let folder = rig.folder.path();
        let podman = Site::on_socket(&folder.join(socket));
        podman.answers(&inspect(ID), container(ID, &json!({"of": "podman"})));
        let config = DockerConfig {
            podman_socket_path: format!("unix://{}/podman.sock", folder.display()),
            podman_socket_path_template: format!("unix://{}/%d.sock", folder.display()),
            ..rig.config()
        };
        let found = rig.values_with(&config).await.unwrap();
        assert!(found.contains(&"label:of:podman".to_owned()), "{found:?}");
        assert!(rig.asked().is_empty());
    }
}

#[tokio::test]
async fn a_users_podman_is_asked_by_leave_and_only_if_it_is_the_users() {
    let other = nix::unistd::getuid().as_raw() + 1;
    let rig = Rig::new(&format!(
        "0::/user.slice/user-{other}.slice/libpod-{ID}.scope\n"
    ));
    let error = rig.values().await.unwrap_err();
    assert!(error.contains("podman_socket_path_template"), "{error}");

    let folder = rig.folder.path();
    let podman = Site::on_socket(&folder.join(format!("{other}.sock")));
    let config = DockerConfig {
        podman_socket_path_template: format!("unix://{}/%d.sock", folder.display()),
        ..rig.config()
    };
    let error = rig.values_with(&config).await.unwrap_err();
    assert!(error.contains(&format!("not user {other}'s")), "{error}");
    assert!(podman.asked().is_empty());
}

#[tokio::test]
async fn patterns_say_where_ids_are() {
    let rig = Rig::new("0::/my.slice/group/short-id/payload\n");
    rig.engine.answers(
        &format!("/v1.44{}", inspect("short-id")),
        container("short-id", &json!({})),
    );
    let config = DockerConfig {
        container_id_cgroup_matchers: vec!["/docker/<id>".into(), "/my.slice/*/<id>/*".into()],
        use_new_container_locator: Some(false),
        docker_version: "1.44".into(),
        ..rig.config()
    };
    let found = rig.values_with(&config).await.unwrap();
    assert!(found.contains(&"env:TIER=prod".to_owned()), "{found:?}");

    let config = DockerConfig {
        use_new_container_locator: None,
        ..config
    };
    let error = rig.values_with(&config).await.unwrap_err();
    assert!(error.contains("cannot both be used"), "{error}");
}

// The name may be another image's by now.
#[tokio::test]
async fn the_digest_is_of_the_image_that_the_container_was_made_of() {
    let rig = Rig::with_container();
    rig.engine
        .answers(NAMED, json!({"Id": "sha256:of-another"}));
    let found = rig.values().await.unwrap();
    assert!(
        !found
            .iter()
            .any(|value| value.starts_with("image_config_digest"))
    );
    rig.engine
        .answers(&format!("/images/{IMAGE}/json"), json!({"Id": IMAGE}));
    let found = rig.values().await.unwrap();
    assert!(
        found.contains(&format!("image_config_digest:{IMAGE}")),
        "{found:?}"
    );
}

#[tokio::test]
async fn a_container_that_the_engine_does_not_know_is_told_at_once() {
    let rig = Rig::new(&format!("0::/docker/{ID}\n"));
    let told = json!({"message": format!("No such container: {ID}")}).to_string();
    let mut answer = Response::new(Bytes::from(told));
    *answer.status_mut() = StatusCode::NOT_FOUND;
    rig.engine.answers_with(&inspect(ID), answer);
    let error = rig.values().await.unwrap_err();
    assert!(error.contains("No such container"), "{error}");
    assert!(error.contains("docker_socket_path"), "{error}");
    assert_eq!(rig.asked().len(), 1);
}

#[tokio::test]
async fn an_engine_that_restarts_is_asked_again() {
    let rig = Rig::with_container();
    let mut answer = Response::new(Bytes::new());
    *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    rig.engine.answers_once(answer.clone());
    rig.engine.answers_once(answer);
    assert!(rig.values().await.is_ok());

    let socket = rig.folder.path().join("late.sock");
    let config = DockerConfig {
        docker_socket_path: format!("unix://{}", socket.display()),
        ..rig.config()
    };
    let error = rig.values_with(&config).await.unwrap_err();
    assert!(error.contains("late.sock"), "{error}");
}

#[tokio::test]
async fn an_answer_about_another_container_is_not_taken() {
    let rig = Rig::with_container();
    rig.engine
        .answers(&inspect(ID), container(&"ab".repeat(32), &json!({})));
    let error = rig.values().await.unwrap_err();
    assert!(
        error.contains("the answer is about the container"),
        "{error}"
    );
}

#[tokio::test]
async fn labels_are_whatever_they_are() {
    let rig = Rig::new(&format!("0::/docker/{ID}\n"));
    let hostile = json!({
        "a:b": "c:d\ne",
        "\u{0}": "\u{202e}",
        "": "",
        "long": "x".repeat(100_000),
    });
    rig.engine.answers(&inspect(ID), container(ID, &hostile));
    let found = rig.values().await.unwrap();
    for value in ["label:a:b:c:d\ne", "label:\u{0}:\u{202e}", "label::"] {
        assert!(found.contains(&value.to_owned()), "{value:?}");
    }
    // A container that was made with nothing.
    for bare in [
        json!({"Id": ID}),
        json!({"Config": {"Labels": null, "Env": null}}),
    ] {
        rig.engine.answers(&inspect(ID), bare);
        assert_eq!(rig.values().await, Ok(Vec::new()));
    }
}

#[tokio::test]
async fn answers_that_are_too_large_cut_off_or_no_answers_are_refused() {
    let rig = Rig::with_container();
    let huge = json!({"Id": ID, "Config": {"Labels": {"x": "y".repeat(5 << 20)}}});
    for (answer, why) in [
        (huge.to_string(), "length limit exceeded"),
        ("{".to_owned(), "not what was asked for"),
        ("[".repeat(100_000), "not what was asked for"),
        (
            json!({"Config": {"Labels": {"a": 7}}}).to_string(),
            "not what was asked for",
        ),
        (String::new(), "not what was asked for"),
    ] {
        rig.engine.answers(&inspect(ID), answer);
        let error = rig.values().await.unwrap_err();
        assert!(error.contains(why), "{why}: {error}");
    }
}

/// An engine that reads a request, says `told` to it, and hangs up; or does not, without anything to say.
fn raw(rig: &Rig, told: &'static [u8]) -> DockerConfig {
    let socket = rig.folder.path().join("raw.sock");
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(told).await;
                if told.is_empty() {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    DockerConfig {
        docker_socket_path: format!("unix://{}", socket.display()),
        ..rig.config()
    }
}

#[tokio::test]
async fn a_broken_connection_is_an_error() {
    let rig = Rig::with_container();
    for told in [
        &b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"Id\""[..],
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffffff\r\n",
        b"SSH-2.0-x\r\n",
        b"\n",
    ] {
        let config = raw(&rig, told);
        let error = rig.values_with(&config).await.unwrap_err();
        assert!(error.contains("raw.sock"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_never_answers_is_given_up() {
    let rig = Rig::with_container();
    let docker = Docker::configure(&raw(&rig, b""), rig.proc.root())
        .await
        .unwrap();
    let error = attest(&[docker], &this_process()).await.unwrap_err();
    let report = error.explained().report();
    assert!(
        report.contains("workloadattestor(docker): no answer within 10s"),
        "{report}"
    );
}

#[tokio::test]
async fn settings_that_cannot_be_used_are_named() {
    for (config, why) in [
        (
            DockerConfig {
                docker_socket_path: "tcp://127.0.0.1:2375".into(),
                ..Default::default()
            },
            "docker_socket_path: \"tcp://127.0.0.1:2375\" is no unix socket",
        ),
        (
            DockerConfig {
                podman_socket_path: "/run/podman.sock".into(),
                ..Default::default()
            },
            "podman_socket_path: \"/run/podman.sock\" is no unix socket",
        ),
        (
            DockerConfig {
                docker_version: "1.44/../x".into(),
                ..Default::default()
            },
            "docker_version",
        ),
    ] {
        let error = Docker::configure(&config, ProcRoot::own())
            .await
            .err()
            .unwrap();
        assert!(error.to_string().contains(why), "{error}");
        assert!(error.explained().hint.is_some());
    }
}
