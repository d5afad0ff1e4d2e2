//! What is wrong with a run or with its output, in words (EX-4). stderr is quoted, stdout never.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::SystemTime;

use super::command::ExecCommand;
use super::run::RunFault;
use super::stderr::Tail;
use crate::chain::ArrangeError;
use crate::clock::rfc3339;
use crate::pem::PemError;
use crate::{CertificateError, Code, Explained, KeyError, ProviderError};

/// Which part of the output is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it.
    Output,
    /// `certificate_chain`
    Chain,
    /// `private_key`
    Key,
    /// `ca_bundle`
    Bundle,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Output => "the output",
            Self::Chain => "certificate_chain",
            Self::Key => "private_key",
            Self::Bundle => "ca_bundle",
        }
    }
}

/// Why an output gives no identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum OutputFault {
    Nothing,
    NotJson {
        line: usize,
        column: usize,
    },
    WrongFields {
        line: usize,
        column: usize,
    },
    Version(u64),
    NotAString(Part),
    /// In words that quote nothing.
    Pem(Part, String),
    KeyMismatch {
        subject: String,
        certificate_key: String,
        private_key: String,
    },
    Key(KeyError),
    Certificate(CertificateError),
    NobodyTrusted,
    Expired {
        serial: String,
        not_after: SystemTime,
        now: SystemTime,
    },
}

impl OutputFault {
    /// What is wrong with the PEM in `part`. Labels that are not of RFC 7468 are words of the output and left out.
    pub(super) fn pem(part: Part, error: PemError) -> Self {
        let known = |label: &String| {
            let mut all = KNOWN_LABELS.iter();
            all.any(|known| known == label)
        };
        let name = |label: String| match known(&label) {
            true => label,
            false => "unknown".to_owned(),
        };
        let error = match error {
            PemError::Unterminated { label, line } => PemError::Unterminated {
                label: name(label),
                line,
            },
            PemError::Base64 { label, line } => PemError::Base64 {
                label: name(label),
                line,
            },
            PemError::NoCertificate(found) => {
                PemError::NoCertificate(found.into_iter().filter(known).collect())
            }
            PemError::NoKey(found) => PemError::NoKey(found.into_iter().filter(known).collect()),
            PemError::Encrypted | PemError::LegacyEncrypted => {
                return Self::Pem(part, "the private key is encrypted".to_owned());
            }
            other => other,
        };
        Self::Pem(part, error.to_string())
    }
}

const KNOWN_LABELS: [&str; 9] = [
    "CERTIFICATE",
    "X509 CERTIFICATE",
    "TRUSTED CERTIFICATE",
    "CERTIFICATE REQUEST",
    "PRIVATE KEY",
    "RSA PRIVATE KEY",
    "EC PRIVATE KEY",
    "ENCRYPTED PRIVATE KEY",
    "EC PARAMETERS",
];

impl From<ArrangeError> for OutputFault {
    fn from(error: ArrangeError) -> Self {
        match error {
            ArrangeError::NoLeaf {
                subject,
                certificate_key,
                private_key,
            } => Self::KeyMismatch {
                subject,
                certificate_key,
                private_key,
            },
            ArrangeError::Key(error) => Self::Key(error),
        }
    }
}

/// Says what is wrong with the runs of one command. Its arguments may hold secrets and are not told.
pub(super) struct Told<'a> {
    pub(super) command: &'a ExecCommand,
}

impl Told<'_> {
    pub(super) fn failed_run(&self, fault: &RunFault) -> ProviderError {
        let program = self.command.program();
        match fault {
            RunFault::Start(error) => self.not_started(error),
            RunFault::Lost(error) => ProviderError::Retry(
                Explained::new(
                    Code::Other,
                    format!("the identity command {program} was lost"),
                )
                .cause(error)
                .hint("check the limits of open files and processes: ulimit -a"),
            ),
            RunFault::Failed { status, stderr } => {
                let text = format!("the identity command {program} {}", ending(*status));
                ProviderError::Retry(
                    said(Explained::new(Code::Other, text), stderr)
                        .hint(self.by_hand(Some(*status))),
                )
            }
            RunFault::TimedOut { after, stderr } => {
                let text = format!(
                    "the identity command {program} did not end within {after:?} and was killed"
                );
                ProviderError::Retry(said(Explained::new(Code::Unavailable, text), stderr).hint(
                    format!(
                        "see by hand what it waits for, or allow more with --exec-timeout; {}",
                        self.by_hand(None)
                    ),
                ))
            }
            RunFault::TooMuch { stderr } => {
                let text = format!(
                    "the identity command {program} printed more than 1 MiB and was killed"
                );
                ProviderError::Retry(
                    said(Explained::new(Code::Other, text), stderr).hint(FORMAT_HINT),
                )
            }
        }
    }

    pub(super) fn bad_output(&self, fault: &OutputFault, stderr: &Tail) -> ProviderError {
        let program = self.command.program();
        let what = format!("cannot use the output of the identity command {program}");
        let other = |why: String| Explained::new(Code::Other, format!("{what}: {why}"));
        let explained = match fault {
            OutputFault::Nothing => other("it exited with code 0 and printed nothing".to_owned()),
            OutputFault::NotJson { line, column } => other(format!(
                "it begins with {{ and is no JSON from line {line}, column {column}"
            )),
            OutputFault::WrongFields { line, column } => other(format!(
                "the JSON object lacks a field or has one of the wrong type (line {line}, column {column})"
            )),
            OutputFault::Version(version) => other(format!(
                "the JSON object has version {version}, and version 1 is known"
            )),
            OutputFault::NotAString(part) => other(format!("{} is not a string", part.name())),
            OutputFault::Pem(part, why) => other(format!("{}: {why}", part.name())),
            OutputFault::Key(error) => other(error.to_string()),
            OutputFault::Certificate(error) => other(error.to_string()),
            OutputFault::NobodyTrusted => other("it has no authority to trust".to_owned()),
            OutputFault::KeyMismatch {
                subject,
                certificate_key,
                private_key,
            } => Explained::new(Code::KeyMismatch, "private key does not match certificate")
                .cause(format!("both are from the identity command {program}"))
                .cause(format!(
                    "certificate ({subject}) has the public key SHA-256 {certificate_key}"
                ))
                .cause(format!(
                    "private key has the public key SHA-256 {private_key}"
                )),
            OutputFault::Expired {
                serial,
                not_after,
                now,
            } => Explained::new(
                Code::ExpiredOrNotYetValid,
                "certificate has expired or is not yet valid",
            )
            .cause(format!(
                "the identity command {program} printed certificate {serial}, which was valid until {}; the clock here says {}",
                rfc3339(*not_after),
                rfc3339(*now)
            )),
        };
        let hint = match fault {
            OutputFault::KeyMismatch { .. } => {
                "print the key that the certificate was made for, and only that one".to_owned()
            }
            OutputFault::NobodyTrusted => {
                "print the certificates of the authorities after the chain, or as ca_bundle; or name them with --ca"
                    .to_owned()
            }
            OutputFault::Expired { .. } => {
                "let the command print a new certificate, and check the clock with `date -u`".to_owned()
            }
            OutputFault::Pem(_, why) if why.contains("encrypted") => {
                "print the private key without a passphrase: openssl pkey -in FILE".to_owned()
            }
            OutputFault::Nothing => self.by_hand(None),
            _ => FORMAT_HINT.to_owned(),
        };
        ProviderError::Retry(said(explained, stderr).hint(hint))
    }

    /// Passes only when somebody puts the program there: ER-8, ER-9 and what else a system answers.
    fn not_started(&self, error: &io::Error) -> ProviderError {
        let program = self.command.program();
        ProviderError::Operator(match error.kind() {
            io::ErrorKind::NotFound => Explained::new(
                Code::NoSuchFile,
                format!("no such file: {program}"),
            )
            .cause("--exec-command names it, or the interpreter in its first line does not exist")
            .hint(format!(
                "give the whole path of the program; `command -v {program}` shows where it is"
            )),
            io::ErrorKind::PermissionDenied => Explained::new(
                Code::PermissionDenied,
                format!("permission denied running {program}"),
            )
            .cause("--exec-command names it")
            .hint(format!(
                "chmod +x {program}, and let the user of this process into every directory above"
            )),
            _ if error.raw_os_error() == Some(nix::errno::Errno::ENOEXEC as i32) => {
                Explained::new(Code::Other, format!("cannot run {program}"))
                    .cause(error)
                    .hint(
                        "a script begins with a line that names its interpreter, such as #!/bin/sh",
                    )
            }
            // Too many processes or too little memory, for now.
            _ => {
                return ProviderError::Retry(
                    Explained::new(Code::Unavailable, format!("cannot run {program}"))
                        .cause(error)
                        .hint("check the limits of processes and memory: ulimit -a"),
                );
            }
        })
    }

    fn by_hand(&self, status: Option<ExitStatus>) -> String {
        match status.and_then(|status| status.code()) {
            Some(126) => "126 is what a shell says of a file that it may not execute: chmod +x it".to_owned(),
            Some(127) => "127 is what a shell says of a program that it cannot find: give whole paths, since a service's PATH is short".to_owned(),
            _ => format!(
                "run {} by hand as the user of this process, with AH_ROLE, AH_NAME and AH_REASON=initial set",
                self.command.program()
            ),
        }
    }
}

const FORMAT_HINT: &str = "print PEM blocks (chain leaf first, one private key, authorities) or one JSON object with version 1, \
     certificate_chain, private_key and ca_bundle, at most 1 MiB, and nothing else on stdout";

/// Adds what the command said on stderr.
fn said(mut explained: Explained, stderr: &Tail) -> Explained {
    for line in stderr.lines() {
        explained = explained.cause(format!("stderr: {line}"));
    }
    explained
}

fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => match nix::sys::signal::Signal::try_from(signal) {
            Ok(name) => format!("was ended by {name}"),
            Err(_) => format!("was ended by signal {signal}"),
        },
        (None, None) => "ended without success".to_owned(),
    }
}
