//! Has the linker put what an executor runs side by side.
//!
//! One program holds every command, and the kernel maps 64 KiB of its file around each page that is used: the code of an
//! executor, a fifth of all, would otherwise have two thirds of it resident. The names in `executor.order` are those of
//! functions that ran in an executor (`bench/order.py` writes them), without what changes from build to build; one that is
//! no more does no harm.
//!
//! And has it pack relocations, a megabyte that is read from the first byte to the last at each start, where the C library
//! of this machine understands them.

use std::path::PathBuf;
use std::process::Command;
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
        // What the compiler takes to be cold may run all the same: each growth of a vector does.
        script.extend(["*(.text.", name, "* .text.unlikely.", name, "*)\n"]);
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
    if env::var("HOST") == env::var("TARGET") && glibc().is_some_and(|version| version >= (2, 36)) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
    Ok(())
}

/// Version of this machine's glibc. From 2.36 on it takes relocations in the form of `DT_RELR`.
fn glibc() -> Option<(u32, u32)> {
    let told = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    let told = String::from_utf8(told.ok()?.stdout).ok()?;
    let (major, minor) = told.trim().strip_prefix("glibc ")?.split_once('.')?;
    let minor = minor.split_once('.').map_or(minor, |(minor, _)| minor);
    Some((major.parse().ok()?, minor.parse().ok()?))
}
