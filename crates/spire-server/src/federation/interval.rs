//! How long until a bundle is asked for again.

use std::time::Duration;

use ah_identity_provider::CertificateFacts;
use ah_spire_wire::model::Bundle;

/// Nobody asks more often than this for what may be asked for by its hint alone.
const LEAST_HINT: Duration = Duration::from_secs(60);

/// For a bundle that says nothing.
const DEFAULT: Duration = Duration::from_secs(5 * 60);

/// A hint counts as this at most, so that no document can keep itself from being replaced.
const MOST_HINT: Duration = Duration::from_secs(24 * 60 * 60);

/// Times that it is tried within a refresh hint, so that some may fail.
const ATTEMPTS: u32 = 4;

/// Part of the shortest life of a CA certificate that counts as the hint of a bundle without one.
const PART_OF_LIFE: u32 = 10;

/// After an attempt that brought the bundle `fetched`, or none while `local` is the one before. Without any, the wait for
/// whoever sets the first one by hand is short.
pub(super) fn until_next(fetched: Option<&Bundle>, local: Option<&Bundle>) -> Duration {
    match (fetched, local) {
        (Some(bundle), _) => hint(bundle).unwrap_or_else(|| by_lives(bundle)) / ATTEMPTS,
        (None, Some(bundle)) => hint(bundle).map_or(DEFAULT, |hint| hint / ATTEMPTS),
        (None, None) => LEAST_HINT,
    }
}

fn hint(bundle: &Bundle) -> Option<Duration> {
    let seconds = u64::try_from(bundle.refresh_hint).ok()?;
    (seconds > 0).then(|| Duration::from_secs(seconds).clamp(LEAST_HINT, MOST_HINT))
}

fn by_lives(bundle: &Bundle) -> Duration {
    let life = |der: &[u8]| {
        let facts = CertificateFacts::from_der(der).ok()?;
        facts.not_after.duration_since(facts.not_before).ok()
    };
    let shortest = bundle.x509.iter().filter_map(|ca| life(&ca.der)).min();
    let part = shortest.map_or(Duration::ZERO, |life| life / PART_OF_LIFE);
    part.clamp(LEAST_HINT, MOST_HINT)
}

#[cfg(test)]
mod tests {
    use ah_testkit::ca::TestCa;
    use spiffe::TrustDomain;

    use ah_spire_wire::model::X509Authority;

    use super::*;

    fn bundle(refresh_hint: i64, life: Option<Duration>) -> Bundle {
        let authority = |life| X509Authority {
            der: TestCa::root("a.test")
                .valid_for(life)
                .issue()
                .der()
                .to_vec(),
            tainted: false,
        };
        Bundle {
            trust_domain: TrustDomain::new("a.test").unwrap(),
            x509: life.map(authority).into_iter().collect(),
            jwt: Vec::new(),
            wit: Vec::new(),
            refresh_hint,
            sequence: 0,
        }
    }

    // SV-44, and upstream's rules: four attempts within the hint.
    #[test]
    fn the_hint_is_kept_to_within_bounds() {
        let fetched = |bundle: &Bundle| until_next(Some(bundle), None).as_secs();
        let kept = |bundle: &Bundle| until_next(None, Some(bundle)).as_secs();
        for (hint, seconds) in [(300, 75), (1, 15), (60, 15), (i64::MAX, 6 * 3600)] {
            assert_eq!(fetched(&bundle(hint, None)), seconds);
            assert_eq!(kept(&bundle(hint, None)), seconds);
        }
        let day = Duration::from_secs(24 * 3600);
        assert_eq!(fetched(&bundle(0, Some(day))), 2160);
        assert_eq!(fetched(&bundle(0, Some(day * 3650))), 6 * 3600);
        assert_eq!(fetched(&bundle(0, None)), 15);
        assert_eq!(kept(&bundle(0, Some(day))), 300);
        assert_eq!(until_next(None, None).as_secs(), 60);
    }
}
