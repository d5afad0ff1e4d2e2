//! Has the linker put what an executor runs side by side.
//!
//! One program holds every command, and the kernel maps 64 KiB of its file around each page that is used: the code of an
//! executor, a fifth of all, would otherwise have two thirds of it resident. The names in `executor.order` are those of
//! functions that ran in an executor (`bench/order.py` writes them), without what changes from build to build; one that is
//! no more does no harm.

use std::path::PathBuf;
use std::{env, fs, io};

const ORDER: &str = "executor.order";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed={ORDER}");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|is| is == value);
    let known = is("CARGO_CFG_TARGET_OS", "linux")
        && is("CARGO_CFG_TARGET_ENV", "gnu")
        && is("CARGO_CFG_TARGET_ARCH", "x86_64");
    if !known || !is("PROFILE", "release") {
        return Ok(());
    }
    let mut script = String::from("SECTIONS { .text.executor : {\n");
    for name in fs::read_to_string(ORDER)?.lines() {
        script.extend(["*(.text.", name, "*)\n"]);
    }
    script.push_str("} } INSERT BEFORE .text;\n");
    let out = env::var_os("OUT_DIR")
        .map(PathBuf::from)
        .unwrap_or_default();
    let script_file = out.join("executor.ld");
    fs::write(&script_file, script)?;
    println!(
        "cargo::rustc-link-arg-bins=-Wl,-T,{}",
        script_file.display()
    );
    Ok(())
}
