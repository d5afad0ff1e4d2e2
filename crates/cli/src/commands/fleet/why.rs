//! `ah agent fleet why`: the last attempts of a peer, and what to do about the newest refusal (ER-25).

use std::io;
use std::time::SystemTime;

use ah_fleet::access_point::{AttemptView, Known, Why};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::render::{self, Color, Table, Terminal, printable};

/// A table of the attempts, then the newest refusal in full.
pub(super) fn show(why: &Why, json: bool) -> io::Result<()> {
    if json {
        return render::print_json(why);
    }
    let now = SystemTime::now();
    let mut table = Table::new(["WHEN", "OUTCOME", "TIMES", "PEER", "ID", "REASON"]);
    for attempt in &why.attempts {
        table.row([
            render::relative(now, attempt.at.into()),
            outcome(attempt).to_owned(),
            attempt.times.to_string(),
            attempt
                .peer
                .map(|peer| peer.to_string())
                .unwrap_or_default(),
            attempt.id.clone().unwrap_or_default(),
            attempt.reason.clone().unwrap_or_default(),
        ]);
    }
    print!("{}", table.fitted(Terminal::stdout()));
    let since = moment(why.known_since);
    match &why.no_earlier {
        None => println!("seen since {since}; what is older comes from the audit log"),
        Some(reason) => println!("seen since {since}; nothing older is known: {reason}"),
    }
    if why.shed > 0 {
        println!(
            "connections reset since then for want of a place (--max-handshakes): {}; whose they were nobody knows",
            why.shed
        );
    }
    if let Some(refused) = why.attempts.iter().find(|attempt| !attempt.admitted) {
        let latest = why.attempts.first().is_some_and(|first| first.admitted);
        let heading = if latest {
            "The last refusal, which an accepted attempt followed:"
        } else {
            "The last refusal:"
        };
        println!("\n{}", Terminal::stdout().paint(Color::Dim, heading));
        print!("{}", render::aligned(&details(refused, &why.rules)));
    }
    Ok(())
}

fn outcome(attempt: &AttemptView) -> &'static str {
    if attempt.admitted {
        "accepted"
    } else {
        "refused"
    }
}

fn details(attempt: &AttemptView, rules: &[String]) -> Vec<(&'static str, String)> {
    let mut rows = vec![("at", moment(attempt.at))];
    if attempt.times > 1 {
        rows.push((
            "times",
            format!("{} since {}", attempt.times, moment(attempt.first)),
        ));
    }
    rows.extend(attempt.peer.map(|peer| ("peer", peer.to_string())));
    if let Some(id) = &attempt.id {
        let standing = match attempt.vouched {
            Some(false) => " (a claim: no trusted root vouches for this certificate)",
            _ => "",
        };
        rows.push(("id", format!("{}{standing}", printable(id))));
    }
    rows.extend(text("name", attempt.name.as_ref()));
    rows.extend(text("subject", attempt.subject.as_ref()));
    rows.extend(text("issuer", attempt.issuer.as_ref()));
    if let Some(certificate) = &attempt.certificate {
        rows.push(("serial", printable(&certificate.serial)));
        rows.push(("expires", moment(certificate.not_after)));
    }
    rows.extend(attempt.sans.iter().map(|san| ("SAN", printable(san))));
    rows.extend(text("reason", attempt.reason.as_ref()));
    rows.extend(
        attempt
            .causes
            .iter()
            .map(|cause| ("cause", printable(cause))),
    );
    if let Some(admit_now) = attempt.rules_admit_now {
        rows.extend(rules.iter().map(|rule| ("rule", printable(rule))));
        match &attempt.nearest {
            Some(nearest) if !admit_now => {
                rows.push(("nearest", printable(&nearest.rule)));
                rows.push(("differs", printable(&nearest.difference)));
            }
            _ if admit_now => rows.push(("now", "the rules of now admit this certificate".into())),
            _ => rows.push((
                "nearest",
                "none: the certificate has no name of a kind that the rules look at".into(),
            )),
        }
    }
    rows.extend(text("hint", attempt.hint.as_ref()));
    if attempt.known_from == Known::AuditLog {
        rows.push(("from", "the audit log".into()));
    }
    rows
}

fn text(label: &'static str, value: Option<&String>) -> Option<(&'static str, String)> {
    let value = value.filter(|value| !value.is_empty())?;
    Some((label, printable(value)))
}

fn moment(at: OffsetDateTime) -> String {
    let whole = at.replace_nanosecond(0).unwrap_or(at);
    whole.format(&Rfc3339).unwrap_or_default()
}
