//! Reads what M3's collectors are told. Written from Thrift's description of its compact protocol, apart from what
//! writes it.

use std::collections::BTreeMap;

/// A call of a collector.
pub(super) struct Message {
    pub(super) sequence: u64,
    pub(super) common: String,
    /// `name type value tag=value …`
    pub(super) metrics: Vec<String>,
}

enum Value {
    Int(i64),
    Double(f64),
    Text(String),
    List(Vec<Value>),
    Struct(BTreeMap<i64, Value>),
}

impl Value {
    fn field(&self, id: i64) -> &Value {
        match self {
            Self::Struct(fields) => &fields[&id],
            _ => panic!("no struct"),
        }
    }

    fn has(&self, id: i64) -> bool {
        matches!(self, Self::Struct(fields) if fields.contains_key(&id))
    }

    fn int(&self) -> i64 {
        match self {
            Self::Int(value) => *value,
            _ => panic!("no number"),
        }
    }

    fn double(&self) -> f64 {
        match self {
            Self::Double(value) => *value,
            _ => panic!("no double"),
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            _ => panic!("no text"),
        }
    }

    fn items(&self) -> &[Value] {
        match self {
            Self::List(items) => items,
            _ => panic!("no list"),
        }
    }
}

pub(super) fn read(bytes: &[u8]) -> Message {
    let mut reader = Reader(bytes);
    assert_eq!([reader.byte(), reader.byte()], [0x82, 0x81]);
    let sequence = reader.unsigned();
    assert_eq!(reader.text(), "emitMetricBatchV2");
    let arguments = reader.fields();
    assert!(reader.0.is_empty(), "nothing follows the message");
    let batch = arguments.field(1);
    Message {
        sequence,
        common: tags(batch.field(2)),
        metrics: batch.field(1).items().iter().map(metric).collect(),
    }
}

fn metric(metric: &Value) -> String {
    let value = metric.field(2);
    // Nanoseconds, of this century.
    assert!(metric.field(3).int() > 1_700_000_000_000_000_000);
    assert_eq!(value.field(4).int(), 0);
    let value = match value.field(1).int() {
        1 => format!("counter {}", value.field(2).int()),
        2 => format!("gauge {}", value.field(3).double()),
        other => panic!("no type: {other}"),
    };
    let tags = match metric.has(4) {
        true => format!(" {}", tags(metric.field(4))),
        false => String::new(),
    };
    format!("{} {value}{tags}", metric.field(1).text())
}

fn tags(tags: &Value) -> String {
    let tags = tags.items().iter();
    let told = tags.map(|tag| format!("{}={}", tag.field(1).text(), tag.field(2).text()));
    told.collect::<Vec<_>>().join(" ")
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> u8 {
        self.take(1)[0]
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken.to_vec()
    }

    fn unsigned(&mut self) -> u64 {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte();
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        value
    }

    fn signed(&mut self) -> i64 {
        let value = self.unsigned();
        (value >> 1) as i64 ^ -((value & 1) as i64)
    }

    fn text(&mut self) -> String {
        let length = self.unsigned() as usize;
        String::from_utf8(self.take(length)).unwrap()
    }

    fn fields(&mut self) -> Value {
        let mut fields = BTreeMap::new();
        let mut id = 0;
        loop {
            let header = self.byte();
            if header == 0 {
                return Value::Struct(fields);
            }
            id = match header >> 4 {
                0 => self.signed(),
                step => id + i64::from(step),
            };
            fields.insert(id, self.value(header & 0xf));
        }
    }

    fn value(&mut self, kind: u8) -> Value {
        match kind {
            5 | 6 => Value::Int(self.signed()),
            7 => Value::Double(f64::from_le_bytes(self.take(8).try_into().unwrap())),
            8 => Value::Text(self.text()),
            9 => {
                let header = self.byte();
                let count = match header >> 4 {
                    15 => self.unsigned(),
                    few => few.into(),
                };
                Value::List((0..count).map(|_| self.value(header & 0xf)).collect())
            }
            12 => self.fields(),
            other => panic!("no type: {other}"),
        }
    }
}
