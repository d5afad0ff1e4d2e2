//! The dashboard in a real browser, in front of real processes.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod pictures;
mod site;

use ah_testkit::browser::{Browser, ENTER, ESCAPE, TAB};
use ah_testkit::process::eventually;
use serde_json::Value;

use site::{Site, TOKEN, id};

/// The rows of the table as they are read: id, name, state, labels, peer, end of the certificate, provider.
const ROWS: &str = "return Array.from(document.querySelectorAll('#fleet tbody tr'), row => {
    const text = css => row.querySelector(css)?.textContent ?? null;
    return [row.dataset.id, text('.who > a'), text('.id'), text('.state'),
        Array.from(row.querySelectorAll('.label'), label => label.textContent),
        text('.from code'), row.querySelector('.ends time').dateTime, text('.provider')];
})";

fn sign_in(browser: &Browser, site: &Site) {
    browser.open(&site.dashboard("/"));
    browser.type_into("#token", "wrong-wrong-wrong-wrong");
    browser.press(&[ENTER]);
    browser.wait("return document.querySelector('#fault')?.textContent.includes('not the token')");
    browser.type_into("#token", TOKEN);
    browser.click("button.primary");
    browser.wait("return document.querySelector('#live')?.dataset.state === 'on'");
    assert!(!browser.address().contains(TOKEN));
    // Being asked to sign in is all that the console was told of so far.
    for line in errors(browser) {
        assert!(line.contains("401 (Unauthorized)"), "{line}");
    }
}

/// Errors that the console was told of, and breaches of the content security policy.
fn errors(browser: &Browser) -> Vec<String> {
    let lines = browser.console().into_iter();
    lines
        .filter(|line| line["level"] != "INFO" && line["level"] != "DEBUG")
        .map(|line| line["message"].as_str().unwrap_or_default().to_owned())
        .collect()
}

/// The same of what `fleet list --json` says.
fn listed(site: &Site) -> Vec<Value> {
    let listing = site.json(&["agent", "fleet", "list", "--json"]);
    let mut rows: Vec<&Value> = listing["executors"].as_array().unwrap().iter().collect();
    rows.sort_by_key(|view| (view["name"].to_string(), view["id"].to_string()));
    let rows = rows.into_iter().map(|view| {
        let state = match (&view["revocation"], &view["live"]) {
            (Value::Null, Value::Null) => "offline",
            (Value::Null, _) => "enrolled",
            _ => "revoked",
        };
        let labels: Vec<String> = view["labels"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(key, value)| format!("{key}={}", value.as_str().unwrap()))
            .collect();
        serde_json::json!([
            view["id"],
            view["name"],
            view["id"],
            state,
            labels,
            view["live"]["peer"],
            view["certificate"]["not_after"],
            view["provider"]
        ])
    });
    rows.collect()
}

fn shows_what_is_listed(browser: &Browser, site: &Site) {
    let mut pair = (Value::Null, Vec::new());
    eventually("the page shows what is listed", || {
        pair = (browser.run(ROWS), listed(site));
        (pair.0.as_array() == Some(&pair.1)).then_some(())
    });
}

// FL-1: what the page shows is what the command says, as it changes, and a revocation takes a second word.
#[test]
fn fl_1_the_page_shows_the_fleet_and_revokes_after_a_second_word() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let site = Site::start();
    let _first = site.executor(1, "worker-1", &["--label", "zone=a", "--label", "gpu=h100"]);
    let markup = "<img src=x onerror=document.title='broken'>";
    let _evil = site.executor(
        2,
        &format!("<b>{markup}"),
        &["--label", &format!("note={markup}")],
    );
    browser.resize(1280, 800, false);
    sign_in(&browser, &site);
    let cookies = browser.cookies();
    let cookie = &cookies[0];
    assert_eq!(
        (cookies.len(), &cookie["httpOnly"]),
        (1, &true.into()),
        "{cookies:?}"
    );
    assert_eq!(cookie["sameSite"], "Strict", "{cookies:?}");
    assert_eq!(browser.run("return document.cookie"), "");
    shows_what_is_listed(&browser, &site);
    assert_eq!(browser.run(ROWS).as_array().unwrap().len(), 2);

    // It comes by itself, into the page that is open.
    browser.run("window.same = true");
    let mut third = site.executor(3, "worker-3", &["--label", "zone=b"]);
    let count = "return document.querySelectorAll('#fleet tbody tr').length";
    browser.wait(&format!("{count} === 3"));
    shows_what_is_listed(&browser, &site);
    assert_eq!(browser.run("return window.same"), true);

    // Searched while typing, with the keyboard alone.
    browser.press(&["/"]);
    browser.press(&["z", "o", "n", "e", "=", "b"]);
    browser.wait(&format!("{count} === 1"));
    assert!(
        browser.address().ends_with("/?q=zone%3Db"),
        "{}",
        browser.address()
    );

    // To the button, and away from the question.
    let row = format!("tr[data-id='{}']", id(3));
    browser.run(&format!("document.querySelector(\"{row} a\").focus()"));
    browser.press(&[TAB, ENTER]);
    browser.wait("return document.querySelector('#confirm').open");
    let asked = browser.run("return document.querySelector('#confirm').innerText");
    assert!(asked.as_str().unwrap().contains(&id(3)), "{asked}");
    browser.press(&[ESCAPE]);
    browser.wait("return !document.querySelector('#confirm').open");
    browser.click(&format!("{row} [data-act=revoke]"));
    browser.click("#confirm button[value=cancel]");
    assert_eq!(listed(&site)[2][3], "enrolled", "nothing was done");
    assert!(third.is_running());

    // And through with it.
    browser.click(&format!("{row} [data-act=revoke]"));
    browser.type_into("#reason", "lost <i>laptop</i>");
    browser.click("#confirm-do");
    browser.wait("return document.querySelector('#fleet .state')?.dataset.state === 'revoked'");
    browser.wait("return document.querySelector('#toast').textContent === 'Revoked: worker-3'");
    assert_eq!(third.wait().code(), Some(1));
    let shown = site.json(&["agent", "fleet", "show", "worker-3", "--json"]);
    assert_eq!(shown["revocation"]["reason"], "lost <i>laptop</i>");
    browser
        .wait("return document.querySelector('#lately').innerText.includes('lost <i>laptop</i>')");
    browser
        .wait("return document.querySelector('[data-state=revoked] strong').textContent === '1'");

    // Refused from now on, and the page says why.
    let mut refused = site.start_executor(3, "worker-3", &["--once"]);
    assert_eq!(refused.wait().code(), Some(1));
    browser.wait("return document.querySelector('#refused').innerText.includes('client_revoked')");
    browser.open(&site.dashboard("/rejections"));
    let why = browser.run("return document.querySelector('#refused').innerText");
    let told = site.json(&["agent", "fleet", "why", &id(3), "--json"]);
    let attempt = &told["attempts"][0];
    for part in [&attempt["reason"], &attempt["id"], &attempt["hint"]] {
        assert!(
            why.as_str().unwrap().contains(part.as_str().unwrap()),
            "{part} in {why}"
        );
    }

    // One executor, and back to work.
    browser.open(&site.dashboard(&site::address_of(3)));
    let page = browser.run("return document.querySelector('#main').innerText");
    let page = page.as_str().unwrap();
    for part in [
        shown["certificate"]["serial"].as_str().unwrap(),
        shown["certificate"]["sha256"].as_str().unwrap(),
        shown["history"][0]["certificate"]["serial"]
            .as_str()
            .unwrap(),
        "zone=b",
        "lost <i>laptop</i>",
        "client_revoked",
    ] {
        assert!(page.contains(part), "{part} in {page}");
    }
    browser.click("[data-act=reinstate]");
    browser.click("#confirm-do");
    browser.wait("return document.querySelector('#executor .state').dataset.state === 'offline'");
    let _again = site.executor(3, "worker-3", &["--label", "zone=b"]);
    browser.wait("return document.querySelector('#executor .state').dataset.state === 'enrolled'");
    let kept = browser.run("return document.querySelectorAll('.timeline rect').length");
    assert!(kept.as_u64() > Some(1), "{kept}");

    browser.open(&site.dashboard("/"));
    shows_what_is_listed(&browser, &site);
    assert_eq!(browser.run("return document.title"), "Fleet · Agent Harbor");
    assert_eq!(errors(&browser), Vec::<String>::new());

    browser.click(".tools form button");
    browser.wait("return !!document.querySelector('#token')");
}

// On every size nothing is cut off, and every page is usable in the dark.
#[test]
fn a_page_fits_its_screen_in_both_colours() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let site = Site::start();
    let long = "worker-with-a-name-that-is-much-longer-than-anybody-would-choose-it-to-be-00000001";
    let _first = site.executor(1, long, &["--label", "zone=a", "--label", "rack=b17"]);
    sign_in(&browser, &site);
    for (width, height, phone) in [(1440, 900, false), (820, 1180, true), (375, 720, true)] {
        browser.resize(width, height, phone);
        for path in ["/", "/rejections", "/audit", &site::address_of(1)] {
            browser.open(&site.dashboard(path));
            let widths = "const root = document.documentElement; return [root.scrollWidth, root.clientWidth]";
            let widths = browser.run(widths);
            assert!(
                widths[0].as_u64() <= widths[1].as_u64(),
                "{path} at {width}: {widths}"
            );
        }
    }
    let ground = "return getComputedStyle(document.documentElement).backgroundColor";
    let as_system = |scheme: &str| {
        let feature = serde_json::json!({ "name": "prefers-color-scheme", "value": scheme });
        let features = serde_json::json!({ "features": [feature] });
        browser.devtools("Emulation.setEmulatedMedia", &features);
        browser.run(ground)
    };
    let (light, dark) = (as_system("light"), as_system("dark"));
    assert_ne!(light, dark);
    // Chosen here, it stays chosen.
    browser.click("#theme");
    assert_eq!(browser.run(ground), light);
    browser.open(&site.dashboard("/audit"));
    assert_eq!(browser.run(ground), light);
    assert_eq!(
        browser.run("return document.querySelector('#theme').textContent"),
        "Light"
    );
    assert_eq!(errors(&browser), Vec::<String>::new());
}
