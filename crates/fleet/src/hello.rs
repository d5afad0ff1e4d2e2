//! What an executor says of itself, checked against the limits that `fleet.proto` states.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use ah_identity_provider::{Code, Explained, ProviderKind};

use crate::proto;
use crate::store::HostRecord;

/// Version of the fleet protocol that this software speaks.
pub const PROTOCOL: u32 = 1;

/// Most bytes of a name.
pub const MAX_NAME_BYTES: usize = 253;
/// Most labels of one executor.
pub const MAX_LABELS: usize = 64;
/// Most bytes of a label's key.
pub const MAX_LABEL_KEY_BYTES: usize = 63;
/// Most bytes of a label's value.
pub const MAX_LABEL_VALUE_BYTES: usize = 255;
/// Most bytes of each other text of a hello.
const MAX_TEXT_BYTES: usize = 255;

/// A hello within its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Greeting {
    pub(crate) name: String,
    /// Tells a process that comes back from another with the same certificate. Never shown to anyone.
    pub(crate) instance: Box<str>,
    pub(crate) version: String,
    pub(crate) labels: Labels,
    pub(crate) host: HostRecord,
    pub(crate) provider: Option<ProviderKind>,
    /// Its clock when it said hello, where it told.
    pub(crate) clock: Option<SystemTime>,
}

impl Greeting {
    /// Checks `hello`. Whatever is beyond a limit is named, with the limit.
    pub(crate) fn parse(hello: proto::Hello) -> Result<Self, Explained> {
        if hello.protocol == 0 {
            return Err(usage("hello has no protocol version")
                .hint(format!("set Hello.protocol to {PROTOCOL}")));
        }
        within("name", &hello.name, 1, MAX_NAME_BYTES)?;
        within("instance_id", &hello.instance_id, 16, 64)?;
        within("version", &hello.version, 0, MAX_TEXT_BYTES)?;
        if hello.labels.len() > MAX_LABELS {
            return Err(usage(format!(
                "hello has {} labels, more than {MAX_LABELS}",
                hello.labels.len()
            )));
        }
        for (key, value) in &hello.labels {
            within("a label's key", key, 1, MAX_LABEL_KEY_BYTES)?;
            within("a label's value", value, 0, MAX_LABEL_VALUE_BYTES)?;
        }
        let host = hello.host.unwrap_or_default();
        for (field, value) in [
            ("host.hostname", &host.hostname),
            ("host.os", &host.os),
            ("host.arch", &host.arch),
            ("host.kernel", &host.kernel),
        ] {
            within(field, value, 0, MAX_TEXT_BYTES)?;
        }
        Ok(Self {
            name: hello.name,
            instance: hello.instance_id.into(),
            version: hello.version,
            labels: Labels::new(hello.labels),
            host: HostRecord {
                hostname: host.hostname,
                os: host.os,
                arch: host.arch,
                kernel: host.kernel,
                cpus: host.cpus,
                memory_bytes: host.memory_bytes,
            },
            provider: provider(&hello.provider),
            clock: moment(hello.clock_unix_ms),
        })
    }
}

/// The labels of an executor, as small as they can be kept: a map has room for eleven from its first one on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Labels(Box<[(Box<str>, Box<str>)]>);

impl Labels {
    fn new(labels: impl IntoIterator<Item = (String, String)>) -> Self {
        let labels = labels.into_iter();
        let mut labels: Box<[(Box<str>, Box<str>)]> = labels
            .map(|(key, value)| (key.into(), value.into()))
            .collect();
        labels.sort_unstable();
        Self(labels)
    }

    /// By their keys.
    pub(crate) fn to_map(&self) -> BTreeMap<String, String> {
        let labels = self.0.iter();
        labels
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect()
    }
}

/// 0 says nothing, and no clock stands before 1970.
fn moment(unix_ms: i64) -> Option<SystemTime> {
    let since = u64::try_from(unix_ms).ok().filter(|ms| *ms > 0)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(since))
}

/// A provider of a later version is not an error: it is unknown here.
fn provider(word: &str) -> Option<ProviderKind> {
    [
        ProviderKind::Dev,
        ProviderKind::Files,
        ProviderKind::Spiffe,
        ProviderKind::Vault,
        ProviderKind::Exec,
    ]
    .into_iter()
    .find(|kind| kind.as_str() == word)
}

/// Control characters are refused with the length: these texts end in terminals and logs.
fn within(field: &str, value: &str, least: usize, most: usize) -> Result<(), Explained> {
    if value.len() < least || value.len() > most {
        return Err(usage(format!(
            "{field} of the hello has {} bytes, not {least} to {most}",
            value.len()
        )));
    }
    if value.chars().any(char::is_control) {
        return Err(usage(format!(
            "{field} of the hello has a control character"
        )));
    }
    Ok(())
}

fn usage(text: impl Into<String>) -> Explained {
    Explained::new(Code::Usage, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> proto::Hello {
        proto::Hello {
            protocol: 7,
            name: "worker-1".into(),
            instance_id: "0123456789abcdef".into(),
            provider: "telepathy".into(),
            ..Default::default()
        }
    }

    #[test]
    fn newer_protocols_and_unknown_providers_are_tolerated() {
        let greeting = Greeting::parse(hello()).unwrap();
        assert_eq!(greeting.provider, None);
        assert_eq!(greeting.clock, None);
        assert_eq!(greeting.name, "worker-1");
    }

    #[test]
    fn whatever_clock_it_tells_of_is_a_moment_or_none() {
        assert_eq!(
            moment(1_000),
            Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1))
        );
        assert_eq!(
            (moment(0), moment(-1), moment(i64::MIN)),
            (None, None, None)
        );
        assert!(moment(i64::MAX).is_some());
    }

    #[test]
    fn each_limit_is_named() {
        type Spoil = fn(&mut proto::Hello);
        let cases: [(&str, Spoil); 6] = [
            ("protocol", |h| h.protocol = 0),
            ("name", |h| h.name.clear()),
            ("instance_id", |h| h.instance_id = "short".into()),
            ("label", |h| {
                h.labels.insert("k".repeat(64), String::new());
            }),
            ("labels", |h| {
                h.labels = (0..65).map(|n| (n.to_string(), String::new())).collect();
            }),
            ("control", |h| h.name = "a\u{1b}[2J".into()),
        ];
        for (word, spoil) in cases {
            let mut hello = hello();
            spoil(&mut hello);
            let error = Greeting::parse(hello).unwrap_err();
            assert_eq!(error.code, Code::Usage);
            assert!(error.text.contains(word), "{}", error.text);
        }
    }
}
