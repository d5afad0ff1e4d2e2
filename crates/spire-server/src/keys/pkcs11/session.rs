//! Sessions with a token: opened and logged in when they are needed, and anew when the token was away.

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError, RwLock};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11 as Module};
use cryptoki::error::{Error, RvError};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use zeroize::Zeroizing;

use super::{Pin, TokenName};
use crate::keys::KeyError;

/// Sessions that are kept open while nobody needs them.
const KEPT: usize = 16;

/// Why something was not done with a session.
pub(super) enum Fault {
    Module(Error),
    /// A key with this label is not there, or not shown to who is not logged in any more.
    Missing(String),
    /// The token has something that makes no sense.
    Strange(String),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Module(error)
    }
}

impl Fault {
    /// Whether new sessions may help. What they cannot help is told when it comes again.
    fn may_pass(&self) -> bool {
        match self {
            Self::Module(Error::Pkcs11(error, _)) => matches!(
                error,
                RvError::CryptokiNotInitialized
                    | RvError::DeviceError
                    | RvError::DeviceRemoved
                    | RvError::FunctionFailed
                    | RvError::GeneralError
                    | RvError::KeyHandleInvalid
                    | RvError::ObjectHandleInvalid
                    | RvError::SessionClosed
                    | RvError::SessionHandleInvalid
                    | RvError::SlotIdInvalid
                    | RvError::TokenNotPresent
                    | RvError::TokenNotRecognized
                    | RvError::UserNotLoggedIn
            ),
            Self::Missing(_) => true,
            Self::Module(_) | Self::Strange(_) => false,
        }
    }
}

/// The sessions of this process with one token.
pub(super) struct Sessions {
    module: Module,
    path: PathBuf,
    token: TokenName,
    pin: Pin,
    /// Written while the module is begun anew, which ends all calls under way.
    begun: RwLock<()>,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    /// The login lasts as long as a session does: this one stays.
    login: Option<(Slot, Session)>,
    idle: Vec<Session>,
    /// Counts the logins, so that what one session found out is not held against newer ones.
    count: u64,
    /// A PIN that the token refused, and what it said. A few wrong ones lock a token.
    refused: Option<(Zeroizing<String>, String)>,
}

impl Sessions {
    pub(super) fn new(path: PathBuf, token: TokenName, pin: Pin) -> Result<Self, KeyError> {
        if cfg!(target_feature = "crt-static") {
            return Err(KeyError::Failed(
                "this server is linked statically and cannot load PKCS #11 modules: use the Debian package's".into(),
            ));
        }
        let module = Module::new(&path).map_err(|error| {
            let path = path.display();
            KeyError::Failed(format!(
                "cannot load PKCS #11 module {path}: {}; module_path names the shared library of the token's maker",
                words(&error)
            ))
        })?;
        begin(&module).map_err(|error| {
            let (path, why) = (path.display(), words(&error));
            KeyError::Failed(format!("PKCS #11 module {path} cannot be used: {why}"))
        })?;
        Ok(Self {
            module,
            path,
            token,
            pin,
            begun: RwLock::new(()),
            open: Mutex::default(),
        })
    }

    /// Does `work` with a session that is logged in, and once more with a new login where that may help.
    pub(super) fn with<T>(
        &self,
        work: impl Fn(&Session) -> Result<T, Fault>,
    ) -> Result<T, KeyError> {
        let mut again = true;
        loop {
            let fault = match self.attempt(&work)? {
                (_, Ok(done)) => return Ok(done),
                (count, Err(fault)) => {
                    self.drop_login(count, fault.may_pass());
                    fault
                }
            };
            if !fault.may_pass() || !std::mem::take(&mut again) {
                return Err(self.told(&fault));
            }
        }
    }

    /// One attempt, and the number of the login that it was made with.
    fn attempt<T>(
        &self,
        work: &impl Fn(&Session) -> Result<T, Fault>,
    ) -> Result<(u64, Result<T, Fault>), KeyError> {
        loop {
            {
                let _calls = self.begun.read().unwrap_or_else(PoisonError::into_inner);
                if let Some((count, session)) = self.session() {
                    let done = session.and_then(|session| {
                        let done = work(&session);
                        if done.is_ok() {
                            self.keep(count, session);
                        }
                        done
                    });
                    return Ok((count, done));
                }
            }
            self.log_in()?;
        }
    }

    /// A session of the present login; `None` when there is no login.
    fn session(&self) -> Option<(u64, Result<Session, Fault>)> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = open.login.as_ref()?.0;
        let session = match open.idle.pop() {
            Some(session) => Ok(session),
            None => self.module.open_rw_session(slot).map_err(Fault::Module),
        };
        Some((open.count, session))
    }

    fn keep(&self, count: u64, session: Session) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.count == count && open.idle.len() < KEPT {
            open.idle.push(session);
        }
    }

    fn drop_login(&self, count: u64, may_pass: bool) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if may_pass && open.count == count {
            open.login = None;
            open.idle.clear();
        }
    }

    fn log_in(&self) -> Result<(), KeyError> {
        let _alone = self.begun.write().unwrap_or_else(PoisonError::into_inner);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.login.is_some() {
            return Ok(());
        }
        // What calls under way put back after the login was dropped.
        open.idle.clear();
        let pin = self.pin.read()?;
        if let Some((refused, why)) = &open.refused
            && *refused == pin
        {
            return Err(KeyError::Failed(why.clone()));
        }
        let slot = match self.slot() {
            Ok(slot) => slot,
            // Some modules see a token that was away, or a network that is back, only when they begin anew.
            Err(_) => {
                let _ = self.module.clone().finalize();
                begin(&self.module).map_err(|error| self.told(&error.into()))?;
                self.slot()?
            }
        };
        let session = self.module.open_rw_session(slot);
        let session = session.map_err(|error| self.told(&error.into()))?;
        let given = AuthPin::from(pin.as_str().to_owned());
        match session.login(UserType::User, Some(&given)) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
            Err(Error::Pkcs11(
                error @ (RvError::PinIncorrect
                | RvError::PinInvalid
                | RvError::PinLenRange
                | RvError::PinExpired
                | RvError::PinLocked),
                _,
            )) => {
                let locked = matches!(error, RvError::PinLocked);
                let remedy = if locked {
                    "the token's security officer unlocks it, or sets another PIN"
                } else {
                    "it is not tried again, since a few wrong ones lock the token"
                };
                let why = format!(
                    "PKCS #11 token {}: the PIN of {} was refused ({error:?}): {remedy}; {}",
                    self.token,
                    self.pin,
                    self.pin.remedy()
                );
                open.refused = Some((pin, why.clone()));
                return Err(KeyError::Failed(why));
            }
            Err(error) => return Err(self.told(&error.into())),
        }
        open.refused = None;
        open.login = Some((slot, session));
        open.count = open.count.wrapping_add(1);
        if open.count > 1 {
            tracing::info!(token = %self.token, "Logged in to the PKCS #11 token again");
        }
        Ok(())
    }

    /// Where the token is.
    fn slot(&self) -> Result<Slot, KeyError> {
        let slots = self.module.get_slots_with_initialized_token();
        let slots = slots.map_err(|error| self.told(&error.into()))?;
        let mut there = Vec::new();
        let mut found = Vec::new();
        for slot in slots {
            // One that is just being taken out is not there.
            let Ok(info) = self.module.get_token_info(slot) else {
                continue;
            };
            let label = info.label().trim_end().to_owned();
            let is_it = match &self.token {
                TokenName::Label(wanted) => *wanted == label,
                TokenName::Slot(wanted) => *wanted == slot.id(),
            };
            if is_it {
                found.push(slot);
            }
            there.push(format!("\"{label}\" in slot {}", slot.id()));
        }
        match found.as_slice() {
            [slot] => Ok(*slot),
            [] => Err(KeyError::Failed(format!(
                "PKCS #11 token {} is not there; module {} has {}",
                self.token,
                self.path.display(),
                if there.is_empty() {
                    "none".to_owned()
                } else {
                    there.join(", ")
                }
            ))),
            _ => Err(KeyError::Failed(format!(
                "several PKCS #11 tokens are called {}: name one by its slot ({})",
                self.token,
                there.join(", ")
            ))),
        }
    }

    fn told(&self, fault: &Fault) -> KeyError {
        let why = match fault {
            Fault::Module(error) => words(error),
            Fault::Missing(label) => format!("key {label} is not there"),
            Fault::Strange(what) => what.clone(),
        };
        KeyError::Failed(format!("PKCS #11 token {}: {why}", self.token))
    }
}

/// The module is for all of this process. Who has begun it before is welcome.
fn begin(module: &Module) -> Result<(), Error> {
    match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(()),
        begun => begun,
    }
}

/// The library prints whole paragraphs of the standard: its names for them are enough.
fn words(error: &Error) -> String {
    match error {
        Error::Pkcs11(error, call) => format!("{error:?} (C_{call:?})"),
        other => other.to_string(),
    }
}

impl std::fmt::Display for TokenName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Label(label) => write!(f, "\"{label}\""),
            Self::Slot(slot) => write!(f, "in slot {slot}"),
        }
    }
}

impl std::fmt::Display for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "pin_file {}", path.display()),
            Self::Variable(name) => write!(f, "{name}"),
        }
    }
}

impl Pin {
    fn read(&self) -> Result<Zeroizing<String>, KeyError> {
        let text = match self {
            Self::File(path) => Zeroizing::new(fs::read_to_string(path).map_err(|error| {
                KeyError::Storage(format!("cannot read pin_file {}: {error}", path.display()))
            })?),
            Self::Variable(name) => Zeroizing::new(std::env::var(name).unwrap_or_default()),
        };
        match text.lines().next() {
            Some(pin) if !pin.is_empty() => Ok(Zeroizing::new(pin.to_owned())),
            _ => Err(KeyError::Failed(format!("there is no PIN in {self}"))),
        }
    }

    fn remedy(&self) -> String {
        match self {
            Self::File(path) => format!("put the right one in {}", path.display()),
            Self::Variable(name) => {
                format!("restart with the right one in {name}, or use pin_file")
            }
        }
    }
}
