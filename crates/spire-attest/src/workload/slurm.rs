//! `slurm`: the job and the step that a process belongs to.
//!
//! `slurmstepd` makes a control group for each step below its own scope, which is directly below `/system.slice`:
//! `/system.slice/[<node>_]slurmstepd.scope/<job>/step_<step>/…`, where the job is `job_<number>` or a SLUID. Only root
//! makes groups there. A user may make groups of any name below `/user.slice`, and those count for nothing.

use crate::peer::PeerInfo;
use crate::workload::{ProcRoot, WorkloadAttestor, cgroup};
use crate::{AttestError, Builtin, Selector};

/// The attestor. It has no settings.
#[derive(Clone, Debug)]
pub struct Slurm {
    proc: ProcRoot,
}

impl Slurm {
    /// The attestor that reads processes in `proc`, which has to be procfs of this PID namespace.
    pub fn new(proc: ProcRoot) -> Self {
        Self { proc }
    }
}

impl WorkloadAttestor for Slurm {
    fn name(&self) -> &str {
        Builtin::Slurm.name()
    }

    async fn attest(&self, peer: &PeerInfo) -> Result<Vec<Selector>, AttestError> {
        let paths = cgroup::paths(&self.proc, peer.pid())?;
        let mut found: Option<Step<'_>> = None;
        for step in paths.iter().filter_map(|path| step_of(path)) {
            if let Some(other) = found.replace(step)
                && other != step
            {
                return Err(AttestError::internal(
                    format!("multiple Slurm jobs found in cgroups ({other}, {step})"),
                    "look at /proc/<pid>/cgroup of the process: its control groups are of different steps",
                ));
            }
        }
        let selector =
            |key: &str, value: &str| Selector::new(Builtin::Slurm.name(), format!("{key}:{value}"));
        Ok(found.map_or_else(Vec::new, |step| {
            let job = match step.job.strip_prefix("job_") {
                Some(number) => selector("job_id", number),
                None => selector("sluid", step.job),
            };
            vec![job, selector("step", step.step)]
        }))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Step<'a> {
    job: &'a str,
    step: &'a str,
}

impl std::fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/step_{}", self.job, self.step)
    }
}

fn step_of(path: &str) -> Option<Step<'_>> {
    let mut names = path.strip_prefix("/system.slice/")?.split('/');
    names
        .next()
        .filter(|scope| scope.ends_with("slurmstepd.scope"))?;
    let job = names.next().filter(|job| is_job(job))?;
    let step = names
        .next()?
        .strip_prefix("step_")
        .filter(|step| !step.is_empty())?;
    Some(Step { job, step })
}

/// `job_<number>`, or a SLUID: `s` with letters and digits.
fn is_job(name: &str) -> bool {
    let all =
        |text: &str, fits: fn(&u8) -> bool| !text.is_empty() && text.as_bytes().iter().all(fits);
    match name.strip_prefix("job_") {
        Some(number) => all(number, u8::is_ascii_digit),
        None => name
            .strip_prefix('s')
            .is_some_and(|rest| all(rest, u8::is_ascii_alphanumeric)),
    }
}
