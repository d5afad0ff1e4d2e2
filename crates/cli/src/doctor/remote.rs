//! One access point: name, port, TLS, its certificate, and what it says to ours.

use std::sync::Arc;
use std::time::SystemTime;

use ah_fleet::executor::{Probe, Remote, probe};
use ah_identity_provider::{
    CertificateFacts, Clock, Code, Explained, IdentityWatch, Published, SystemClock,
};
use ah_tls::{ClientConfigs, Concern, Expect, Trace, reach};

use super::clock::{At, moment, when_valid};
use super::own::form;
use super::report::{Check, Report};
use crate::settings::EnrollSettings;

/// What is known of an access point.
pub(super) struct Visit {
    remote: Remote,
    /// `host:port`, as it was given.
    pub(super) shown: String,
    /// The look at it by our clock.
    first: Probe,
    /// Whether there was an identity to shake hands with.
    with_identity: bool,
    /// A second look at a moment when all certificates are valid, where dates spoiled the first.
    pub(super) then: Option<Probe>,
}

impl Visit {
    pub(super) async fn of(
        remote: Remote,
        settings: &EnrollSettings,
        own: Option<&Arc<Published>>,
    ) -> Self {
        let shown = remote.to_string();
        let within = settings.connect_timeout;
        let Some(own) = own else {
            let mut trace = Trace::default();
            let reached = reach(&remote.host, remote.port, within, &mut trace).await;
            return Self {
                remote,
                shown,
                first: Probe {
                    trace,
                    server: None,
                    clock_skew: None,
                    outcome: reached,
                },
                with_identity: false,
                then: None,
            };
        };
        let first = knock(&remote, settings, own, Arc::new(SystemClock)).await;
        let refused = first.trace.refused.as_ref();
        let outdated = refused.filter(|refused| refused.concern() == Concern::Dates);
        let facts = outdated.and_then(|refused| refused.certificate());
        let now = SystemTime::now();
        // By now, when it is a certificate above the leaf that is not valid: there is nothing else to see.
        let then = facts
            .and_then(|server| when_valid(now, &[server, own.identity.leaf()]))
            .filter(|then| *then != now);
        let then = match then {
            Some(then) => Some(knock(&remote, settings, own, Arc::new(At(then))).await),
            None => None,
        };
        Self {
            remote,
            shown,
            first,
            with_identity: true,
            then,
        }
    }

    /// The access point's clock less ours, in seconds, where it told.
    pub(super) fn skew(&self) -> Option<i64> {
        self.first
            .clock_skew
            .or(self.then.as_ref().and_then(|probe| probe.clock_skew))
    }

    /// Its certificate, where the handshake came to that.
    pub(super) fn server_leaf(&self) -> Option<&CertificateFacts> {
        let first = Some(&self.first).filter(|first| first.server.is_some());
        let probe = first.or(self.then.as_ref())?;
        probe.server.as_ref().map(|server| server.leaf())
    }

    /// Whether its certificate is not valid by our clock, and would be at `now`.
    pub(super) fn is_valid_only_at(&self, now: SystemTime) -> bool {
        self.outdated()
            .is_some_and(|server| (server.not_before..=server.not_after).contains(&now))
    }

    /// Whether it says that our certificate is not valid now.
    pub(super) fn says_we_are_outdated(&self) -> bool {
        self.refused_us() == Some(Code::ClientExpired)
    }

    fn outdated(&self) -> Option<&CertificateFacts> {
        let refused = self.first.trace.refused.as_ref()?;
        (refused.concern() == Concern::Dates).then(|| refused.certificate())?
    }

    fn refused_us(&self) -> Option<Code> {
        self.first.server.as_ref()?;
        self.first
            .outcome
            .as_ref()
            .err()
            .map(|explained| explained.code)
    }

    /// Name, port and handshake.
    pub(super) fn report_way(&self, report: &mut Report) {
        let Probe { trace, outcome, .. } = &self.first;
        let Remote { host, port } = &self.remote;
        let error = outcome.as_ref().err();
        let mut add = |check| report.add_of(&self.shown, check);
        let addresses: Vec<String> = trace.addresses.iter().map(|a| a.ip().to_string()).collect();
        match error {
            Some(explained) if addresses.is_empty() => {
                add(Check::fail("dns", explained).fix(format!("getent hosts {host}; dig {host}")));
                add(Check::skip("tcp", "dns failed"));
                return add(Check::skip("tls", "dns failed"));
            }
            _ => add(Check::pass(
                "dns",
                format!("{host} is {}", addresses.join(", ")),
            )),
        }
        match (error, trace.remote) {
            (Some(explained), None) => {
                let fix = match explained.code {
                    Code::ConnectionRefused => format!(
                        "on the access point: systemctl start ah-access-point; ss -tlnp | grep {port}"
                    ),
                    _ => format!(
                        "nc -zv {host} {port}; traceroute {host}; on the access point: sudo iptables -L -n | grep {port}"
                    ),
                };
                add(Check::fail("tcp", explained).fix(fix));
                return add(Check::skip("tls", "tcp failed"));
            }
            (_, remote) => add(Check::pass(
                "tcp",
                match remote {
                    Some(remote) => format!("{remote} accepts connections"),
                    None => "accepts connections".to_owned(),
                },
            )),
        }
        if !self.with_identity {
            return add(Check::skip("tls", "there is no identity"));
        }
        match error {
            Some(explained) if self.first.server.is_none() && trace.refused.is_none() => {
                let fix = format!(
                    "openssl s_client -connect {host}:{port} -alpn h2 </dev/null; check host and port (4433 by default)"
                );
                add(Check::fail("tls", explained).fix(fix));
            }
            _ => add(Check::pass("tls", "speaks TLS 1.3")),
        }
    }

    /// Its certificate, and its say about ours.
    pub(super) fn report_trust(
        &self,
        wrong_clock: bool,
        own: Option<&Arc<Published>>,
        report: &mut Report,
    ) {
        let mut add = |check| report.add_of(&self.shown, check);
        let first = &self.first;
        if !self.with_identity {
            return skip_all(SERVER.iter().chain(US), "there is no identity", add);
        }
        // What dates spoiled is looked at as it would be without.
        let spoiled = first
            .trace
            .refused
            .as_ref()
            .filter(|refused| refused.concern() == Concern::Dates);
        if let Some(refused) = spoiled {
            add(if wrong_clock {
                Check::skip("server-dates", "the clock is wrong")
            } else {
                Check::fail("server-dates", refused.explained())
                    .fix(format!("on the access point: renew its certificate, then openssl s_client -connect {} </dev/null | openssl x509 -noout -dates", self.shown))
            });
        }
        let probe = match (&self.then, spoiled) {
            (Some(then), _) => then,
            (None, None) => first,
            (None, Some(_)) => {
                return skip_all(
                    SERVER
                        .iter()
                        .chain(US)
                        .filter(|name| **name != "server-dates"),
                    "server-dates failed",
                    add,
                );
            }
        };
        if let Some(refused) = &probe.trace.refused {
            let name = match refused.concern() {
                Concern::Chain => "server-chain",
                Concern::Dates => "server-dates",
                Concern::Name | Concern::Policy => "server-name",
                Concern::Svid | Concern::Form => "server-form",
            };
            let place = SERVER
                .iter()
                .position(|step| *step == name)
                .unwrap_or_default();
            for step in SERVER
                .iter()
                .take(place)
                .filter(|step| spoiled.is_none() || **step != "server-dates")
            {
                add(Check::pass(step, "no fault found"));
            }
            add(Check::fail(name, refused.explained())
                .fix(self.server_fix(refused.concern(), refused.explained())));
            let rest = SERVER.iter().skip(place + 1).chain(US);
            return skip_all(rest, &format!("{name} failed"), add);
        }
        let Some(server) = &probe.server else {
            let steps = SERVER
                .iter()
                .chain(US)
                .filter(|step| spoiled.is_none() || **step != "server-dates");
            return skip_all(steps, "there was no handshake", add);
        };
        let leaf = server.leaf();
        add(Check::pass(
            "server-chain",
            format!("leads to a root that we trust; issued by `{}`", leaf.issuer),
        ));
        if spoiled.is_none() {
            add(Check::pass(
                "server-dates",
                format!(
                    "valid from {} to {}",
                    moment(leaf.not_before),
                    moment(leaf.not_after)
                ),
            ));
        }
        add(form("server-form", server.issuer_faults()));
        add(Check::pass(
            "server-name",
            format!("it is {}: {}", server.name(), leaf.sans().join(", ")),
        ));
        self.report_us(&probe.outcome, own, add);
    }

    /// What it says to our certificate.
    fn report_us(
        &self,
        outcome: &Result<(), Explained>,
        own: Option<&Arc<Published>>,
        mut add: impl FnMut(Check),
    ) {
        let Err(explained) = outcome else {
            add(Check::pass("client-certificate", "accepted"));
            add(Check::pass(
                "san-rules",
                "a rule admits our certificate, or there is none",
            ));
            add(Check::pass("revocation", "not revoked"));
            return add(Check::pass(
                "access-point",
                "answers as an access point does",
            ));
        };
        let id = own
            .map(|own| own.identity.leaf().sans())
            .unwrap_or_default();
        let id = id
            .first()
            .and_then(|san| san.split_once(':'))
            .map_or("", |(_, id)| id);
        let name = match explained.code {
            Code::SanMismatch => "san-rules",
            Code::ClientRevoked => "revocation",
            Code::ClientCertificateRequired
            | Code::ClientUnknownAuthority
            | Code::ClientExpired
            | Code::VerifyFailed => "client-certificate",
            _ => "access-point",
        };
        if name == "access-point" {
            // Whether our certificate was looked at is not known: whoever answers is none of ours.
            skip_all(US.iter().take(3), "no access point answered", &mut add);
            return add(Check::fail(name, explained));
        }
        let place = US.iter().position(|step| *step == name).unwrap_or_default();
        for step in US.iter().take(place) {
            add(Check::pass(step, "no fault found"));
        }
        let check = Check::fail(name, explained);
        add(match name {
            "san-rules" | "client-certificate" => {
                let fix = explained.hint.clone().unwrap_or_default();
                check.fix(format!(
                    "{fix}; on the access point `ah agent fleet why {id}` shows its side"
                ))
            }
            _ => check.fix(format!(
                "on the access point: ah agent fleet show {id}; ah agent fleet reinstate {id}"
            )),
        });
        skip_all(US.iter().skip(place + 1), &format!("{name} failed"), add);
    }

    fn server_fix(&self, concern: Concern, explained: &Explained) -> String {
        let show = format!(
            "openssl s_client -connect {} -showcerts </dev/null",
            self.shown
        );
        let hint = explained.hint.clone().unwrap_or_default();
        match concern {
            Concern::Chain => format!("{show}; {hint}"),
            Concern::Name => format!("{show} | openssl x509 -noout -ext subjectAltName; {hint}"),
            _ => hint,
        }
    }
}

/// In the order in which the certificate of the access point is judged.
const SERVER: &[&str] = &["server-chain", "server-dates", "server-form", "server-name"];
/// In the order in which an access point judges us.
const US: &[&str] = &[
    "client-certificate",
    "san-rules",
    "revocation",
    "access-point",
];

fn skip_all<'a>(
    names: impl Iterator<Item = &'a &'static str>,
    because: &str,
    mut add: impl FnMut(Check),
) {
    for name in names {
        add(Check::skip(name, because));
    }
}

async fn knock(
    remote: &Remote,
    settings: &EnrollSettings,
    own: &Arc<Published>,
    clock: Arc<dyn Clock>,
) -> Probe {
    let expect = Expect::new(
        settings.expected_server_id.clone(),
        own.provider,
        &own.identity,
    );
    let (_sender, identity) = IdentityWatch::starting_at(Published::clone(own));
    match ClientConfigs::publish(identity, expect, false, clock) {
        Ok((configs, _follow)) => probe(remote, &configs, settings.connect_timeout).await,
        Err(explained) => Probe {
            trace: Trace::default(),
            server: None,
            clock_skew: None,
            outcome: Err(explained),
        },
    }
}
