//! Set-ups with the exec identity that are broken.

use ah_testkit::ca::TestLeaf;

use crate::site::{EXECUTOR_ID, Files, Site, set_ups, strings, write};

/// Has the executor run `sh identity.sh`, which is `script`.
fn command(site: &mut Site, script: &str) {
    let path = site.host.path("identity.sh");
    std::fs::write(&path, script).unwrap();
    let command = format!("sh {}", path.display());
    site.identity = Some(strings(&["--identity", "exec", "--exec-command", &command]));
}

/// A script that prints these files.
fn prints(Files { cert, key, ca }: &Files) -> String {
    let paths = [cert, key, ca].map(|path| path.display().to_string());
    format!("cat {}\n", paths.join(" "))
}

fn executor_leaf(site: &Site) -> TestLeaf {
    site.ca.leaf().spiffe(EXECUTOR_ID).issue()
}

// EX-4, ER-25
set_ups! {
    command_that_is_not_there: |site| {
        site.listen(&[]);
        let missing = ["--identity", "exec", "--exec-command", "/no/such/program"];
        site.identity = Some(strings(&missing));
        Ok(())
    } => "command", ["no such file: /no/such/program", "--exec-command"];

    command_that_fails: |site| {
        site.listen(&[]);
        command(site, "echo 'the CA is away' >&2; exit 4");
        Ok(())
    } => "command", ["exited with code 4", "stderr: the CA is away"];

    command_that_does_not_end: |site| {
        site.listen(&[]);
        command(site, "exec sleep 600");
        site.flags = strings(&["--exec-timeout", "1s"]);
        Ok(())
    } => "command", ["did not end within 1s"];

    command_that_prints_something_else: |site| {
        site.listen(&[]);
        command(site, "echo hello");
        Ok(())
    } => "command", ["cannot use the output of the identity command sh"];

    command_that_prints_no_key: |site| {
        site.listen(&[]);
        let Files { cert, ca, .. } = site.executor.clone();
        command(site, &format!("cat {} {}\n", cert.display(), ca.display()));
        Ok(())
    } => "command", ["cannot use the output of the identity command sh", "private key"];

    command_that_prints_without_end: |site| {
        site.listen(&[]);
        command(site, "exec tr '\\0' A < /dev/zero");
        Ok(())
    } => "command", ["printed more than 1 MiB and was killed"];

    command_that_prints_bytes_that_are_no_text: |site| {
        site.listen(&[]);
        command(site, "printf '\\377\\376\\000\\033[2J'");
        Ok(())
    } => "command", ["cannot use the output of the identity command sh"];

    command_that_prints_another_key: |site| {
        site.listen(&[]);
        let other = write(&site.host, "other", &executor_leaf(site), &site.ca);
        let script = prints(&Files { key: other.key, ..site.executor.clone() });
        command(site, &script);
        Ok(())
    } => "key", ["private key does not match certificate"];
}

#[test]
fn an_exec_site_that_works() {
    let mut site = Site::new();
    site.listen(&["--executor-san-uri-prefix", "spiffe://example.org/ah/agent"]);
    let script = prints(&site.executor);
    command(&mut site, &script);
    let report = site.doctor();
    report.is_well_but(&[]);
    assert_eq!(report.verdict("command"), "pass");
    report.is_told_of_in_the_document();
}
