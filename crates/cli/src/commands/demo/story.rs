//! The steps of the demo, and how each is seen to have happened.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ah_fleet::access_point::{EventFilter, ExecutorView, FleetEvent, ListFilter};
use ah_fleet::audit::{Entry, Event};
use ah_fleet::executor::{Status, read_status};
use ah_identity_provider::dev::ACCESS_POINT_ID;
use ah_identity_provider::{Code, Explained};
use nix::sys::signal::Signal;
use tokio::sync::watch;

use super::screen::{Picture, Screen, milliseconds, short};
use super::stage::{Actor, Stage, told};
use crate::admin_client::{AdminClient, Events};

/// The longest that anything may take to be seen. Reached only when something is wrong.
const DEADLINE: Duration = Duration::from_secs(30);
/// How often a socket that sends no news is asked again.
const LOOK: Duration = Duration::from_millis(40);
/// How often the table is drawn.
const FRAME: Duration = Duration::from_millis(250);
/// How long a person at a terminal has to read a step.
const READ: Duration = Duration::from_millis(1_100);
/// Short, so that heartbeats are seen within the demo's few seconds.
const HEARTBEAT: &str = "500ms";

const ACCESS_POINT: &str = "access-point";
const WORKERS: [&str; 3] = [ROTATED, KILLED, REVOKED];
/// Whose certificate is rotated, who is killed and who is revoked.
const ROTATED: &str = "worker-1";
const KILLED: &str = "worker-2";
const REVOKED: &str = "worker-3";

/// The play of one demo.
pub(super) struct Story<'a> {
    stage: &'a Stage,
    screen: &'a Screen,
    admin: AdminClient,
    cast: RefCell<Vec<Rc<Actor>>>,
    events: watch::Sender<Vec<FleetEvent>>,
    server: RefCell<String>,
}

impl<'a> Story<'a> {
    pub(super) fn new(stage: &'a Stage, screen: &'a Screen) -> Self {
        Self {
            stage,
            screen,
            admin: AdminClient::new(stage.admin_socket()),
            cast: RefCell::default(),
            events: watch::Sender::new(Vec::new()),
            server: RefCell::default(),
        }
    }

    /// All steps in order. The first that does not happen is the error.
    pub(super) async fn play(&mut self) -> Result<(), Explained> {
        let story = &*self;
        tokio::select! {
            ended = story.steps() => ended,
            () = story.keep_drawing(), if story.screen.is_live() => Ok(()),
        }
    }

    /// Ends every process that still runs, and waits until it is gone.
    pub(super) async fn curtain(&self) {
        let cast = self.cast.take();
        for actor in &cast {
            actor.signal(Signal::SIGKILL);
        }
        for actor in &cast {
            actor.ended().await;
        }
    }

    async fn steps(&self) -> Result<(), Explained> {
        self.enroll().await?;
        self.pause().await;
        self.rotate().await?;
        self.pause().await;
        self.kill().await?;
        self.pause().await;
        self.come_back().await?;
        self.pause().await;
        self.revoke().await?;
        self.pause().await;
        self.try_again().await?;
        self.pause().await;
        self.drain().await?;
        self.audit().await
    }

    async fn enroll(&self) -> Result<(), Explained> {
        self.screen.step(1, "Enroll three executors");
        let args = [
            "access-point",
            "--fleet-listen",
            "127.0.0.1:0",
            "--heartbeat-interval",
            HEARTBEAT,
            "--executor-san-uri-prefix",
            "spiffe://ah-dev/ah/agent",
        ];
        let actor = self.start(ACCESS_POINT, &args)?;
        let answer = asked(async || self.admin.access_point().await.ok());
        let own = self.expect("the access point to answer", answer).await?;
        let Some(address) = own.listening.first() else {
            return Err(wrong("the access point listens nowhere"));
        };
        self.screen.tell(&format!(
            "access point (process {}) listens on {address}",
            actor.pid
        ));
        self.server.replace(format!("https://{address}"));
        self.follow_events(self.admin.events(&EventFilter::default()).await?);
        for name in WORKERS {
            self.start_worker(name)?;
        }
        for name in WORKERS {
            self.happened(Event::Enrolled, name, 0).await?;
            let (view, status) = self.agreed(name).await?;
            if status.access_point_id.as_deref() != Some(ACCESS_POINT_ID) {
                return Err(wrong(format!(
                    "{name} took the access point for {:?}",
                    status.access_point_id
                )));
            }
            let trip = self.round_trip(name).await?;
            self.screen.tell(&format!(
                "{name} (process {}) is {}, heartbeat answered in {}",
                status.pid,
                view.id,
                milliseconds(trip)
            ));
        }
        self.screen.tell(&format!(
            "each of them verified the access point as {ACCESS_POINT_ID}"
        ));
        self.screen.proved(
            "both sides proved who they are; an executor's id is its certificate's, not its own word",
        );
        Ok(())
    }

    async fn rotate(&self) -> Result<(), Explained> {
        self.screen
            .step(2, "Rotate certificates under live sessions");
        let mark = self.mark();
        let before = self.admin.access_point().await?.certificate;
        self.actor(ACCESS_POINT)?.signal(Signal::SIGHUP);
        let renewed = asked(async || {
            let own = self.admin.access_point().await.ok()?;
            (own.certificate != before).then_some(own.certificate)
        });
        let what = "the access point to renew its certificate";
        let after = self.expect(what, renewed).await?;
        self.screen.tell(&format!(
            "access point: certificate {} → {}",
            short(&before.serial),
            short(&after.serial)
        ));

        let (old_view, old_status) = self.agreed(ROTATED).await?;
        self.actor(ROTATED)?.signal(Signal::SIGHUP);
        self.happened(Event::Rotated, ROTATED, mark).await?;
        let (view, status) = self.agreed(ROTATED).await?;
        self.screen.tell(&format!(
            "{ROTATED}: certificate {} → {}, in its status and in the registry alike",
            short(&old_view.certificate.serial),
            short(&view.certificate.serial)
        ));
        if view.certificate == old_view.certificate || status.rotations <= old_status.rotations {
            return Err(wrong(format!("{ROTATED} moved without a new certificate")));
        }
        if status.since != old_status.since {
            return Err(wrong(format!("{ROTATED} was not enrolled for a moment")));
        }
        let gone = |event: &FleetEvent| event.event == Event::Disconnected;
        if let Some(event) = self.events.borrow().iter().skip(mark).find(|e| gone(e)) {
            return Err(wrong(format!("{} was disconnected", event.name)));
        }
        self.screen.proved(&format!(
            "{ROTATED} moved to its new certificate and was never offline; nobody else noticed"
        ));
        Ok(())
    }

    async fn kill(&self) -> Result<(), Explained> {
        self.screen
            .step(3, &format!("Kill {KILLED} without warning (kill -9)"));
        let mark = self.mark();
        let actor = self.leaving(KILLED)?;
        let killed = Instant::now();
        actor.signal(Signal::SIGKILL);
        self.happened(Event::Disconnected, KILLED, mark).await?;
        let seen = killed.elapsed();
        let view = self.admin.show(KILLED).await?;
        if view.live.is_some() {
            return Err(wrong(format!("{KILLED} is dead and shown as live")));
        }
        let ended = self
            .expect("the killed process to end", actor.ended())
            .await?;
        self.screen
            .tell(&format!("process {}: {}", actor.pid, told(ended)));
        self.screen.proved(&format!(
            "the access point saw {KILLED} offline {} later, and still knows it",
            milliseconds(u64::try_from(seen.as_micros()).unwrap_or(u64::MAX))
        ));
        Ok(())
    }

    async fn come_back(&self) -> Result<(), Explained> {
        self.screen.step(4, &format!("Start {KILLED} again"));
        let mark = self.mark();
        let known = self.admin.show(KILLED).await?;
        let actor = self.start_worker(KILLED)?;
        self.happened(Event::ReEnrolled, KILLED, mark).await?;
        let (view, _) = self.agreed(KILLED).await?;
        if view.id != known.id || view.first_enrolled != known.first_enrolled {
            return Err(wrong(format!(
                "{KILLED} came back as {}, not as the {} that was known",
                view.id, known.id
            )));
        }
        self.screen
            .tell(&format!("{KILLED} is process {} now", actor.pid));
        self.screen.proved(&format!(
            "{KILLED} is back as the same executor, {}, with its history",
            view.id
        ));
        Ok(())
    }

    async fn revoke(&self) -> Result<(), Explained> {
        self.screen.step(5, &format!("Revoke {REVOKED}"));
        let mark = self.mark();
        let actor = self.leaving(REVOKED)?;
        let asked_at = Instant::now();
        self.admin.revoke(REVOKED, "shown in the demo").await?;
        self.happened(Event::Disconnected, REVOKED, mark).await?;
        let cut = asked_at.elapsed();
        let view = self.admin.show(REVOKED).await?;
        if view.revocation.is_none() || view.live.is_some() {
            return Err(wrong(format!("{REVOKED} is not shown as revoked")));
        }
        self.gave_up(&actor).await?;
        self.screen.proved(&format!(
            "its live session was cut {} after the command, and it knows that trying again is no use",
            milliseconds(u64::try_from(cut.as_micros()).unwrap_or(u64::MAX))
        ));
        Ok(())
    }

    async fn try_again(&self) -> Result<(), Explained> {
        self.screen
            .step(6, &format!("Start {REVOKED} again, revoked as it is"));
        let mark = self.mark();
        self.start_worker(REVOKED)?;
        let actor = self.leaving(REVOKED)?;
        let id = self.admin.show(REVOKED).await?.id;
        let refused = self.saw(mark, |event| {
            event.event == Event::Rejected && event.id == id
        });
        let what = format!("the access point to refuse {REVOKED}");
        let event = self.expect(&what, refused).await?;
        let reason = event.reason.unwrap_or_default();
        let reason = reason.split(';').next().unwrap_or_default();
        self.screen.tell(&format!("refused: {reason}"));
        self.gave_up(&actor).await?;
        self.screen.proved(
            "it came with a new certificate and was refused in the handshake: its id is revoked",
        );
        Ok(())
    }

    async fn drain(&self) -> Result<(), Explained> {
        self.screen.step(7, "Drain and stop");
        let mark = self.mark();
        let access_point = self.leaving(ACCESS_POINT)?;
        access_point.signal(Signal::SIGTERM);
        for name in [ROTATED, KILLED] {
            self.happened(Event::Disconnected, name, mark).await?;
        }
        self.screen
            .tell("access point: nobody new, everybody told to come back later");
        self.stopped_in_order(&access_point).await?;
        for name in [ROTATED, KILLED] {
            let actor = self.leaving(name)?;
            actor.signal(Signal::SIGTERM);
            self.stopped_in_order(&actor).await?;
        }
        self.screen
            .proved("access point and executors left in order, exit code 0 each");
        Ok(())
    }

    async fn audit(&self) -> Result<(), Explained> {
        self.screen.step(8, "Verify the audit log");
        let log = self.stage.audit_log();
        let path = log.display().to_string();
        let verified = self.stage.run(&["audit", "verify", &path]).await?;
        if !verified.status.success() {
            let said = String::from_utf8_lossy(&verified.stderr).into_owned();
            return Err(wrong("the audit log is broken").cause(said.trim()));
        }
        let text = std::fs::read_to_string(&log)
            .map_err(|error| wrong("cannot read the audit log").cause(error))?;
        let told = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Entry>(line).ok())
            .map(|entry| entry.event)
            .collect::<Vec<_>>();
        let expected = [
            Event::Started,
            Event::Enrolled,
            Event::IdentityRenewed,
            Event::Rotated,
            Event::Disconnected,
            Event::ReEnrolled,
            Event::Revoked,
            Event::Rejected,
            Event::Stopped,
        ];
        if let Some(missing) = expected.iter().find(|event| !told.contains(event)) {
            return Err(wrong(format!(
                "the audit log does not tell of {}",
                missing.as_str()
            )));
        }
        let names = expected.map(Event::as_str).join(", ");
        self.screen.tell(&format!("it tells of: {names}"));
        self.screen.proved(&format!(
            "{} lines, each with the hash of the line before it, unbroken",
            told.len()
        ));
        Ok(())
    }

    fn start(&self, name: &str, args: &[&str]) -> Result<Rc<Actor>, Explained> {
        let actor = Rc::new(self.stage.start(name, args)?);
        self.cast.borrow_mut().push(Rc::clone(&actor));
        Ok(actor)
    }

    fn start_worker(&self, name: &str) -> Result<Rc<Actor>, Explained> {
        let server = self.server.borrow().clone();
        let args = [
            "enroll",
            "--remote-server",
            &server,
            "--expected-server-id",
            ACCESS_POINT_ID,
            "--name",
            name,
        ];
        self.start(name, &args)
    }

    /// The latest process called `name`.
    fn actor(&self, name: &str) -> Result<Rc<Actor>, Explained> {
        let cast = self.cast.borrow();
        let latest = cast.iter().rfind(|actor| actor.name == name);
        latest
            .cloned()
            .ok_or_else(|| wrong(format!("{name} was not started")))
    }

    /// The latest process called `name`, whose end is from now on part of the story.
    fn leaving(&self, name: &str) -> Result<Rc<Actor>, Explained> {
        let actor = self.actor(name)?;
        actor.may_end.set(true);
        Ok(actor)
    }

    /// Gathers what the access point says of itself, until it closes.
    fn follow_events(&self, mut coming: Events) {
        let events = self.events.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = coming.next_line().await {
                if let Ok(event) = serde_json::from_str::<FleetEvent>(&line) {
                    events.send_modify(|events| events.push(event));
                }
            }
        });
    }

    /// How many events there were; those after it are news.
    fn mark(&self) -> usize {
        self.events.borrow().len()
    }

    async fn saw(&self, mark: usize, is_it: impl Fn(&FleetEvent) -> bool) -> FleetEvent {
        let mut events = self.events.subscribe();
        let found = |events: &Vec<FleetEvent>| events.iter().skip(mark).find(|e| is_it(e)).cloned();
        loop {
            if let Some(event) = found(&events.borrow_and_update()) {
                return event;
            }
            // The sender lives as long as `self`.
            let _ = events.changed().await;
        }
    }

    /// Waits for `event` of the executor `name` after `mark`.
    async fn happened(&self, event: Event, name: &str, mark: usize) -> Result<(), Explained> {
        let saw = self.saw(mark, |e| e.event == event && e.name == name);
        let what = format!("{name} to be seen {}", event.as_str());
        self.expect(&what, saw).await.map(|_| ())
    }

    /// Waits until the registry and the executor's own status tell of the same session and certificate.
    async fn agreed(&self, name: &str) -> Result<(ExecutorView, Status), Explained> {
        let socket = self.stage.status_socket(name);
        let both = asked(async || {
            let status = read_status(&socket).await.ok()?;
            let view = self.admin.show(name).await.ok()?;
            let session = view.live.as_ref().map(|live| &live.session_id);
            let serial = status.certificate.as_ref().map(|c| &c.leaf.serial);
            let same = status.enrolled
                && session.is_some()
                && session == status.session_id.as_ref()
                && serial == Some(&view.certificate.serial)
                && status.executor_id.as_ref() == Some(&view.id);
            same.then_some((view, status))
        });
        let what = format!("{name}'s status and the registry to agree");
        self.expect(&what, both).await
    }

    async fn round_trip(&self, name: &str) -> Result<u64, Explained> {
        let socket = self.stage.status_socket(name);
        let measured = asked(async || {
            let status = read_status(&socket).await.ok()?;
            status.heartbeats?.round_trip_us
        });
        self.expect(&format!("a heartbeat of {name}"), measured)
            .await
    }

    /// Waits for a process that is to end with exit code 1.
    async fn gave_up(&self, actor: &Actor) -> Result<(), Explained> {
        let ended = self
            .expect(&format!("{} to give up", actor.name), actor.ended())
            .await?;
        let text = format!("{} (process {}): {}", actor.name, actor.pid, told(ended));
        if ended.and_then(|status| status.code()) != Some(1) {
            return Err(wrong(text));
        }
        self.screen.tell(&text);
        Ok(())
    }

    async fn stopped_in_order(&self, actor: &Actor) -> Result<(), Explained> {
        let ended = self
            .expect(&format!("{} to stop", actor.name), actor.ended())
            .await?;
        match ended {
            Some(status) if status.success() => Ok(()),
            _ => Err(actor.fallen()),
        }
    }

    /// Waits for `event`, for so long as the deadline has not passed and nobody fell who should stand.
    async fn expect<T>(&self, what: &str, event: impl Future<Output = T>) -> Result<T, Explained> {
        let deadline = tokio::time::sleep(DEADLINE);
        let mut look = tokio::time::interval(LOOK);
        tokio::pin!(event, deadline);
        loop {
            tokio::select! {
                biased;
                seen = &mut event => return Ok(seen),
                () = &mut deadline => {
                    let text = format!("waited {DEADLINE:?} in vain for {what}");
                    return Err(wrong(text));
                }
                _ = look.tick() => {
                    let cast = self.cast.borrow();
                    let fallen = cast.iter().find(|a| !a.may_end.get() && a.exit().is_some());
                    if let Some(actor) = fallen {
                        return Err(actor.fallen());
                    }
                }
            }
        }
    }

    async fn pause(&self) {
        if self.screen.is_live() {
            tokio::time::sleep(READ).await;
        }
    }

    /// Keeps the table current for as long as it is polled.
    async fn keep_drawing(&self) {
        let mut frame = tokio::time::interval(FRAME);
        loop {
            frame.tick().await;
            let filter = ListFilter::default();
            let (own, listing) = tokio::join!(self.admin.access_point(), self.admin.list(&filter));
            // Before it answers and after it has gone the last picture stands.
            if let (Ok(own), Ok(listing)) = (own, listing) {
                let picture = Picture {
                    access_point: own,
                    executors: listing.executors,
                };
                self.screen.show(&picture, &self.events.borrow());
            }
        }
    }
}

/// Asks until there is an answer.
async fn asked<T>(mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn wrong(text: impl Into<String>) -> Explained {
    Explained::new(Code::Other, format!("the demo failed: {}", text.into()))
}
