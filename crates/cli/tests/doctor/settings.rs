//! Set-ups in which the settings themselves are wrong, and the dev identity.

use ah_testkit::process::{AccessPoint, Process, access_point_args};

use crate::site::{Site, set_ups, strings};

fn file(site: &mut Site, text: &str) {
    let path = site.host.path("executor.toml");
    std::fs::write(&path, text).unwrap();
    site.flags = vec!["--config".into(), path.display().to_string()];
}

// AP-17, EN-12, DV-2
set_ups! {
    settings_file_that_is_no_toml: |site| {
        file(site, "remote_server = [\n");
        Ok(())
    } => "settings", ["executor.toml:"];

    settings_file_with_an_unknown_key: |site| {
        site.listen(&[]);
        file(site, "conect_timeout = \"3s\"\n");
        Ok(())
    } => "settings", ["executor.toml:1", "conect_timeout"];

    settings_file_with_a_wrong_value: |site| {
        site.listen(&[]);
        file(site, "connect_timeout = \"soon\"\n");
        Ok(())
    } => "settings", ["connect_timeout"];

    settings_file_that_is_not_there: |site| {
        site.listen(&[]);
        site.flags = strings(&["--config", "/nonexistent/executor.toml"]);
        Ok(())
    } => "settings", ["/nonexistent/executor.toml"];

    files_identity_without_its_key: |site| {
        site.listen(&[]);
        site.identity = Some(strings(&["--identity", "files", "--cert", "x.pem"]));
        Ok(())
    } => "settings", ["needs --key, --ca"];

    dev_identity_that_leaves_the_machine: |site| {
        site.dial.push("192.0.2.1:4433".into());
        site.identity = Some(strings(&["--identity", "dev"]));
        Ok(())
    } => "settings", ["the dev identity does not dial"];

    dev_identity_of_another_user: |site| {
        let mut command = site.host.command(access_point_args(&[]));
        command.env("STATE_DIRECTORY", site.host.path("home"));
        let access_point = AccessPoint::start(&mut command, &[]);
        site.dial.push(access_point.address.to_string());
        site.keep(access_point);
        site.identity = Some(strings(&["--identity", "dev"]));
        Ok(())
    } => "server-chain", ["x509: certificate signed by unknown authority"];
}

#[test]
fn the_settings_file_of_enroll_is_read_and_named() {
    // EN-12
    let mut site = Site::new();
    let address = site.listen(&[]);
    site.dial.clear();
    file(
        &mut site,
        &format!("remote_server = \"https://{address}\"\nname = \"worker-9\"\n"),
    );
    let report = site.doctor();
    report.is_well_but(&[]);
    let told = report.check("settings")["evidence"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        told.contains("executor.toml") && told.contains("worker-9"),
        "{told}"
    );
}

#[test]
fn wrong_usage_is_told_as_everywhere() {
    let site = Site::new();
    let done = site.host.run(["agent", "doctor", "--remote-serve", "x"]);
    assert_eq!(done.code, 2, "{done:?}");
    assert!(
        done.stderr.contains("did you mean '--remote-server'?"),
        "{done:?}"
    );
    let mut shown = Process::start(&mut site.host.command(["agent", "doctor", "--help"]));
    assert!(shown.wait().success());
    assert_eq!(
        shown.count("ah agent doctor --config /etc/ah/executor.toml"),
        1
    );
    assert_eq!(shown.count("ah agent enroll --remote-server"), 0);
}
