use ah_spire_attest::peer::PeerInfo;
use ah_spire_attest::workload::slurm::Slurm;
use ah_spire_attest::workload::{ProcRoot, WorkloadAttestor};

use crate::cgroups::{FakeProc, Grouped, this_process, unique};

async fn selectors(proc: ProcRoot, peer: &PeerInfo) -> Result<Vec<String>, String> {
    let found = Slurm::new(proc).attest(peer).await;
    let found = found.map_err(|error| error.to_string())?;
    Ok(found.iter().map(ToString::to_string).collect())
}

async fn of(cgroup: &str) -> Result<Vec<String>, String> {
    selectors(FakeProc::with(cgroup).root(), &this_process()).await
}

#[tokio::test]
async fn a_step_has_its_job_and_its_name() {
    for (path, expected) in [
        (
            "slurmstepd.scope/s5K1KKYAYG5D00/step_0/user/task_0",
            ["slurm:sluid:s5K1KKYAYG5D00", "slurm:step:0"],
        ),
        (
            "slurmstepd.scope/job_3385/step_batch/slurm",
            ["slurm:job_id:3385", "slurm:step:batch"],
        ),
        (
            "slurmstepd.scope/job_42/step_extern",
            ["slurm:job_id:42", "slurm:step:extern"],
        ),
        (
            "node1_slurmstepd.scope/job_100/step_1/slurm",
            ["slurm:job_id:100", "slurm:step:1"],
        ),
    ] {
        let found = of(&format!("1:cpu:/\n0::/system.slice/{path}\n")).await;
        assert_eq!(found.unwrap(), expected, "{path}");
    }
}

// Users may make groups of any name where they are.
#[tokio::test]
async fn what_is_not_slurms_own_has_none() {
    for path in [
        "/",
        "/system.slice/docker-0123456789abcdef.scope",
        "/user.slice/user-1000.slice/user@1000.service/slurmstepd.scope/job_999/step_0",
        "/user.slice/user-1000.slice/system.slice/slurmstepd.scope/job_999/step_0",
        "/system.slice/x.service/slurmstepd.scope/job_999/step_0",
        "/../system.slice/slurmstepd.scope/job_999/step_0",
        "/system.slice/slurmstepd.scope.x/job_999/step_0",
        "/system.slice/slurmstepd.scope/job_/step_0",
        "/system.slice/slurmstepd.scope/job_9x/step_0",
        "/system.slice/slurmstepd.scope/s/step_0",
        "/system.slice/slurmstepd.scope/job_9/step_",
        "/system.slice/slurmstepd.scope/job_9",
    ] {
        assert_eq!(of(&format!("0::{path}\n")).await, Ok(Vec::new()), "{path}");
    }
    assert_eq!(of("").await, Ok(Vec::new()));
}

#[tokio::test]
async fn two_steps_are_none() {
    let job = |number: u8| format!("/system.slice/slurmstepd.scope/job_{number}/step_0");
    let error = of(&format!("1:cpu:{}\n0::{}\n", job(1), job(2))).await;
    let error = error.unwrap_err();
    assert!(
        error.contains("multiple Slurm jobs found in cgroups (job_1/step_0, job_2/step_0)"),
        "{error}"
    );
    let error = of("not a control group\n").await.unwrap_err();
    assert!(error.contains("invalid cgroup entry"), "{error}");
}

// The kernel's own file.
#[tokio::test]
async fn a_process_in_a_real_step_is_found() {
    let job = unique();
    let path = format!("system.slice/slurmstepd.scope/job_{job}/step_7/user/task_0");
    let Some(grouped) = Grouped::in_group("cgroup2", &path) else {
        return;
    };
    let found = selectors(ProcRoot::own(), &grouped.peer()).await.unwrap();
    assert_eq!(
        found,
        [format!("slurm:job_id:{job}"), "slurm:step:7".to_owned()]
    );
}
