//! Real `ah` processes, started, watched and ended by tests.
