//! Disks that are full. They need root and util-linux.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::Process;

/// A small disk that only the programs started on it see, and that goes with this value.
pub struct SmallDisk {
    holder: Process,
    folder: PathBuf,
}

impl SmallDisk {
    /// In place of `folder`; `size` is that of tmpfs(5), such as `2m`.
    pub fn new(folder: &Path, size: &str) -> Self {
        let mount = format!(
            "mount -t tmpfs -o size={size} tmpfs '{}' && echo mounted && exec sleep infinity",
            folder.display()
        );
        let holder = Process::start(Command::new("unshare").args(["--mount", "sh", "-c", &mount]));
        holder.wait_for("mounted");
        Self {
            holder,
            folder: folder.to_owned(),
        }
    }

    /// `program`, which sees the disk.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        let namespace = format!("--mount=/proc/{}/ns/mnt", self.holder.pid());
        command.arg(namespace).arg(program);
        command
    }

    /// Where this process sees it.
    pub fn path(&self) -> PathBuf {
        let folder = self.folder.strip_prefix("/").unwrap_or(&self.folder);
        Path::new(&format!("/proc/{}/root", self.holder.pid())).join(folder)
    }
}

/// Fills the file system of `folder` to the last byte; room comes back when the file that it returns is removed.
pub fn fill(folder: &Path) -> PathBuf {
    let path = folder.join("filler");
    let mut file = std::fs::File::create(&path).expect("a file on the disk");
    for block in [65_536, 4_096, 512, 1] {
        while file.write_all(&vec![b'x'; block]).is_ok() {}
    }
    path
}
