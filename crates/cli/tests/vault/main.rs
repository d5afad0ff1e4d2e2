//! Identities from a real server: OpenBao, set up and asked as the guides print it, and in all its troubles.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[expect(
    dead_code,
    reason = "shared with the tests of faults, which use more of it"
)]
#[path = "../faults/crowd.rs"]
mod crowd;
mod curl;
mod faults;
mod fleet;
mod guide;
#[expect(
    dead_code,
    reason = "shared with the guides' tests, which use more of it"
)]
#[path = "../guides/kit.rs"]
mod kit;
mod load;
mod logins;
mod moving;
mod namespaces;
#[expect(
    dead_code,
    reason = "shared with the tests of faults, which use more of it"
)]
#[path = "../faults/site.rs"]
mod site;
mod tls;
mod tokens;
mod tokens_of_others;
mod walk;
