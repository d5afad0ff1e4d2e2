//! When an SVID is replaced.

use std::time::{Duration, SystemTime};

/// A lifetime has to leave this much besides the availability target, else the target is not heeded.
const GRACE: Duration = Duration::from_secs(12 * 60 * 60);

/// What a fleet that was started in one instant is spread over, with an availability target.
const TARGET_SPREAD: Duration = Duration::from_secs(10 * 60);

/// The moment from which an SVID is to be replaced: when half of its life is left, 10 % more or less, or earlier to
/// have `availability_target` left at any time. `jitter` is from 0 to 1.
pub(crate) fn rotate_at(
    not_before: SystemTime,
    not_after: SystemTime,
    availability_target: Option<Duration>,
    jitter: f64,
) -> SystemTime {
    let life = not_after.duration_since(not_before).unwrap_or_default();
    let half = (life / 2).mul_f64(0.9 + 0.2 * jitter);
    let target = availability_target
        .filter(|target| life.checked_sub(*target).is_some_and(|rest| rest > GRACE))
        .map(|target| target + TARGET_SPREAD.mul_f64(jitter));
    let left = target.map_or(half, |target| target.max(half));
    not_after.checked_sub(left).unwrap_or(not_before)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;

    fn at(hours: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(hours * HOUR)
    }

    fn left(life: u64, target: Option<u64>, jitter: f64) -> Duration {
        let target = target.map(|hours| Duration::from_secs(hours * HOUR));
        let at_ = rotate_at(at(0), at(life), target, jitter);
        at(life).duration_since(at_).unwrap()
    }

    #[test]
    fn half_of_the_life_is_left_more_or_less() {
        assert_eq!(left(2, None, 0.5), Duration::from_secs(HOUR));
        assert_eq!(left(2, None, 0.0), Duration::from_secs(3240));
        assert_eq!(left(2, None, 1.0), Duration::from_secs(3960));
    }

    #[test]
    fn the_target_is_kept_where_the_life_is_long_enough() {
        assert_eq!(left(37, Some(24), 0.0), Duration::from_secs(24 * HOUR));
        assert_eq!(
            left(37, Some(24), 1.0),
            Duration::from_secs(24 * HOUR + 600)
        );
        // 36 hours leave no grace besides 24.
        assert_eq!(left(36, Some(24), 0.5), Duration::from_secs(18 * HOUR));
        // Half is earlier than the target.
        assert_eq!(left(100, Some(24), 0.5), Duration::from_secs(50 * HOUR));
    }
}
