//! The two slots of a kind of authority, A and B, and when they change places.
//!
//! One slot is current; the other holds what comes next, or what was. Half of the current authority's life before
//! its end (30 days at most) the next one is prepared, a sixth (7 days at most) before it takes over.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::sign::BACKDATE;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Where an authority is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// In the bundle, signs nothing yet.
    Prepared,
    /// Signs.
    Active,
    /// Signs no more, still in the bundle.
    Old,
}

/// What operators are told of an authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityState {
    /// Subject key identifier of a CA in hexadecimal, `kid` of a JWT key.
    pub id: String,
    /// Subject key identifier of the upstream CA that signed it; else empty.
    pub upstream_id: String,
    /// Its end.
    pub not_after: SystemTime,
    /// Where it is in its life.
    pub status: Status,
}

/// What the slots know of what they hold.
pub(super) trait Authority {
    fn id(&self) -> String;
    fn upstream_id(&self) -> String;
    fn not_after(&self) -> SystemTime;
}

/// The name of a slot, and of its key in the key manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotName {
    A,
    B,
}

impl SlotName {
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "A" => Some(Self::A),
            "B" => Some(Self::B),
            _ => None,
        }
    }

    fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "A",
            Self::B => "B",
        })
    }
}

#[derive(Debug)]
pub(super) struct Slot<A> {
    pub(super) name: SlotName,
    /// What it holds, or held when its status is `Old`; `None` when it never held anything.
    pub(super) state: Option<AuthorityState>,
    issued_at: SystemTime,
    pub(super) authority: Option<Arc<A>>,
}

impl<A: Authority> Slot<A> {
    fn new(name: SlotName) -> Self {
        Self {
            name,
            state: None,
            issued_at: SystemTime::UNIX_EPOCH,
            authority: None,
        }
    }

    pub(super) fn holding(
        name: SlotName,
        authority: Arc<A>,
        issued_at: SystemTime,
        status: Status,
    ) -> Self {
        Self {
            name,
            state: Some(AuthorityState {
                id: authority.id(),
                upstream_id: authority.upstream_id(),
                not_after: authority.not_after(),
                status,
            }),
            issued_at,
            authority: Some(authority),
        }
    }

    pub(super) fn status(&self) -> Option<Status> {
        self.state.as_ref().map(|state| state.status)
    }

    /// The name of its authority; empty when it never held one.
    pub(super) fn id(&self) -> &str {
        self.state.as_ref().map_or("", |state| &state.id)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.authority.is_none() || self.status() == Some(Status::Old)
    }

    pub(super) fn set_status(&mut self, status: Status) {
        if let Some(state) = &mut self.state {
            state.status = status;
        }
        if status == Status::Old {
            self.authority = None;
        }
    }

    /// Whether it can sign at `now`: it has not ended, and the clock was not set back to before it was made.
    fn is_usable(&self, now: SystemTime) -> bool {
        let soon = now.checked_add(BACKDATE).unwrap_or(now);
        !self.is_empty()
            && self.issued_at <= soon
            && self
                .state
                .as_ref()
                .is_some_and(|state| now < state.not_after)
    }

    fn is_past(&self, now: SystemTime, divisor: u32, most: Duration) -> bool {
        let Some(state) = &self.state else {
            return false;
        };
        let life = state.not_after.duration_since(self.issued_at);
        let left = life
            .unwrap_or_default()
            .checked_div(divisor)
            .unwrap_or_default()
            .min(most);
        state
            .not_after
            .checked_sub(left)
            .is_none_or(|threshold| now > threshold)
    }
}

/// What has to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Make an authority in the current slot.
    PrepareCurrent,
    /// The current slot's authority was prepared and never activated.
    ActivateCurrent,
    /// Make one in the other slot.
    PrepareNext,
    /// The slots change places.
    Rotate,
}

#[derive(Debug)]
pub(super) struct Slots<A> {
    pub(super) current: Slot<A>,
    pub(super) next: Slot<A>,
}

impl<A: Authority> Slots<A> {
    /// From what a journal has, newest first: the active one is current; without one, the newest is.
    pub(super) fn choose(entries: impl Iterator<Item = Slot<A>>) -> Self {
        let (mut current, mut next) = (None, None);
        for slot in entries {
            let place = if slot.status() == Some(Status::Active) && current.is_none() {
                &mut current
            } else {
                &mut next
            };
            if place.is_none() {
                *place = Some(slot);
            }
        }
        // An entry of the current one's own slot is from before it: there is no key for it any more.
        if let (Some(one), Some(other)) = (&current, &next)
            && one.name == other.name
        {
            next = None;
        }
        let current = current
            .or_else(|| next.take())
            .unwrap_or_else(|| Slot::new(SlotName::A));
        let next = next.unwrap_or_else(|| Slot::new(current.name.other()));
        Self { current, next }
    }

    /// The next thing to do at `now`, if there is one. It is asked again after that is done.
    pub(super) fn step(&self, now: SystemTime) -> Option<Step> {
        let (current, next) = (&self.current, &self.next);
        if current.is_empty() {
            return Some(Step::PrepareCurrent);
        }
        if current.status() != Some(Status::Active) {
            return Some(Step::ActivateCurrent);
        }
        let usable = current.is_usable(now);
        if usable && !current.is_past(now, 2, DAY.saturating_mul(30)) {
            return None;
        }
        if !next.is_usable(now) {
            return Some(Step::PrepareNext);
        }
        let due = !usable || current.is_past(now, 6, DAY.saturating_mul(7));
        due.then_some(Step::Rotate)
    }

    /// The next one becomes current, and the current one old.
    pub(super) fn swap(&mut self) {
        std::mem::swap(&mut self.current, &mut self.next);
        self.next.set_status(Status::Old);
    }
}
