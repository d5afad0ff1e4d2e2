//! Why a TPM gives no answer (response codes: TPM 2.0 Part 2, 6.6).

use std::fmt;
use std::io;

/// Asked again in a while, it may.
pub(super) const RETRY: u32 = 0x922;
const LOCKOUT: u32 = 0x921;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum TpmError {
    Io(io::Error),
    /// The TPM refused.
    Refused {
        command: &'static str,
        code: u32,
    },
    /// What it answered is no answer.
    Broken {
        command: &'static str,
        why: &'static str,
    },
}

impl TpmError {
    /// Whether it was a wrong password: another try with it may have the TPM lock itself.
    pub(super) fn is_wrong_password(&self) -> bool {
        const AUTH_FAIL: u32 = 0x08e;
        const BAD_AUTH: u32 = 0x0a2;
        match self {
            Self::Refused { code, .. } => matches!(plain(*code), AUTH_FAIL | BAD_AUTH),
            _ => false,
        }
    }
}

/// The code without the place that it is about.
fn plain(code: u32) -> u32 {
    if code & 0x080 != 0 {
        code & 0x0bf
    } else {
        code
    }
}

impl fmt::Display for TpmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (command, code) = match self {
            Self::Io(error) => return error.fmt(f),
            Self::Broken { command, why } => {
                return write!(f, "{command}: the TPM's answer cannot be read: {why}");
            }
            Self::Refused { command, code } => (command, *code),
        };
        let means = match plain(code) {
            0x08e | 0x0a2 => "wrong password",
            0x084 => "a value is out of range",
            0x08b => "there is no such handle",
            0x095 => "a size is wrong",
            0x09f => "the blob is not of this TPM, or its storage hierarchy was cleared",
            0x100 => "it was not started",
            0x120 => "it is disabled",
            0x14a => "nothing was written at that index",
            0x902 => "no memory for another key",
            0x903 => "no memory for another session",
            LOCKOUT => "it is locked after too many wrong passwords",
            RETRY => "it is busy",
            _ => return write!(f, "{command}: response code {code:#05x}"),
        };
        write!(f, "{command}: {means} (response code {code:#05x})")
    }
}

impl From<io::Error> for TpmError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
