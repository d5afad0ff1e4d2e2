//! What the demo shows: plain lines; on a terminal the fleet's table under them, kept current.

use std::cell::RefCell;
use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use ah_fleet::access_point::{AccessPointView, ExecutorView, FleetEvent};
use ah_fleet::audit::Event;

use crate::render::{self, Color, Table, Terminal};

/// Digits of a serial number that tell two apart at a glance.
const SERIAL_DIGITS: usize = 12;

/// Standard output.
pub(super) struct Screen {
    terminal: Terminal,
    live: bool,
    table: RefCell<Vec<String>>,
}

/// The fleet at one moment.
pub(super) struct Picture {
    pub(super) access_point: AccessPointView,
    pub(super) executors: Vec<ExecutorView>,
}

impl Screen {
    pub(super) fn new() -> Self {
        let terminal = Terminal::stdout();
        let steerable = std::env::var_os("TERM").is_some_and(|term| term != "dumb");
        Self {
            live: terminal.width.is_some() && steerable,
            terminal,
            table: RefCell::default(),
        }
    }

    /// Whether a person sees the table move.
    pub(super) fn is_live(&self) -> bool {
        self.live
    }

    /// A step begins.
    pub(super) fn step(&self, number: usize, title: &str) {
        self.print(&format!("\n{number}. {title}"));
    }

    /// Something happened.
    pub(super) fn tell(&self, text: &str) {
        self.print(&format!("   {}", self.terminal.paint(Color::Dim, text)));
    }

    /// Something is proved.
    pub(super) fn proved(&self, text: &str) {
        let mark = self.terminal.paint(Color::Green, "✓ proved:");
        self.print(&format!("   {mark} {text}"));
    }

    /// A line as it is.
    pub(super) fn print(&self, text: &str) {
        let table = self.table.borrow();
        let mut out = erasing(&table);
        out.push_str(&format!("{text}\n"));
        append(&mut out, &table);
        write(&out);
    }

    /// Takes the table away, at the end.
    pub(super) fn clear(&self) {
        let table = self.table.take();
        write(&erasing(&table));
    }

    /// Shows the fleet as it is now, under all that was told.
    pub(super) fn show(&self, picture: &Picture, events: &[FleetEvent]) {
        let drawn = self.draw(picture, events);
        let mut out = erasing(&self.table.borrow());
        append(&mut out, &drawn);
        self.table.replace(drawn);
        write(&out);
    }

    fn draw(&self, picture: &Picture, events: &[FleetEvent]) -> Vec<String> {
        let now = SystemTime::now();
        let mut table = Table::new(["NAME", "ID", "STATE", "SINCE", "CERTIFICATE", "ROUND TRIP"]);
        let own = &picture.access_point;
        let mut marks = vec![" ".to_owned(), self.terminal.paint(Color::Green, "●")];
        table.row([
            "access point".to_owned(),
            ah_identity_provider::dev::ACCESS_POINT_ID.to_owned(),
            format!("serving {}", own.executors),
            render::relative(now, own.started.into()),
            short(&own.certificate.serial),
            String::new(),
        ]);
        for view in &picture.executors {
            let (color, mark) = match view.state() {
                "enrolled" => (Color::Green, "●"),
                "revoked" => (Color::Red, "✗"),
                _ => (Color::Yellow, "○"),
            };
            marks.push(self.terminal.paint(color, mark));
            table.row([
                view.name.clone(),
                view.id.clone(),
                view.state().to_owned(),
                since(view, events).map_or_else(String::new, |at| render::relative(now, at)),
                short(&view.certificate.serial),
                round_trip(view),
            ]);
        }
        // The mark and its space stand before the table, which must not wrap.
        let beside = Terminal {
            width: self.terminal.width.map(|width| width.saturating_sub(5)),
            ..self.terminal
        };
        let rows = table.fitted(beside);
        let rows = marks.iter().zip(rows.lines());
        let rows = rows.map(|(mark, row)| format!("   {mark} {row}"));
        std::iter::once(String::new()).chain(rows).collect()
    }
}

/// When the state of now began.
fn since(view: &ExecutorView, events: &[FleetEvent]) -> Option<SystemTime> {
    match (&view.revocation, &view.live) {
        (Some(revocation), _) => Some(revocation.at.into()),
        (None, Some(live)) => Some(live.since.into()),
        (None, None) => events
            .iter()
            .rfind(|event| event.id == view.id && event.event == Event::Disconnected)
            .map(|event| event.at.into()),
    }
}

fn round_trip(view: &ExecutorView) -> String {
    view.live
        .as_ref()
        .and_then(|live| live.round_trip_us)
        .map(milliseconds)
        .unwrap_or_default()
}

/// Microseconds as people read them.
pub(super) fn milliseconds(us: u64) -> String {
    let time = Duration::from_micros(us);
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

/// The first digits of a serial number.
pub(super) fn short(serial: &str) -> String {
    let digits: String = serial.chars().take(SERIAL_DIGITS).collect();
    if digits.len() < serial.len() {
        digits + "…"
    } else {
        digits
    }
}

/// What moves to the start of `table` and clears from there.
fn erasing(table: &[String]) -> String {
    match table.len() {
        0 => String::new(),
        lines => format!("\u{1b}[{lines}A\u{1b}[J"),
    }
}

fn append(out: &mut String, lines: &[String]) {
    for line in lines {
        out.push_str(line);
        out.push('\n');
    }
}

/// Nobody is left to tell when standard output is closed; the demo's exit code still tells.
fn write(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
