use std::time::{Duration, SystemTime};

use ah_identity_provider::{Backoff, CertificateFacts, Code, Explained};
use ah_spire_attest::node::AgentHalf;
use ah_spire_plugin::agent::{Bootstrap, RebootstrapMode};

use super::{Agent, wait_or_jump};
use crate::attest::{AttestFault, Attested, attest, with_lost_answer};
use crate::bootstrap::{Asking, first_roots};
use crate::data::REBOOTSTRAP;
use crate::health::one_line;
use crate::keys::{KeyKind, NodeKey, PrivateKey, digest_of, next_svid_key, pending_key};
use crate::metrics::counted;
use crate::own::OwnIdentity;
use crate::server_client::{Credentials, Denied, ServerClient, ServerFault};

/// Between two attempts.
const FIRST_WAIT: Duration = Duration::from_secs(5);
const LAST_WAIT: Duration = Duration::from_secs(2 * 60);

impl<A: AgentHalf> Agent<A> {
    /// Gets the node an SVID, however long it takes.
    ///
    /// `before` is an SVID that is still valid and that the server denied for `why`. It is tried again beside: a
    /// server may get its data back.
    ///
    /// # Errors
    /// `rebootstrap_mode` wants what the node cannot do.
    pub(super) async fn attest(
        &mut self,
        before: Option<OwnIdentity>,
        why: Option<Denied>,
    ) -> Result<OwnIdentity, Explained> {
        let mut backoff = Backoff::new(FIRST_WAIT, LAST_WAIT);
        self.health.change(|state| state.denied = why.is_some());
        loop {
            let call = self.metrics.new_svid.start();
            let fault = match counted(call, Box::pin(self.attest_once()).await) {
                Ok(attested) => {
                    self.check_rebootstrap(&attested)?;
                    self.health.change(|state| state.denied = false);
                    return Ok(attested);
                }
                Err(fault) => fault,
            };
            let now = self.clock.now();
            if let Some(before) = before.as_ref().filter(|before| before.is_valid(now))
                && self.still_known(before).await
            {
                tracing::info!(agent.id = %before.id, "the server knows this agent again");
                self.health.change(|state| state.denied = false);
                return Ok(before.clone());
            }
            if self.bundle_end().is_some() && self.hear_bundle().await {
                continue;
            }
            let mut told = fault.explained().clone();
            if let Some(why) = why {
                told = told.cause(why.as_str());
            }
            if let Some(end) = self.bundle_end() {
                told = told.cause(format!(
                    "the agent's trust bundle ended on {}, by this machine's clock",
                    humantime::format_rfc3339_seconds(end)
                ));
            }
            let wait = backoff.next_wait();
            self.tell(&told, wait);
            let reattestable = self.data.data().reattestable || self.data.data().svid.is_empty();
            if let AttestFault::Server(server) = &fault
                && !self.data.data().bundle.is_empty()
                && self.may_rebootstrap(server, reattestable)
            {
                self.forget_server();
            }
            wait_or_jump(self.clock.as_ref(), wait).await;
        }
    }

    /// One attestation from the first byte to the disk.
    async fn attest_once(&mut self) -> Result<OwnIdentity, AttestFault> {
        let on_disk = |error: Explained| AttestFault::Server(ServerFault::Refused(error));
        let known = self.data.data().bundle.clone();
        let ended = self.bundle_end().is_some();
        let first_use = matches!(self.settings.bootstrap, Bootstrap::Insecure);
        // Not by trusting on first use again: whoever can move this machine's clock could be that server.
        let roots = if known.is_empty() || (ended && !first_use) {
            self.count_attempt().map_err(on_disk)?;
            let asking = Asking {
                domain: &self.settings.trust_domain,
                server: &self.settings.server,
                state: self.data.data().bootstrap,
            };
            first_roots(&self.settings.bootstrap, asking)
                .await
                .map_err(on_disk)?
        } else {
            Some(known)
        };
        let nobody = Credentials {
            roots,
            identity: None,
        };
        let client = ServerClient::new(self.client.settings().clone(), &nobody).map_err(on_disk)?;
        let key = self.key_to_attest_with().map_err(on_disk)?;
        let before = self.data.data().pending_key.clone();
        // A key that a restart forgets is of no use after it: then the disk need not have room either.
        let pending = self.keys.persists().then(|| digest_of(&key));
        let data = &mut self.data;
        let begin = || match pending {
            Some(pending) => data.update(|data| data.pending_key = Some(pending)),
            None => Ok(()),
        };
        match Box::pin(attest(&client, &self.half, &key, begin)).await {
            Ok(attested) => self.remember(attested).map_err(on_disk),
            Err(fault) if before.is_some() => Err(with_lost_answer(fault, self.half.name())),
            Err(fault) => Err(fault),
        }
    }

    /// The key of an attestation whose answer has not come: the server may answer again to it. A new one otherwise;
    /// the key that is in use, if there is one, stays until its SVID is replaced.
    fn key_to_attest_with(&mut self) -> Result<NodeKey, Explained> {
        if self.keys.persists() {
            self.write_rest()?;
        }
        let keys = self.keys.as_ref();
        let in_use = self.remembered().map(|own| own.slot);
        let digest = self.data.data().pending_key.as_deref();
        match digest.and_then(|digest| pending_key(keys, in_use.as_deref(), digest)) {
            Some(key) => Ok(key),
            None => next_svid_key(keys, in_use.as_deref()).map_err(|e| e.explained().clone()),
        }
    }

    /// Writes what the disk lacks. Before a new key: it could take the place of the one that belongs to what the disk
    /// has.
    fn write_rest(&mut self) -> Result<(), Explained> {
        self.data.update(|_| {})
    }

    /// Puts what the server gave on the disk, and takes it into use. A disk that is full does not waste a join token.
    fn remember(&mut self, attested: Attested) -> Result<OwnIdentity, Explained> {
        let saved = self.data.take(|data| {
            data.svid = attested.svid;
            data.reattestable = attested.reattestable;
            data.bundle = crate::server_client::roots_of(&attested.bundle);
            data.bootstrap = crate::data::BootstrapState {
                use_: REBOOTSTRAP,
                since: None,
                attempts: 0,
            };
            data.pending_key = None;
        });
        tell_unsaved(saved, "the agent's new SVID");
        self.metrics.bootstrap(self.data.data().bootstrap);
        self.untrusted_since = None;
        let own = self.remembered().ok_or_else(|| {
            Explained::new(
                Code::Other,
                "the agent's new SVID is not found with its key",
            )
        })?;
        tracing::info!(
            agent.id = %own.id,
            reattestable = own.reattestable,
            not_after = %humantime::format_rfc3339_seconds(own.not_after),
            "the node is attested"
        );
        if !own.reattestable && !self.keys.persists() {
            tracing::warn!(
                "keys are kept in memory and this node cannot attest again: after a restart an operator has to evict the agent and give it a new join token"
            );
        }
        Ok(own)
    }

    /// When the last authority of the trust bundle ended, if none holds any more: it vouches for nobody then, as if there
    /// were no bundle.
    fn bundle_end(&self) -> Option<SystemTime> {
        let roots = self.data.data().bundle.iter();
        // What cannot be read does not end.
        let ends = roots.map(|root| {
            CertificateFacts::from_der(root)
                .ok()
                .map(|facts| facts.not_after)
        });
        let ends = ends.collect::<Option<Vec<SystemTime>>>()?;
        ends.into_iter()
            .max()
            .filter(|end| *end <= self.clock.now())
    }

    /// Asks for the bundle by the connection that is open since before: it was the server's when it was made, whatever
    /// ended since. Another connection is not trusted for it, and none can be made. Returns whether it holds again.
    async fn hear_bundle(&mut self) -> bool {
        let Ok(bundle) = self.client.bundle().await else {
            return false;
        };
        let roots = crate::server_client::roots_of(&bundle);
        if roots == self.data.data().bundle {
            return false;
        }
        let saved = self.data.take(|data| data.bundle = roots);
        tell_unsaved(saved, "the trust bundle");
        tracing::info!(
            sequence = bundle.sequence,
            "the trust bundle had ended; the server told its next one"
        );
        self.bundle_end().is_none()
    }

    fn remembered(&self) -> Option<OwnIdentity> {
        let target = self.settings.availability_target;
        OwnIdentity::remembered(self.data.data(), self.keys.as_ref(), target)
    }

    fn count_attempt(&mut self) -> Result<(), Explained> {
        let now = time::OffsetDateTime::from(self.clock.now());
        self.data.update(|data| {
            let state = &mut data.bootstrap;
            if state.use_ == 0 {
                state.use_ = crate::data::BOOTSTRAP;
            }
            state.since.get_or_insert(now);
            state.attempts += 1;
        })?;
        self.metrics.bootstrap(self.data.data().bootstrap);
        Ok(())
    }

    /// As upstream: who asks for `always` must be able to; with `auto` it is said once and left.
    fn check_rebootstrap(&mut self, own: &OwnIdentity) -> Result<(), Explained> {
        if own.reattestable {
            return Ok(());
        }
        match self.settings.rebootstrap_mode {
            RebootstrapMode::Never => Ok(()),
            RebootstrapMode::Auto => {
                tracing::warn!(
                    "rebootstrap_mode = \"auto\" has no effect: this node cannot attest again with its attestor"
                );
                self.settings.rebootstrap_mode = RebootstrapMode::Never;
                Ok(())
            }
            RebootstrapMode::Always => Err(Explained::new(
                Code::Usage,
                "rebootstrap_mode = \"always\" is not possible on this node",
            )
            .cause("the node attestor, or the server's configuration of it, does not let the node attest again")
            .hint("use an attestor that can attest again, such as x509pop, or `rebootstrap_mode = \"never\"`")),
        }
    }

    /// Whether the server answers to an SVID that it denied before.
    async fn still_known(&self, own: &OwnIdentity) -> bool {
        let credentials = own.credentials(self.data.data().bundle.clone());
        let Ok(client) = ServerClient::new(self.client.settings().clone(), &credentials) else {
            return false;
        };
        client.authorized_entries().await.is_ok()
    }

    /// A new SVID before the old one ends. A node that can attests again, so that the server sees what it is now;
    /// where that fails the old SVID vouches for the next.
    ///
    /// With `due` a key that cannot be kept is used all the same: a full disk must not cost the node its identity.
    pub(super) async fn rotate(
        &mut self,
        own: &OwnIdentity,
        due: bool,
    ) -> Result<OwnIdentity, ServerFault> {
        if own.reattestable {
            let call = self.metrics.reattest.start();
            match counted(call, Box::pin(self.attest_once()).await) {
                Ok(own) => return Ok(own),
                Err(AttestFault::Server(denied @ ServerFault::Denied(..))) => return Err(denied),
                Err(fault) => tracing::warn!(
                    error = one_line(fault.explained()),
                    "the node cannot attest again now; its SVID is renewed instead"
                ),
            }
        }
        let call = self.metrics.rotate.start();
        counted(call, Box::pin(self.renew(own, due)).await)
    }

    async fn renew(&mut self, own: &OwnIdentity, due: bool) -> Result<OwnIdentity, ServerFault> {
        let on_disk = ServerFault::Refused;
        let made = self.write_rest().and_then(|()| {
            next_svid_key(self.keys.as_ref(), Some(&own.slot))
                .map_err(|error| error.explained().clone())
        });
        let (key, kept) = match made {
            Ok(key) => (key, true),
            Err(error) if due => {
                tracing::error!(
                    error = one_line(&error),
                    "the agent's new key cannot be kept, and is lost with a restart"
                );
                let key = PrivateKey::generate(KeyKind::EcP256);
                let key = key.map_err(|error| on_disk(error.explained().clone()))?;
                (NodeKey::Here(key), false)
            }
            Err(error) => return Err(on_disk(error)),
        };
        let csr = key
            .request(None)
            .map_err(|error| on_disk(error.explained().clone()))?;
        let issued = self.client.renew(csr).await?;
        let svid: Vec<_> = issued.chain.into_iter().map(Into::into).collect();
        let roots = self.data.data().bundle.clone();
        let domain = &self.settings.trust_domain;
        crate::attest::vet(&svid, &key, domain, roots, self.clock.now())?;
        let renewed = if kept {
            let saved = self.data.take(|data| data.svid = svid);
            tell_unsaved(saved, "the agent's new SVID");
            self.remembered()
        } else {
            // What is on the disk stays: a whole pair, as long as it holds.
            let (slot, target) = (own.slot.clone(), self.settings.availability_target);
            let renewed = OwnIdentity::new(&svid, key, slot, own.reattestable, target);
            renewed.map(|renewed| OwnIdentity { kept, ..renewed })
        };
        let renewed = renewed.ok_or_else(|| {
            on_disk(Explained::new(
                Code::Other,
                "the agent's new SVID is not found with its key",
            ))
        })?;
        tracing::info!(
            agent.id = %renewed.id,
            not_after = %humantime::format_rfc3339_seconds(renewed.not_after),
            "the agent's certificate was rotated"
        );
        Ok(renewed)
    }
}

/// Says that `what` is in use and not on the disk.
pub(super) fn tell_unsaved(saved: Result<(), Explained>, what: &'static str) {
    if let Err(error) = saved {
        tracing::error!(
            what,
            error = one_line(&error),
            "used although it cannot be written; writing is tried again"
        );
    }
}
