//! The words for every way in which the Workload API gives no identity (ER-10, ER-11).

use std::io;
use std::path::Path;

use nix::unistd::{Group, User, getgid, getuid};

use super::Endpoint;
use super::set::Unusable;
use super::stream::{Fault, MAX_MESSAGE_BYTES};
use crate::{Code, Explained};

impl Fault {
    pub(super) fn explain(&self, endpoint: &Endpoint) -> Explained {
        match self {
            Self::Connect(kind, error) => not_reached(endpoint, *kind, error),
            Self::Denied(words) => no_identity()
                .cause(format!("the agent at {endpoint} says: {words}"))
                .cause(selectors())
                .hint(
                    "see that an entry matches these selectors (`spire-server entry show`) and that \
                     the agent is attested (`spire-server agent list`)",
                ),
            Self::Silent(waited) => {
                let why = format!("no answer within {waited:?}");
                failed(endpoint, &why).hint(HEALTH)
            }
            Self::Protocol(why) => failed(endpoint, "what listens there does not speak HTTP/2")
                .cause(why)
                .hint("give the socket of a Workload API, not an admin or server socket"),
            Self::Ended(why) => failed(endpoint, "the connection was lost")
                .cause(why)
                .hint(HEALTH),
            Self::Refused(why) => failed(endpoint, "the call was refused")
                .cause(why)
                .hint("give the socket of a Workload API, not an admin or server socket"),
            Self::TooLarge => failed(
                endpoint,
                &format!("a message of more than {} MiB", MAX_MESSAGE_BYTES >> 20),
            )
            .hint("see which federated bundles the entry brings along: `spire-server entry show`"),
        }
    }
}

impl Unusable {
    pub(super) fn explain(&self, endpoint: &Endpoint) -> Explained {
        let cause = self.to_string();
        match self {
            Self::NoSvid => no_identity()
                .cause(cause)
                .cause(selectors())
                .hint("see that an entry matches these selectors: `spire-server entry show`"),
            Self::NotIssued { .. } => no_identity().cause(cause).hint(
                "register an entry for it (`spire-server entry create`), or ask for one of those with --spiffe-id or --spiffe-hint",
            ),
            _ => Explained::new(
                Code::Other,
                format!("the Workload API at {endpoint} gave an identity that cannot be used"),
            )
            .cause(cause)
            .hint("this is a fault of the agent: look at its log and version"),
        }
    }
}

const HEALTH: &str =
    "see how the agent is: `spire-agent healthcheck -socketPath …` and its log tell";

/// ER-11
fn not_reached(endpoint: &Endpoint, kind: io::ErrorKind, error: &str) -> Explained {
    let tells = "`systemctl status spire-agent` tells";
    match kind {
        io::ErrorKind::NotFound => failed(endpoint, "no such file").hint(format!(
            "see that the SPIRE agent runs ({tells}), or name its socket with --spiffe-socket"
        )),
        io::ErrorKind::PermissionDenied => {
            let folder = match endpoint {
                Endpoint::Unix(path) => path.parent().unwrap_or(Path::new("/")),
                Endpoint::Tcp(_) => Path::new("/"),
            };
            failed(endpoint, "permission denied").hint(format!(
                "let the user of this process reach and write the socket: `ls -la {}`",
                folder.display()
            ))
        }
        io::ErrorKind::ConnectionRefused => failed(endpoint, "connection refused").hint(format!(
            "nobody listens there: see that the SPIRE agent runs ({tells})"
        )),
        _ => failed(endpoint, error).hint("name the agent's socket with --spiffe-socket"),
    }
}

fn failed(endpoint: &Endpoint, why: &str) -> Explained {
    Explained::new(
        Code::WorkloadApi,
        format!("failed to connect to Workload API: {endpoint}: {why}"),
    )
}

/// ER-10
fn no_identity() -> Explained {
    Explained::new(Code::NoIdentity, "no identity issued")
}

/// What an agent on this machine can see of this process, in the words of its unix attestor.
fn selectors() -> String {
    let (uid, gid) = (getuid(), getgid());
    let user = User::from_uid(uid).ok().flatten();
    let group = Group::from_gid(gid).ok().flatten();
    let path = std::env::current_exe().ok();
    let mut selectors = vec![format!("unix:uid:{uid}")];
    selectors.extend(user.map(|user| format!("unix:user:{}", user.name)));
    selectors.push(format!("unix:gid:{gid}"));
    selectors.extend(group.map(|group| format!("unix:group:{}", group.name)));
    selectors.extend(path.map(|path| format!("unix:path:{}", path.display())));
    format!(
        "this process is pid {}; an entry could select {}",
        std::process::id(),
        selectors.join(", ")
    )
}
