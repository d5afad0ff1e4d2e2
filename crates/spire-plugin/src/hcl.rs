//! HCL 1, the language of SPIRE's configuration files, and its JSON form (SR-6).

mod ast;

pub use self::ast::{Item, Key, KeyStyle, List, Literal, Object, Position, Scalar, Value};
