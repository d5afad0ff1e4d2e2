//! Every ```` ```sh ```` block of the documents is run as it stands there.
//!
//! What a document shows as the output of a block is compared with it. A block marked ```` ```sh server ```` is a process that goes on: it is ended at the next heading. Paths of
//! a machine (`/etc/ah`, `/var/lib/ah`, `/run/ah`, `/run/spire`) become paths of a temporary directory, and ports 4433 and 9443 free ones. What is marked ```` ```sh debian ````
//! takes a Debian with the packages, and is run by `make test-packages`.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use ah_testkit::ca::TestCa;
use ah_testkit::document::{self, Block, Placeholders};
use ah_testkit::process::{Finished, Process, eventually};
use ah_testkit::workload_api::{Answer, Svids, WorkloadApi};
use tempfile::TempDir;

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A machine on which somebody types what a document says.
struct Reader {
    directory: TempDir,
    port: String,
    http_port: String,
    servers: Vec<Process>,
    _agent: WorkloadApi,
}

impl Reader {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        for name in ["bin", "home", "etc", "state", "run", "spire", "work"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let ah = directory.path().join("bin/ah");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_ah"), ah).unwrap();
        // Both at a time, so that they differ.
        let free = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [port, http_port] = free.map(|free| free.local_addr().unwrap().port().to_string());
        let ca = TestCa::new("example.org");
        let svid = |path| {
            ca.leaf()
                .spiffe(&format!("spiffe://example.org{path}"))
                .issue()
        };
        // What the entries of the spiffe document make an agent serve.
        let svids = Svids::of(&svid("/ah/serve"), &ca).and(&svid("/ah/agent/executor-1"), &ca);
        let socket = directory.path().join("spire/agent.sock");
        Self {
            _agent: WorkloadApi::unix(socket, Answer::Set(svids)),
            port,
            http_port,
            directory,
            servers: Vec::new(),
        }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn shell(&self, script: &str) -> Command {
        let script = script
            .replace("/etc/ah", &self.path("etc"))
            .replace("/var/lib/ah", &self.path("state"))
            .replace("/run/ah", &self.path("run"))
            .replace("/run/spire", &self.path("spire"))
            .replace("4433", &self.port)
            .replace("9443", &self.http_port);
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("sh");
        command
            .args(["-euc", &script])
            .env_clear()
            .env("PATH", format!("{}:{path}", self.path("bin")))
            .env("HOME", self.path("home"))
            .env("STATE_DIRECTORY", self.path("state"))
            .env("RUNTIME_DIRECTORY", self.path("run"))
            .env("AH_CONFIG", "/dev/null")
            // The default port may be taken on the machine of the test.
            .env("AH_FLEET_LISTEN", format!("127.0.0.1:{}", self.port))
            .current_dir(self.directory.path().join("work"));
        command
    }

    /// Starts what goes on, and waits until it is of use to the next command.
    fn serve(&mut self, script: &str) {
        // `exec`, so that ending the shell ends what it runs.
        let mut server = Process::start(&mut self.shell(&format!("exec {script}")));
        let ready = if script.contains("access-point") {
            "ah agent fleet list"
        } else {
            "ah agent status"
        };
        eventually(ready, || {
            let said = server.lines().join("\n");
            assert!(server.is_running(), "{script}:\n{said}");
            let asked = self.shell(ready).output().unwrap();
            asked.status.success().then_some(())
        });
        self.servers.push(server);
    }

    /// Runs a block, and compares what it prints with what the document shows.
    fn run(&self, document: &str, block: &Block, known: &mut Placeholders) {
        let script = known.fill(&block.script);
        let ran = Finished::from(self.shell(&script).output().unwrap());
        assert_eq!(ran.code, 0, "{document}:\n{script}\n{ran:?}");
        if let Some(shown) = &block.shown {
            let compared = known.compare(shown, &ran.stdout);
            assert_eq!(compared, Ok(()), "{document}:\n{script}");
        }
    }
}

/// Runs a document from its top to its end. Returns how many blocks it has.
fn read(document: &str) -> usize {
    let text = fs::read_to_string(root().join(document)).unwrap();
    let mut reader = Reader::new();
    let mut known = Placeholders::default();
    let mut headings = 0;
    let mut blocks = document::blocks(&text);
    blocks.retain(|block| block.kind.get(1).is_none_or(|word| word != "debian"));
    for block in &blocks {
        if block.headings > headings {
            headings = block.headings;
            reader.servers.clear();
        }
        let server = block.kind.get(1).is_some_and(|word| word == "server");
        assert_eq!(block.kind.len(), 1 + usize::from(server), "{block:?}");
        if server {
            reader.serve(&known.fill(&block.script));
        } else {
            reader.run(document, block, &mut known);
        }
    }
    blocks.len()
}

macro_rules! documents {
    ($($name:ident: $path:literal,)*) => {$(
        #[test]
        fn $name() {
            // The documents' foreign tools.
            if ["openssl", "curl", "jq"].into_iter().all(ah_testkit::need) {
                assert!(read($path) > 0, "{} has no command", $path);
            }
        }
    )*};
}

documents! {
    the_readme_works_as_typed: "README.md",
    access_point_works_as_typed: "docs/access-point.md",
    executor_works_as_typed: "docs/executor.md",
    dev_works_as_typed: "docs/providers/dev.md",
    files_works_as_typed: "docs/providers/files.md",
    spiffe_works_as_typed: "docs/providers/spiffe.md",
    exec_works_as_typed: "docs/providers/exec.md",
    configuration_works_as_typed: "docs/configuration.md",
    monitoring_works_as_typed: "docs/monitoring.md",
    production_works_as_typed: "docs/production.md",
    operations_works_as_typed: "docs/operations.md",
    high_availability_works_as_typed: "docs/high-availability.md",
    upgrade_works_as_typed: "docs/upgrade.md",
    dashboard_works_as_typed: "docs/dashboard.md",
    troubleshooting_works_as_typed: "docs/troubleshooting.md",
}

/// The documents for readers: the README and what is in docs, all of it.
fn documents() -> Vec<PathBuf> {
    let mut found = [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "bench/README.md",
    ]
    .map(|name| root().join(name))
    .to_vec();
    for folder in ["docs", "docs/plugins", "docs/providers"] {
        let listed = fs::read_dir(root().join(folder)).unwrap();
        let pages = listed.map(|entry| entry.unwrap().path());
        found.extend(pages.filter(|path| path.extension().is_some_and(|kind| kind == "md")));
    }
    found.sort();
    assert!(found.len() > 25, "{found:?}");
    found
}

/// Without its code, in which brackets mean something else.
fn prose(text: &str) -> String {
    let mut code = false;
    let mut kept = String::new();
    for line in text.lines() {
        code ^= line.trim_start().starts_with("```");
        if !code {
            let outside = line.split('`').step_by(2);
            kept.extend(outside.chain(["\n"]));
        }
    }
    kept
}

/// No document leads nowhere, be it to a file, to a heading elsewhere or to one of its own.
#[test]
fn every_link_leads_somewhere() {
    for path in documents() {
        let document = path.display();
        let text = prose(&fs::read_to_string(&path).unwrap());
        for link in text.split("](").skip(1) {
            let link = link.split(')').next().unwrap();
            if link.starts_with("https://") {
                continue;
            }
            let (file, section) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                _ => path.parent().unwrap().join(file),
            };
            assert!(target.exists(), "{document}: {link}");
            if !section.is_empty() {
                let text = fs::read_to_string(&target).unwrap();
                let mut headings = text.lines().filter(|line| line.starts_with('#'));
                let named = |heading: &str| anchor(heading) == section;
                assert!(headings.any(named), "{document}: {link}");
            }
        }
    }
}

/// A row `| KIND `NAME` | works |` of the compatibility table is about a plugin, which has a page in one pattern: what it is
/// for, its settings, what it was tested against.
#[test]
fn every_plugin_has_its_page() {
    let table = fs::read_to_string(root().join("docs/spire-compatibility.md")).unwrap();
    let index = fs::read_to_string(root().join("docs/plugins/README.md")).unwrap();
    let kinds = [
        ("NodeAttestor", "node attestor"),
        ("WorkloadAttestor", "workload attestor"),
        ("KeyManager", "key manager"),
        ("UpstreamAuthority", "upstream authority"),
        ("BundlePublisher", "bundle publisher"),
        ("Notifier", "notifier"),
        ("SVIDStore", "svid store"),
        ("CredentialComposer", "credential composer"),
    ];
    let mut plugins = 0;
    for row in table
        .lines()
        .filter(|row| !row.contains("| refused: Windows only"))
    {
        let Some((kind, rest)) = row.strip_prefix("| ").and_then(|row| row.split_once(" `")) else {
            continue;
        };
        let Some((_, title)) = kinds.iter().find(|(upstream, _)| *upstream == kind) else {
            continue;
        };
        let name = rest.split('`').next().unwrap();
        let page = root().join(format!("docs/plugins/{name}.md"));
        let page = fs::read_to_string(&page).unwrap_or_else(|error| panic!("{name}: {error}"));
        let heading = page.lines().next().unwrap().to_lowercase();
        assert!(heading.contains(title), "{name}: {heading}");
        assert!(
            page.contains(&format!("{kind} \"{name}\"")),
            "{name} is not configured"
        );
        assert!(page.contains("\n## Tested\n"), "{name}");
        assert!(
            index.contains(&format!("({name}.md)")),
            "{name} is not in the index"
        );
        plugins += 1;
    }
    assert!(plugins > 40, "{plugins}");
}

/// The tests of all crates, with runs of blanks as one blank and `"a", "b"` as `"a b"`, so that a command stands there as it is typed.
fn tests() -> String {
    fn collect(folder: &Path, tests: bool, found: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let tests = tests || ["tests", "tests.rs"].contains(&name.as_str());
            if path.is_dir() {
                collect(&path, tests, found);
            } else if let Ok(text) = fs::read_to_string(&path) {
                let own = text.split_once("#[cfg(test)]").map_or("", |(_, own)| own);
                found.push_str(if tests { &text } else { own });
            }
        }
    }
    let mut found = String::new();
    for folder in ["crates", "e2e"] {
        collect(&root().join(folder), false, &mut found);
    }
    let words: Vec<_> = found.split_whitespace().collect();
    words.join(" ").replace("\", \"", " ")
}

/// `FooBAR` as code has it.
fn snake(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && snake.ends_with(|before: char| !before.is_uppercase()) {
            snake.push('_');
        }
        snake.push(letter);
    }
    snake.to_lowercase().replace("__", "_")
}
/// What works, or differs, of the inventory is named by a test: as the table has it, or as it is written in code or in a configuration.
#[test]
fn every_row_of_the_inventory_is_named_by_a_test() {
    let table = fs::read_to_string(root().join("docs/spire-compatibility.md")).unwrap();
    let tests = tests();
    let mut unnamed = Vec::new();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| "));
    let cells = rows.filter_map(|row| {
        let (cell, state) = row.split_once(" | ")?;
        (state.starts_with("works |") || state.starts_with("differs |")).then_some(cell)
    });
    let mut count = 0;
    for cell in cells {
        count += 1;
        let plain = cell.replace('`', "");
        let last = cell.split('`').skip(1).step_by(2).last().unwrap_or(cell);
        let short = last.split(" {").next().unwrap().split('[').next().unwrap();
        let field = short.rsplit('.').next().unwrap();
        let forms = [
            cell,
            &plain,
            last,
            &last.replace('.', " "),
            short,
            field,
            &snake(last),
        ];
        if !forms
            .iter()
            .any(|form| !form.is_empty() && tests.contains(*form))
        {
            unnamed.push(cell);
        }
    }
    assert!(count > 380, "{count}");
    assert!(unnamed.is_empty(), "no test names {unnamed:#?}");
}

/// Each page is to be found from the README, in as many steps as it takes.
#[test]
fn every_page_is_linked_to() {
    let mut reached = vec![root().join("README.md").canonicalize().unwrap()];
    let mut next = 0;
    while let Some(path) = reached.get(next).cloned() {
        next += 1;
        let text = prose(&fs::read_to_string(&path).unwrap());
        for link in text.split("](").skip(1) {
            let file = link.split([')', '#']).next().unwrap();
            let target = path.parent().unwrap().join(file).canonicalize();
            let pages = target
                .into_iter()
                .filter(|path| path.is_file() && path.extension().is_some_and(|kind| kind == "md"));
            for page in pages {
                if !reached.contains(&page) {
                    reached.push(page);
                }
            }
        }
    }
    for page in documents() {
        let page = page.canonicalize().unwrap();
        assert!(
            reached.contains(&page),
            "nobody links to {}",
            page.display()
        );
    }
}

/// Whatever a page has somebody type is run, by these tests or by those of `make test-packages` (`sh debian`), or says
/// why it is not, behind `shell`.
#[test]
fn every_block_that_is_not_run_says_why() {
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        let fences = text.lines().map(str::trim_start);
        for fence in fences.filter_map(|line| line.strip_prefix("```shell")) {
            let reason = fence.trim();
            assert!(reason.contains(' '), "{}: ```shell{fence}", path.display());
        }
    }
}

/// How a heading is linked to.
fn anchor(heading: &str) -> String {
    let words = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = words
        .chars()
        .filter(|c| c.is_alphanumeric() || " -".contains(*c));
    kept.collect::<String>().replace(' ', "-")
}

/// Every flag of the two processes is told of, in their documents or in those of the providers.
#[test]
fn every_flag_is_in_its_document() {
    let definition = ah_cli::args::definition();
    let agent = definition.find_subcommand("agent").unwrap();
    for (command, document) in [
        ("access-point", "docs/access-point.md"),
        ("enroll", "docs/executor.md"),
    ] {
        let mut text = fs::read_to_string(root().join(document)).unwrap();
        for provider in fs::read_dir(root().join("docs/providers")).unwrap() {
            text += &fs::read_to_string(provider.unwrap().path()).unwrap();
        }
        let command = agent.find_subcommand(command).unwrap();
        let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
        for flag in shown.filter_map(|arg| arg.get_long()) {
            let told = [' ', '`', '[', '='].map(|end| text.contains(&format!("`--{flag}{end}")));
            assert!(told.contains(&true), "{document} does not tell of --{flag}");
        }
    }
}

/// `AH_UPDATE_DOCS=1 cargo test -p ah-cli --test demo openapi` writes it.
#[test]
fn the_openapi_document_is_current() {
    let path = root().join("docs/openapi.json");
    let current = ah_fleet::access_point::http::openapi() + "\n";
    if std::env::var_os("AH_UPDATE_DOCS").is_some() {
        fs::write(&path, &current).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == current,
        "docs/openapi.json is old: AH_UPDATE_DOCS=1 cargo test -p ah-cli --test demo openapi"
    );
}

/// Each metric that is served is told of, and none is told of that is not served.
#[test]
fn the_list_of_metrics_is_whole() {
    let host = ah_testkit::process::Host::new(env!("CARGO_BIN_EXE_ah"));
    let access_point = host.access_point(&["--http-listen", "127.0.0.1:0"]);
    // A family without a member is not served: a session is opened and closed, and another refused.
    let server = format!("https://{}", access_point.address);
    let enroll = ["agent", "enroll", "--remote-server", &server];
    let enroll = enroll.into_iter().chain(["--name", "w", "--once=enrolled"]);
    assert_eq!(host.run(enroll.clone()).code, 0);
    assert_eq!(host.run(["agent", "fleet", "revoke", "w"]).code, 0);
    assert_eq!(host.run(enroll).code, 1);
    let served = scrape(access_point.http.unwrap());
    let served = served
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(|line| line.split(' ').next().unwrap())
        .collect::<Vec<_>>();
    assert!(served.len() > 10, "{served:?}");
    let document = fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let told = document
        .lines()
        .filter_map(|line| line.strip_prefix("| `ah_"))
        .map(|line| line.split('`').next().unwrap())
        .map(|name| format!("ah_{name}"))
        .map(|name| name.strip_suffix("_total").unwrap_or(&name).to_owned())
        .collect::<Vec<_>>();
    for name in &served {
        assert!(told.iter().any(|told| told == name), "not told of: {name}");
    }
    for name in &told {
        assert!(served.contains(&name.as_str()), "not served: {name}");
    }
}

pub(crate) fn scrape(address: std::net::SocketAddr) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
