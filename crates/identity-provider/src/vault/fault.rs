//! Why Vault gave nothing that can be used, by what to do next, and how a person is told.

use std::time::Duration;

use super::config::VaultAddress;
use crate::{Code, Explained, ProviderError};

/// What one server did with one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// No connection, in words.
    Unreachable(String),
    /// Connected, and no whole reply came, in words.
    NoReply(String),
    /// 503 and sealed.
    Sealed,
    /// It cannot answer now: a standby, a limit of its own, a failure inside (VA-13).
    Busy {
        status: u16,
        said: Vec<String>,
        /// What it asks for.
        wait: Option<Duration>,
    },
    /// It answered no, and will again.
    Refused(Refusal),
    /// Our own files or its answer make no sense; a person has to look.
    Setup(Explained),
}

/// A 4xx with Vault's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) said: Vec<String>,
}

impl Refusal {
    /// Whether it is about the token and what it may do.
    pub(super) fn forbidden(&self) -> bool {
        self.status == 403
    }

    /// Vault's words on one line.
    pub(super) fn words(&self) -> String {
        if self.said.is_empty() {
            format!("HTTP {}", self.status)
        } else {
            self.said.join("; ")
        }
    }
}

impl Fault {
    /// VA-13: whether another attempt may do better.
    pub(super) fn passes(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::NoReply(_) | Self::Sealed | Self::Busy { .. } => true,
            Self::Refused(_) | Self::Setup(_) => false,
        }
    }

    /// Of the faults of several servers the highest is told first: one that answered knows more.
    fn rank(&self) -> u8 {
        match self {
            Self::Refused(_) | Self::Setup(_) => 4,
            Self::Sealed => 3,
            Self::Busy { .. } => 2,
            Self::NoReply(_) => 1,
            Self::Unreachable(_) => 0,
        }
    }

    fn brief(&self) -> String {
        match self {
            Self::Unreachable(why) | Self::NoReply(why) => why.clone(),
            Self::Sealed => "vault is sealed".to_owned(),
            Self::Busy { status, said, .. } => busy_words(*status, said),
            Self::Refused(refusal) => refusal.words(),
            Self::Setup(explained) => explained.text.clone(),
        }
    }
}

/// A request that failed at every server it was sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// Where and why, in the order tried.
    pub(super) at: Vec<(VaultAddress, Fault)>,
}

impl Failure {
    pub(super) fn one(address: &VaultAddress, fault: Fault) -> Self {
        Self {
            at: vec![(address.clone(), fault)],
        }
    }

    /// What weighs most.
    fn main(&self) -> Option<&(VaultAddress, Fault)> {
        self.at.iter().rev().max_by_key(|(_, fault)| fault.rank())
    }

    pub(super) fn refusal(&self) -> Option<&Refusal> {
        match self.main() {
            Some((_, Fault::Refused(refusal))) => Some(refusal),
            _ => None,
        }
    }

    pub(super) fn passes(&self) -> bool {
        self.main().is_none_or(|(_, fault)| fault.passes())
    }

    /// Whether a request may have been carried out though no answer came.
    pub(super) fn ambiguous(&self) -> bool {
        let lost = |(_, fault): &(VaultAddress, Fault)| {
            matches!(fault, Fault::NoReply(_) | Fault::Busy { .. })
        };
        self.at.iter().any(lost)
    }

    /// The longest wait that a server asked for.
    pub(super) fn asked_wait(&self) -> Option<Duration> {
        let waits = self.at.iter().filter_map(|(_, fault)| match fault {
            Fault::Busy { wait, .. } => *wait,
            _ => None,
        });
        waits.max()
    }

    /// ER-15, ER-18 or ER-24. A refusal is told by who asked; this is what is said when nobody does.
    pub(super) fn explained(&self) -> Explained {
        let Some(main) = self.main() else {
            return Explained::new(Code::Other, "vault was not asked");
        };
        let (address, fault) = main;
        let mut explained = match fault {
            Fault::Unreachable(why) => Explained::new(
                Code::VaultUnreachable,
                format!("failed to connect to vault: {why}"),
            )
            .cause(format!("the address is {address}"))
            .hint(hint_for_connection(why)),
            Fault::NoReply(why) => Explained::new(Code::VaultUnreachable, format!("vault gave no answer: {why}"))
                .cause(format!("the address is {address}"))
                .hint(if why.contains("client certificate") { hint_for_connection(why) } else { "look at Vault's own log, and at any proxy or load balancer between" }),
            Fault::Sealed => Explained::new(Code::VaultSealed, "vault is sealed")
                .cause(format!("the address is {address}"))
                .hint("unseal it: `vault operator unseal` on each server, then `vault status`; until then the last certificate is used"),
            Fault::Busy { status, said, .. } => {
                Explained::new(Code::Unavailable, format!("vault cannot answer now: {}", busy_words(*status, said)))
                    .cause(format!("the address is {address}"))
                    .hint("look at `vault status` and at Vault's own log; this is tried again by itself")
            }
            Fault::Refused(refusal) => {
                Explained::new(Code::Other, format!("vault refused: {}", refusal.words()))
                    .cause(format!("the address is {address}"))
                    .hint("check --vault-addr: its scheme (https:// or http://), its port, and that a Vault or OpenBao server is there")
            }
            Fault::Setup(explained) => explained.clone(),
        };
        for (other, fault) in self.at.iter().filter(|tried| *tried != main) {
            explained = explained.cause(format!("{other}: {}", fault.brief()));
        }
        explained
    }

    /// For the supervisor: what passes by itself is asked again, for the rest somebody is needed.
    pub(super) fn into_error(self) -> ProviderError {
        let explained = self.explained();
        if self.passes() {
            ProviderError::Retry(explained)
        } else {
            ProviderError::Operator(explained)
        }
    }
}

fn hint_for_connection(why: &str) -> &'static str {
    if why.contains("client certificate") {
        "name a certificate that Vault, or the load balancer before it, accepts, and its key: --vault-client-cert, --vault-client-key"
    } else if why.contains("certificate") {
        "check Vault's own TLS certificate; name its authority with --vault-ca (VAULT_CACERT), and the host as the certificate does in --vault-addr"
    } else {
        "check --vault-addr (VAULT_ADDR) and its port, network and firewall, and that Vault runs and is unsealed: `vault status`"
    }
}

fn busy_words(status: u16, said: &[String]) -> String {
    let name = match status {
        412 => "it has not caught up with its leader",
        429 => "too many requests, or a standby",
        472 => "a disaster recovery standby",
        473 => "a performance standby",
        500 => "internal error",
        502 | 504 => "its gateway got no answer",
        503 => "service unavailable",
        _ => "server error",
    };
    if said.is_empty() {
        format!("{name} (HTTP {status})")
    } else {
        format!("{name} (HTTP {status}): {}", said.join("; "))
    }
}

/// ER-13
pub(super) fn login_refused(why: &str) -> Explained {
    Explained::new(
        Code::VaultAuthFailed,
        format!("vault authentication failed: {why}"),
    )
}

/// ER-16
pub(super) fn path_denied(path: &str, namespace: Option<&str>) -> Explained {
    let explained = Explained::new(
        Code::VaultPathDenied,
        format!("permission denied for path {path}"),
    );
    let explained = match namespace {
        Some(namespace) => explained.cause(format!("the namespace is {namespace}")),
        None => explained,
    };
    explained.hint(format!(
        "the token's policy has to allow create and update on {path}: check the policies with `vault token lookup`, the path, \
         and with Vault Enterprise the namespace (--vault-namespace)"
    ))
}

/// ER-14, and ER-17 where that is meant.
pub(super) fn not_issued(refusal: &Refusal, role: &str, names: &str) -> Explained {
    // Vault prints several errors of its own as one text with tabs and line breaks.
    let said: Vec<String> = refusal
        .said
        .iter()
        .map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    let counted = |text: &String| {
        text.starts_with(|c: char| c.is_ascii_digit()) && text.contains("occurred: *")
    };
    let text = match said.as_slice() {
        [] => format!("HTTP {}", refusal.status),
        [one] if counted(one) => one.clone(),
        [one] => format!("1 error occurred: * {one}"),
        many => format!("{} errors occurred: * {}", many.len(), many.join(" * ")),
    };
    let explained = Explained::new(
        Code::NotIssued,
        format!("failed to issue certificate: {text}"),
    );
    // The API has no code for these: its words are all there is.
    let all = said.join(" ");
    let name_refused = all.contains("not allowed by this role");
    let explained = if name_refused && all.contains("common name") {
        explained.cause("common name not in allowed domains")
    } else if name_refused || all.contains("Alternative Name") {
        explained.cause("a SAN is outside what the role allows")
    } else {
        explained
    };
    let explained = explained.cause(format!("asked for {names}"));
    if all.contains("unknown role") {
        explained.hint(format!(
            "there is no role {role} in this mount: check --vault-pki-path, or `vault write` the role"
        ))
    } else {
        explained.hint(format!(
            "the role {role} decides: allowed_domains with allow_subdomains or allow_bare_domains for the common name and DNS names, \
             allowed_uri_sans for URIs; change the role, or --vault-cert-cn and --vault-cert-san-*"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(said: &[&str]) -> Refusal {
        Refusal {
            status: 400,
            said: said.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    // ER-14, ER-17: as OpenBao and as Vault write it.
    #[test]
    fn er_14_reads_the_same_from_either_server() {
        for said in [
            "common name a.example.com not allowed by this role",
            "1 error occurred:\n\t* common name a.example.com not allowed by this role\n\n",
        ] {
            let told = not_issued(&refusal(&[said]), "executor", "common name a.example.com");
            assert_eq!(
                told.text,
                "failed to issue certificate: 1 error occurred: * common name a.example.com not allowed by this role"
            );
            assert_eq!(
                told.causes.first().map(String::as_str),
                Some("common name not in allowed domains")
            );
        }
        let told = not_issued(&refusal(&["one", "two"]), "executor", "nothing");
        assert!(told.text.ends_with(": 2 errors occurred: * one * two"));
    }

    // ER-15, ER-18: of several servers, the one that answered is told first, the others as causes.
    #[test]
    fn er_15_the_server_that_answered_is_told_first() {
        let address = |text: &str| text.parse::<VaultAddress>().unwrap();
        let refused = Fault::Unreachable("connection refused".to_owned());
        let failure = Failure {
            at: vec![
                (address("http://127.0.0.1:1"), refused.clone()),
                (address("http://127.0.0.1:2"), Fault::Sealed),
            ],
        };
        let told = failure.explained();
        assert_eq!(told.text, "vault is sealed");
        assert!(
            told.causes
                .iter()
                .any(|cause| cause == "http://127.0.0.1:1: connection refused")
        );
        let alone = Failure::one(&address("http://127.0.0.1:1"), refused);
        assert_eq!(
            alone.explained().text,
            "failed to connect to vault: connection refused"
        );
    }
}
