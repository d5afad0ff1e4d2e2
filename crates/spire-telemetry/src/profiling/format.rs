//! What was sampled as pprof's `profile.proto` has it.

use std::collections::HashMap;
use std::hash::Hash;
use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use pprof::{Report, Symbol};
use prost::Message;

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub(super) struct ValueType {
    #[prost(int64, tag = "1")]
    pub(super) kind: i64,
    #[prost(int64, tag = "2")]
    pub(super) unit: i64,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub(super) struct Sample {
    /// The innermost first.
    #[prost(uint64, repeated, tag = "1")]
    pub(super) locations: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    pub(super) values: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    pub(super) labels: Vec<Label>,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub(super) struct Label {
    #[prost(int64, tag = "1")]
    pub(super) key: i64,
    #[prost(int64, tag = "2")]
    pub(super) text: i64,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub(super) struct Location {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    /// What was inlined first.
    #[prost(message, repeated, tag = "4")]
    pub(super) lines: Vec<Line>,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub(super) struct Line {
    #[prost(uint64, tag = "1")]
    pub(super) function: u64,
    #[prost(int64, tag = "2")]
    pub(super) line: i64,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub(super) struct Function {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(int64, tag = "2")]
    pub(super) name: i64,
    #[prost(int64, tag = "3")]
    pub(super) system_name: i64,
    #[prost(int64, tag = "4")]
    pub(super) file: i64,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub(super) struct Profile {
    #[prost(message, repeated, tag = "1")]
    pub(super) sample_types: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    pub(super) samples: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    pub(super) locations: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    pub(super) functions: Vec<Function>,
    /// The first is empty.
    #[prost(string, repeated, tag = "6")]
    pub(super) texts: Vec<String>,
    /// Nanoseconds since 1970.
    #[prost(int64, tag = "9")]
    pub(super) time: i64,
    /// Nanoseconds.
    #[prost(int64, tag = "10")]
    pub(super) duration: i64,
    #[prost(message, optional, tag = "11")]
    pub(super) period_type: Option<ValueType>,
    /// Nanoseconds between two samples.
    #[prost(int64, tag = "12")]
    pub(super) period: i64,
}

/// `report` of a profiler that took `frequency` samples a second.
pub(super) fn gzipped(report: &Report, frequency: i32) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&profile(report, frequency).encode_to_vec())?;
    encoder.finish()
}

fn profile(report: &Report, frequency: i32) -> Profile {
    let mut texts = Table::default();
    texts.number(String::new());
    let mut functions = Table::default();
    let mut locations = Table::default();
    let mut text = |text: &str| signed(texts.number(text.to_owned()));
    let period = 1_000_000_000 / i64::from(frequency.max(1));
    let samples = ValueType {
        kind: text("samples"),
        unit: text("count"),
    };
    let cpu = ValueType {
        kind: text("cpu"),
        unit: text("nanoseconds"),
    };
    let thread = text("thread");
    let mut line = |symbol: &Symbol| {
        let file = symbol.filename.as_deref().map(|it| it.to_string_lossy());
        let function = Function {
            id: 0,
            name: text(&symbol.name()),
            system_name: text(&symbol.sys_name()),
            file: text(&file.unwrap_or_default()),
        };
        Line {
            function: functions.number(function) + 1,
            line: symbol.lineno.unwrap_or(0).into(),
        }
    };
    let mut told = Vec::new();
    for (frames, count) in &report.data {
        let stack = frames.frames.iter().map(|inlined| {
            let lines = inlined.iter().map(&mut line).collect::<Vec<_>>();
            locations.number(lines) + 1
        });
        let stack = stack.collect();
        let count = i64::try_from(*count).unwrap_or(i64::MAX);
        told.push((frames.thread_name.as_str(), stack, count));
    }
    let told = told.into_iter().map(|(name, locations, count)| Sample {
        locations,
        values: vec![count, count.saturating_mul(period)],
        labels: vec![Label {
            key: thread,
            text: text(name),
        }],
    });
    let told = told.collect();
    let nanoseconds = |it: std::time::Duration| i64::try_from(it.as_nanos()).unwrap_or(i64::MAX);
    let start: SystemTime = report.timing.start_time;
    Profile {
        sample_types: vec![samples, cpu.clone()],
        samples: told,
        locations: locations.all(|id, lines| Location { id, lines }),
        functions: functions.all(|id, function| Function { id, ..function }),
        texts: texts.all(|_, text| text),
        time: nanoseconds(start.duration_since(UNIX_EPOCH).unwrap_or_default()),
        duration: nanoseconds(report.timing.duration),
        period_type: Some(cpu),
        period,
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Equal things once, by the number at which they first came.
struct Table<T>(HashMap<T, u64>);

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Eq + Hash> Table<T> {
    fn number(&mut self, of: T) -> u64 {
        let next = self.0.len() as u64;
        *self.0.entry(of).or_insert(next)
    }

    /// In their order, with ids from 1.
    fn all<U>(self, mut made: impl FnMut(u64, T) -> U) -> Vec<U> {
        let mut all = self.0.into_iter().collect::<Vec<_>>();
        all.sort_unstable_by_key(|(_, number)| *number);
        let all = all.into_iter();
        all.map(|(it, number)| made(number + 1, it)).collect()
    }
}
