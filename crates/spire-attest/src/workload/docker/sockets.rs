//! Which engine knows a container.

use std::path::PathBuf;

use crate::AttestError;
use crate::workload::docker::{DockerConfig, socket_path};

const DOCKER: &str = "unix:///var/run/docker.sock";
const PODMAN: &str = "unix:///run/podman/podman.sock";

#[derive(Debug)]
pub(super) struct Sockets {
    docker: PathBuf,
    podman: PathBuf,
    /// What stands before and after a user's id.
    users: Option<(String, String)>,
}

/// An engine's socket.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct EngineSocket {
    pub(super) path: PathBuf,
    /// As whom the engine has to run.
    pub(super) owner: Option<u32>,
}

impl Sockets {
    pub(super) fn new(config: &DockerConfig) -> Result<Self, AttestError> {
        let or = |text: &str, default: &str| match text {
            "" => default.to_owned(),
            text => text.to_owned(),
        };
        let template = &config.podman_socket_path_template;
        let users = match template.as_str() {
            "" => None,
            template => Some(split(template).map_err(|why| {
                AttestError::invalid(
                    format!("invalid podman_socket_path_template: {why}"),
                    "write it as in \"unix:///run/user/%d/podman/podman.sock\"",
                )
            })?),
        };
        if let Some((before, after)) = &users {
            socket_path("podman_socket_path_template", &format!("{before}0{after}"))?;
        }
        let docker = or(&config.docker_socket_path, DOCKER);
        let podman = or(&config.podman_socket_path, PODMAN);
        Ok(Self {
            docker: socket_path("docker_socket_path", &docker)?,
            podman: socket_path("podman_socket_path", &podman)?,
            users,
        })
    }

    /// The socket of the engine that made the control groups `paths`: Podman calls its own `libpod`, and a user's are
    /// in the user's slice.
    pub(super) fn of(&self, paths: &[String]) -> Result<EngineSocket, AttestError> {
        let of_podman = |path: &&String| path.contains("libpod-") || path.contains("/libpod/");
        let Some(path) = paths.iter().find(of_podman) else {
            return Ok(EngineSocket {
                path: self.docker.clone(),
                owner: None,
            });
        };
        let Some(uid) = user_of(path) else {
            return Ok(EngineSocket {
                path: self.podman.clone(),
                owner: None,
            });
        };
        let Some((before, after)) = &self.users else {
            return Err(AttestError::refused(
                format!(
                    "the workload is in a container of user {uid}'s own Podman, which is not asked"
                ),
                "a user's Podman may say what it likes of its containers; if users are to be believed, set \
                 podman_socket_path_template = \"unix:///run/user/%d/podman/podman.sock\"",
            ));
        };
        Ok(EngineSocket {
            path: socket_path(
                "podman_socket_path_template",
                &format!("{before}{uid}{after}"),
            )?,
            owner: Some(uid),
        })
    }
}

/// The user whose slice (`/user-<uid>.slice/`) `path` is in.
fn user_of(path: &str) -> Option<u32> {
    let (folders, _) = path.rsplit_once('/')?;
    let uid = |name: &str| {
        let digits = name.strip_prefix("user-")?.strip_suffix(".slice")?;
        digits.parse().ok()
    };
    folders.split('/').skip(1).find_map(uid)
}

/// The template's text before and after `%d`, with `%` for `%%`.
fn split(template: &str) -> Result<(String, String), &'static str> {
    let mut parts = vec![String::new()];
    let mut characters = template.chars();
    while let Some(character) = characters.next() {
        let text = match character {
            '%' => match characters.next() {
                Some('%') => '%',
                Some('d') => {
                    parts.push(String::new());
                    continue;
                }
                Some(_) => {
                    return Err("template only supports escaped %% or the %d UID placeholder");
                }
                None => return Err("trailing % at end of template"),
            },
            other => other,
        };
        if let Some(part) = parts.last_mut() {
            part.push(text);
        }
    }
    match <[String; 2]>::try_from(parts) {
        Ok([before, after]) => Ok((before, after)),
        Err(_) => Err("template must contain exactly one %d UID placeholder"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets(template: &str) -> Result<Sockets, String> {
        let config = DockerConfig {
            podman_socket_path_template: template.into(),
            ..Default::default()
        };
        Sockets::new(&config).map_err(|error| error.to_string())
    }

    fn of(sockets: &Sockets, path: &str) -> Result<(String, Option<u32>), String> {
        let socket = sockets.of(&["/".to_owned(), path.to_owned()]);
        let socket = socket.map_err(|error| error.to_string())?;
        Ok((socket.path.display().to_string(), socket.owner))
    }

    #[test]
    fn the_names_of_the_control_groups_say_whose_engine_it_is() {
        let sockets = sockets("unix:///run/%%/%d/podman.sock").unwrap();
        let docker = ("/var/run/docker.sock".to_owned(), None);
        let podman = ("/run/podman/podman.sock".to_owned(), None);
        let user = |uid| (format!("/run/%/{uid}/podman.sock"), Some(uid));
        for (path, expected) in [
            ("/docker/1", &docker),
            ("/user.slice/user-1000.slice/docker-1.scope", &docker),
            ("/machine.slice/libpod-1.scope", &podman),
            ("/libpod/1", &podman),
            (
                "/user.slice/user-1000.slice/user@1000.service/libpod-1.scope",
                &user(1000),
            ),
            // The outermost slice is the one that the system made.
            (
                "/user.slice/user-1000.slice/user-0.slice/libpod-1.scope",
                &user(1000),
            ),
            ("/user.slice/user-99999999999.slice/libpod-1.scope", &podman),
            ("/user.slice/user-.slice/libpod-1.scope", &podman),
        ] {
            assert_eq!(of(&sockets, path).as_ref(), Ok(expected), "{path}");
        }
    }

    #[test]
    fn a_users_podman_is_asked_only_where_the_template_says_so() {
        let sockets = sockets("").unwrap();
        let error = of(&sockets, "/user-1000.slice/libpod-1.scope").unwrap_err();
        assert!(error.contains("user 1000's own Podman"), "{error}");
    }

    #[test]
    fn a_template_has_one_place_for_the_user() {
        for (template, why) in [
            ("unix:///run/podman.sock", "exactly one %d"),
            ("unix:///run/%d/%d", "exactly one %d"),
            ("unix:///run/%s", "only supports escaped %%"),
            ("unix:///run/%d%", "trailing %"),
            ("/run/%d", "is no unix socket"),
        ] {
            let error = sockets(template).unwrap_err();
            assert!(error.contains(why), "{template}: {error}");
        }
    }
}
