//! The shell a long-running process lives in. It knows no domain: layered settings, supervised tasks,
//! signals, logging, readiness, the service manager, directories and limits.

pub mod layer;
pub mod limits;
pub mod logging;
pub mod paths;
pub mod readiness;
pub mod signals;
pub mod systemd;
pub mod tasks;
