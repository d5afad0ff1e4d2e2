//! `profiling_freq` and `profiling_names`: a file of each profile, again and again.

use std::io;
use std::path::Path;
use std::time::Duration;

use ah_spire_plugin::settings::Profiling;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::cpu::Cpu;
use crate::metrics::Program;

/// Below the directory that the program was started in.
const FOLDER: &str = ".profiles";

/// Nothing where `profiling_freq` is 0.
pub(super) async fn write(settings: &Profiling, program: Program, stop: CancellationToken) {
    if settings.frequency == 0 {
        return;
    }
    for name in settings.names.iter().filter(|name| *name != "cpu") {
        tracing::warn!(
            name,
            "profiling_names: this program has the profile cpu alone"
        );
    }
    if !settings.names.iter().any(|name| name == "cpu") {
        tracing::warn!(
            "profiling_freq: no profile is written, since profiling_names has none that there is"
        );
        return;
    }
    write_to(Path::new(FOLDER), settings.frequency, program, stop).await;
}

pub(super) async fn write_to(
    folder: &Path,
    seconds: u64,
    program: Program,
    stop: CancellationToken,
) {
    loop {
        let cpu = Cpu::start();
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(seconds)) => {}
        }
        let made = match cpu {
            Ok(cpu) => cpu.finish().await,
            Err(why) => Err(why),
        };
        let written = match made {
            Ok(profile) => write_one(folder, program, &profile)
                .await
                .map_err(|error| error.to_string()),
            Err(why) => Err(why),
        };
        if let Err(error) = written {
            tracing::warn!(folder = %folder.display(), error, "a profile cannot be written");
        }
    }
}

/// Nobody sees half of one.
async fn write_one(folder: &Path, program: Program, profile: &[u8]) -> io::Result<()> {
    let tag = match program {
        Program::Server => "server",
        Program::Agent => "agent",
    };
    let now = OffsetDateTime::now_utc();
    let (date, clock) = (now.date(), now.time());
    let (hour, minute, second) = clock.as_hms();
    let name = format!("{date}_{hour:02}{minute:02}{second:02}_{tag}_cpu.pb.gz");
    let unfinished = folder.join(format!("{tag}_current_cpu_profile"));
    tokio::fs::create_dir_all(folder).await?;
    tokio::fs::write(&unfinished, profile).await?;
    tokio::fs::rename(&unfinished, folder.join(name)).await
}
