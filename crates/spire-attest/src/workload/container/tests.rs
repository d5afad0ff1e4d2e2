use super::*;

const ID: &str = "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961";
const OTHER: &str = "45490e76e0878aaa4d9808f7d2eefba37f093c3efbba9838b6d8ab804d9bd814";
const POD: &str = "2c48913c-b29f-11e7-9350-020968147796";

fn at(path: &str) -> Option<(&str, Option<String>)> {
    place(path, true).map(|place| (place.container, place.pod))
}

// Paths as container runtimes and kubelets make them, with both cgroup drivers.
#[test]
fn the_last_word_that_is_an_id_is_the_container_and_the_pod_is_before_it() {
    let escaped = POD.replace('-', "_");
    let in_pod = Some(POD.to_owned());
    for path in [
        format!("/kubepods/burstable/pod{POD}/{ID}"),
        format!("/docker/{OTHER}/kubepods/besteffort/pod{POD}/{ID}"),
        format!(
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{escaped}.slice/docker-{ID}.scope"
        ),
        format!("/kubepods-besteffort-pod{escaped}.slice:cri-containerd:{ID}"),
        format!("/../../pod{POD}/{ID}"),
        format!(
            "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{escaped}.slice/cri-containerd-{ID}.scope/init"
        ),
    ] {
        assert_eq!(at(&path), Some((ID, in_pod.clone())), "{path}");
    }
    for path in [
        format!("/docker/{ID}"),
        format!("/system.slice/docker-{ID}.scope"),
        format!(
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container"
        ),
        format!("/machine.slice/libpod-{ID}.scope"),
        format!("/../crio-{ID}.scope"),
        // No UID: a digit is missing, a letter before or after.
        format!("/pod{}/{ID}", POD.trim_end_matches('6')),
        format!("/xpod{POD}/{ID}"),
        format!("/pod{POD}7/{ID}"),
        format!("/ä/{ID}"),
    ] {
        assert_eq!(at(&path), Some((ID, None)), "{path}");
    }
    for path in [
        "",
        "/",
        "/user.slice/user-1000.slice/session-3.scope",
        &format!("/docker/{ID}0"),
        &format!("/docker/{}", ID.trim_end_matches('1')),
        &format!("/docker_{ID}"),
        &format!("/{}", ID.replace('9', "g")),
        &format!("/pod{POD}"),
        "/ü-ä",
    ] {
        assert_eq!(at(path), None, "{path}");
    }
    assert_eq!(place(&format!("/pod{POD}/{ID}"), false).unwrap().pod, None);
}

#[test]
fn without_the_new_locator_the_id_has_to_end_the_path() {
    let found = |path: &str| legacy(path).map(|place| (place.container.to_owned(), place.pod));
    let in_pod = Some((ID.to_owned(), Some(POD.to_owned())));
    for path in [
        format!("/kubepods/burstable/pod{POD}/{ID}"),
        format!(
            "/kubepods-besteffort-pod{}.slice:cri-containerd:{ID}",
            POD.replace('-', "_")
        ),
        format!("/kubepods-burstable-pod{POD}.slice/docker-{ID}.scope"),
    ] {
        assert_eq!(found(&path), in_pod, "{path}");
    }
    let crio = Some((ID.to_owned(), None));
    assert_eq!(found(&format!("/../crio-{ID}.scope")), crio);
    for path in [
        format!("/docker/{ID}"),
        format!("/kubepods/pod{POD}/{ID}/init"),
        format!("/kubepods/pod{POD}//{ID}"),
        format!("/kubepods/xpod{POD}/{ID}"),
        "/".to_owned(),
        "ü".repeat(64),
    ] {
        assert_eq!(found(&path), None, "{path}");
    }
}

#[test]
fn control_groups_that_disagree_name_no_container() {
    let tell = |paths: &[String]| {
        let mut found = Found::default();
        for path in paths {
            place(path, true).map_or(Ok(()), |place| add(&mut found, place))?;
        }
        Ok::<_, AttestError>((found.container, found.pod))
    };
    let outer = format!("/docker/{OTHER}");
    let inner = format!("/docker/{OTHER}/kubepods/pod{POD}/{ID}");
    let node = format!("/docker/{OTHER}/system.slice/containerd.service");
    let known = (Some(ID.to_owned()), Some(POD.to_owned()));
    for paths in [
        [inner.clone(), node.clone()],
        [node, inner.clone()],
        [inner.clone(), "/".to_owned()],
        [outer, inner.clone()],
    ] {
        assert_eq!(tell(&paths).unwrap(), known, "{paths:?}");
    }
    let second = format!("/kubepods/pod{POD}/{OTHER}");
    let error = tell(&[inner.clone(), second]).unwrap_err().to_string();
    assert!(error.contains("multiple container IDs found"), "{error}");
    let third = format!("/kubepods/pod{}/{ID}", POD.replace('2', "3"));
    let error = tell(&[inner, third]).unwrap_err().to_string();
    assert!(error.contains("multiple pod UIDs found"), "{error}");
}

#[test]
fn a_mount_of_control_groups_says_which_unless_it_shows_all() {
    let root = names::cgroup_mount;
    let line = "2 1 0:26 /../x /sys/fs/cgroup ro,nosuid master:4 - cgroup2 cgroup rw";
    assert_eq!(root(line), Some("/../x"));
    assert_eq!(root("2 1 0:26 /x /c ro - cgroup  rw"), Some("/x"));
    for line in [
        "2 1 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup rw",
        "2 1 0:26 /x /local rw - tmpfs  rw",
        "2 1 0:26 /x - cgroup2 cgroup rw",
        "2 1 0:26 /x /c ro master:4",
        "2 1 0:26 /x /c ro -",
        "",
    ] {
        assert_eq!(root(line), None, "{line}");
    }
}

/// A procfs with one process, 7, in a container of which only its mounts know.
fn with_mounts(theirs: &str, ours: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (name, namespace) in [("7", theirs), ("self", ours)] {
        let folder = root.path().join(name).join("ns");
        std::fs::create_dir_all(&folder).unwrap();
        std::os::unix::fs::symlink(namespace, folder.join("mnt")).unwrap();
    }
    std::fs::write(root.path().join("7/cgroup"), "0::/\n").unwrap();
    let mount = format!("2 1 0:26 /../{ID} /sys/fs/cgroup ro - cgroup2 cgroup rw\n");
    std::fs::write(root.path().join("7/mountinfo"), mount).unwrap();
    root
}

// A process could mount another container's control group in a mount namespace of its own.
#[test]
fn mounts_count_in_the_agents_own_mount_namespace_alone() {
    for (theirs, expected) in [("mnt:[1]", Some(ID.to_owned())), ("mnt:[2]", None)] {
        let root = with_mounts(theirs, "mnt:[1]");
        let locator = Locator {
            proc: ProcRoot::at(root.path()),
            pods: false,
            verbose: true,
        };
        let found = locator.locate(7).unwrap();
        assert_eq!(found.container, expected);
        assert_eq!(found.paths, ["/"]);
    }
}

#[test]
fn a_process_may_have_more_mounts_than_are_read() {
    let root = with_mounts("mnt:[1]", "mnt:[1]");
    std::fs::write(root.path().join("7/mountinfo"), "x".repeat(5 << 20)).unwrap();
    let locator = Locator {
        proc: ProcRoot::at(root.path()),
        pods: false,
        verbose: false,
    };
    let error = locator.locate(7).unwrap_err().to_string();
    assert!(error.contains("larger than"), "{error}");
}
