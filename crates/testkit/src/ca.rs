//! A certificate authority for tests, able to make every mistake the standards name.
