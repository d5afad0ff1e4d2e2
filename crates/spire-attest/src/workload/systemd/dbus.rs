//! A client of a D-Bus message bus, with what one call after the other takes (D-Bus Specification 0.43).

use std::fmt;
use std::io;
use std::path::PathBuf;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::workload::systemd::message::{Call, Kind, Malformed, Message};

/// The usual place of the system's bus.
const SYSTEM_BUS: &str = "/var/run/dbus/system_bus_socket";

/// The longest line of the handshake, in bytes.
const MAX_LINE: usize = 1024;

/// Where a bus listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address(PathBuf);

/// Why a call has no reply.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("{0}")]
    Connection(#[from] io::Error),
    #[error("the bus does not take this user: {0:?}")]
    Rejected(String),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("{name}: {text}")]
    Refused { name: String, text: String },
}

/// A connection that has said hello.
pub(super) struct Bus {
    stream: BufReader<UnixStream>,
    serial: u32,
}

impl Address {
    /// The first address of `text` that is a unix socket with a path (`unix:path=…;…`). Empty is the system's bus.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self(SYSTEM_BUS.into()));
        }
        text.split(';').find_map(|address| {
            let pairs = address.strip_prefix("unix:")?;
            let path = pairs
                .split(',')
                .find_map(|pair| pair.strip_prefix("path="))?;
            unescape(path).map(|path| Self(path.into()))
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

/// `%2f` for a byte.
fn unescape(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

impl Bus {
    pub(super) async fn connect(address: &Address) -> Result<Self, Fault> {
        let mut stream = BufReader::new(UnixStream::connect(&address.0).await?);
        // The bus compares this with what the kernel says of the socket.
        let uid = nix::unistd::geteuid().to_string();
        let uid: String = uid.bytes().map(|digit| format!("{digit:02x}")).collect();
        stream
            .write_all(format!("\0AUTH EXTERNAL {uid}\r\n").as_bytes())
            .await?;
        let line = line(&mut stream).await?;
        if !line.starts_with("OK ") {
            return Err(Fault::Rejected(line));
        }
        stream.write_all(b"BEGIN\r\n").await?;
        let mut bus = Self { stream, serial: 0 };
        bus.call(&Call {
            destination: "org.freedesktop.DBus",
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member: "Hello",
            arguments: &[],
        })
        .await?;
        Ok(bus)
    }

    /// The reply to `call`. What else comes meanwhile, such as signals, is passed over.
    pub(super) async fn call(&mut self, call: &Call<'_>) -> Result<Message, Fault> {
        self.serial += 1;
        self.stream.write_all(&call.encode(self.serial)?).await?;
        loop {
            let message = self.read().await?;
            if message.reply_to != Some(self.serial) {
                continue;
            }
            return match message.kind {
                Kind::Reply => Ok(message),
                Kind::Error => Err(Fault::Refused {
                    text: message.text().unwrap_or_default(),
                    name: message.error,
                }),
                Kind::Other => Err(Malformed("a reply that is none").into()),
            };
        }
    }

    async fn read(&mut self) -> Result<Message, Fault> {
        let mut bytes = vec![0; Message::FIXED];
        self.stream.read_exact(&mut bytes).await?;
        let whole = Message::length(&bytes)?;
        let start = bytes.len();
        bytes.resize(whole, 0);
        let rest = bytes.get_mut(start..).unwrap_or_default();
        self.stream.read_exact(rest).await?;
        Ok(Message::decode(&bytes)?)
    }
}

/// A line of the handshake, without its end.
async fn line(stream: &mut BufReader<UnixStream>) -> Result<String, Fault> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        if line.len() > MAX_LINE {
            return Err(Malformed("a line of the handshake that does not end").into());
        }
        line.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_the_first_unix_socket_with_a_path() {
        let path = |text| Address::parse(text).map(|address| address.to_string());
        let at = |path: &str| Some(path.to_owned());
        assert_eq!(path(""), at("/var/run/dbus/system_bus_socket"));
        assert_eq!(path("unix:path=/a"), at("/a"));
        assert_eq!(path("tcp:host=x;unix:guid=1,path=/a%20b,x=y"), at("/a b"));
        for none in [
            "/a",
            "unix:abstract=a",
            "tcp:host=x",
            "unix:path=%",
            "unix:path=%zz",
            "unix:path=%ff",
        ] {
            assert_eq!(path(none), None, "{none}");
        }
    }
}
