//! Enrollments for the tests of the store.

use std::collections::BTreeMap;

use ah_fleet::store::{CertificateRecord, Change, Enrollment, ExecutorId, HostRecord};
use ah_identity_provider::ProviderKind;
use time::{Duration, OffsetDateTime};

pub(crate) fn id(text: &str) -> ExecutorId {
    text.into()
}

/// `seconds` after an hour that is past.
pub(crate) fn at(seconds: i64) -> OffsetDateTime {
    time::macros::datetime!(2025-01-01 12:00 UTC) + Duration::seconds(seconds)
}

/// An enrollment at that second with a certificate of its own.
pub(crate) fn enrollment(name: &str, second: i64) -> Enrollment {
    Enrollment {
        id: id(name),
        name: name.to_owned(),
        provider: Some(ProviderKind::Files),
        version: "1.0.0".to_owned(),
        labels: BTreeMap::new(),
        host: HostRecord::default(),
        certificate: CertificateRecord {
            serial: format!("{second:08x}"),
            sha256: format!("{second:064x}"),
            not_after: at(second + 3_600),
        },
        at: at(second),
    }
}

/// The change that writes it down.
pub(crate) fn enrolled(enrollment: &Enrollment) -> Change {
    Change::Enrolled(Box::new(enrollment.clone()))
}
