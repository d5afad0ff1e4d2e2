//! The guides as printed, every binary ours.

mod spiffe;
