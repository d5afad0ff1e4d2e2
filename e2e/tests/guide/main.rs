//! The guides as printed, and what stands beside them, every binary ours.

mod attestors;
mod enrollment;
mod spiffe;
