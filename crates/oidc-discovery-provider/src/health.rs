//! `/live` and `/ready`.

use std::time::Duration;

use ah_spire_plugin::oidc::OidcHealth;
use ah_spire_telemetry::answer;
use ah_spire_web::AcmeHealth;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::documents::{TEXT, refused};
use crate::keys::Known;

/// How many looks may fail, at least for [`LEAST`], before the provider is not well.
const LOOKS: u32 = 5;
const LEAST: Duration = Duration::from_secs(3 * 60);

/// What the checks answer from.
#[derive(Clone)]
pub(crate) struct Health {
    paths: OidcHealth,
    known: watch::Receiver<Known>,
    threshold: Duration,
    started: Instant,
    acme: Option<AcmeHealth>,
}

impl Health {
    pub(crate) fn new(
        paths: OidcHealth,
        known: watch::Receiver<Known>,
        poll_interval: Duration,
    ) -> Self {
        Self {
            paths,
            known,
            threshold: poll_interval.saturating_mul(LOOKS).max(LEAST),
            started: Instant::now(),
            acme: None,
        }
    }

    /// What is served needs certificates of an ACME server, too.
    pub(crate) fn with(self, acme: Option<AcmeHealth>) -> Self {
        Self { acme, ..self }
    }

    /// 200 or 500, and why.
    pub(crate) fn respond<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let state = match request.uri().path() {
            path if path == self.paths.ready_path => self.ready().and_then(|()| self.proven()),
            path if path == self.paths.live_path => self.live(),
            _ => return refused(StatusCode::NOT_FOUND, "404 page not found"),
        };
        if request.method() != Method::GET {
            return refused(StatusCode::METHOD_NOT_ALLOWED, "method not allowed");
        }
        let certificates = { self.acme.as_ref() }.and_then(|acme| acme.look().ok().flatten());
        let keys = self.known.borrow().fault.clone();
        match (state, keys.or(certificates)) {
            (Ok(()), None) => answer(StatusCode::OK, TEXT, "ok\n"),
            (Ok(()), Some(fault)) => {
                let told = format!("ok, and the last attempt failed: {fault}\n");
                answer(StatusCode::OK, TEXT, told)
            }
            (Err(why), _) => refused(StatusCode::INTERNAL_SERVER_ERROR, &why),
        }
    }

    /// Keys were had, and lately.
    fn ready(&self) -> Result<(), String> {
        let known = self.known.borrow();
        let fault = known.fault.as_deref().unwrap_or("not asked yet");
        match known.looked.map(|looked| looked.elapsed()) {
            Some(since) if since < self.threshold => Ok(()),
            Some(since) => Err(format!(
                "no keys could be fetched for {}s: {fault}",
                since.as_secs()
            )),
            None => Err(format!("no keys could be fetched yet: {fault}")),
        }
    }

    /// There is a certificate to serve with.
    fn proven(&self) -> Result<(), String> {
        match &self.acme {
            Some(acme) => acme.look().map(|_| ()),
            None => Ok(()),
        }
    }

    /// As [`Self::ready`], and before the first keys for as long as they may be late.
    fn live(&self) -> Result<(), String> {
        let never = self.known.borrow().looked.is_none();
        if never && self.started.elapsed() < self.threshold {
            return Ok(());
        }
        self.ready()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(interval: u64, known: &watch::Sender<Known>) -> Health {
        let paths = OidcHealth {
            port: 0,
            live_path: "/live".into(),
            ready_path: "/ready".into(),
        };
        Health::new(paths, known.subscribe(), Duration::from_secs(interval))
    }

    fn asked(health: &Health, path: &str) -> u16 {
        let request = Request::get(path).body(()).unwrap();
        health.respond(&request).status().as_u16()
    }

    // Inventory section 11: /ready, /live
    #[tokio::test(start_paused = true)]
    async fn late_keys_are_no_harm_for_three_minutes() {
        let known = watch::Sender::<Known>::default();
        let health = health(10, &known);
        assert_eq!(
            (asked(&health, "/live"), asked(&health, "/ready")),
            (200, 500)
        );
        tokio::time::advance(Duration::from_secs(179)).await;
        assert_eq!(asked(&health, "/live"), 200);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(
            (asked(&health, "/live"), asked(&health, "/ready")),
            (500, 500)
        );

        known.send_modify(|known| known.looked = Some(Instant::now()));
        assert_eq!(
            (asked(&health, "/live"), asked(&health, "/ready")),
            (200, 200)
        );
        tokio::time::advance(Duration::from_secs(179)).await;
        known.send_modify(|known| known.fault = Some("connection refused".into()));
        assert_eq!(
            (asked(&health, "/live"), asked(&health, "/ready")),
            (200, 200)
        );
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(
            (asked(&health, "/live"), asked(&health, "/ready")),
            (500, 500)
        );
        assert_eq!(
            health.ready(),
            Err("no keys could be fetched for 180s: connection refused".into())
        );
    }

    // Upstream documents five times the interval; its code takes one, which no poll is ever earlier than.
    #[tokio::test(start_paused = true)]
    async fn rare_looks_have_five_intervals() {
        let known = watch::Sender::<Known>::default();
        let health = health(60, &known);
        known.send_modify(|known| known.looked = Some(Instant::now()));
        tokio::time::advance(Duration::from_secs(299)).await;
        assert_eq!(asked(&health, "/ready"), 200);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(asked(&health, "/ready"), 500);
    }

    #[tokio::test]
    async fn only_get_is_answered_and_only_there() {
        let known = watch::Sender::<Known>::default();
        let health = health(10, &known);
        let posted = Request::post("/live").body(()).unwrap();
        assert_eq!(health.respond(&posted).status().as_u16(), 405);
        assert_eq!(asked(&health, "/"), 404);
    }
}
