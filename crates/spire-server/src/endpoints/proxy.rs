//! `proxy_protocol_trusted_cidrs`: the address of a client as a proxy before the server tells it (PROXY protocol,
//! versions 1 and 2).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ah_spire_plugin::server::Cidr;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;

/// A line of version 1 with its end.
const LONGEST_LINE: usize = 107;

/// What version 2 begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Of version 2: addresses, and more that is passed over.
const LONGEST_REST: usize = 4096;

/// Whose word is taken for the address of a client.
#[derive(Clone, Debug, Default)]
pub(super) struct Proxies(Vec<Cidr>);

impl Proxies {
    pub(super) fn new(trusted: Vec<Cidr>) -> Self {
        Self(trusted)
    }

    /// Who is at the other end of `stream`, which came from `peer`. A header is read where there is one, and nothing
    /// beyond it.
    ///
    /// # Errors
    /// Somebody who is not trusted sends a header, or it is none.
    pub(super) async fn client(
        &self,
        stream: &mut TcpStream,
        peer: SocketAddr,
    ) -> io::Result<SocketAddr> {
        if self.0.is_empty() {
            return Ok(peer);
        }
        let mut first = [0];
        // TLS begins with another byte than either version.
        stream.peek(&mut first).await?;
        let version = match first {
            [b'P'] => 1,
            [b'\r'] => 2,
            _ => return Ok(peer),
        };
        if !self.0.iter().any(|network| network.contains(peer.ip())) {
            return Err(io::Error::other(
                "a PROXY header from an address that is not in proxy_protocol_trusted_cidrs",
            ));
        }
        let told = match version {
            1 => line(stream).await?,
            _ => binary(stream).await?,
        };
        Ok(told.unwrap_or(peer))
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("PROXY header: {what}"))
}

/// `PROXY TCP4 192.0.2.1 198.51.100.1 56324 443`
async fn line(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let mut line = Vec::with_capacity(LONGEST_LINE);
    while !line.ends_with(b"\r\n") {
        if line.len() == LONGEST_LINE {
            return Err(bad("the line is too long"));
        }
        line.push(stream.read_u8().await?);
    }
    let line = std::str::from_utf8(&line).map_err(|_| bad("the line is no text"))?;
    let words = line.trim_end().split(' ').collect::<Vec<_>>();
    let address = |ip: IpAddr, port: &str| {
        let port = port.parse().map_err(|_| bad("the port is no number"))?;
        Ok(Some(SocketAddr::new(ip, port)))
    };
    match words.as_slice() {
        ["PROXY", "UNKNOWN", ..] => Ok(None),
        ["PROXY", "TCP4", from, _, port, _] => {
            let ip = from.parse::<Ipv4Addr>();
            address(
                ip.map_err(|_| bad("the address is no IPv4 one"))?.into(),
                port,
            )
        }
        ["PROXY", "TCP6", from, _, port, _] => {
            let ip = from.parse::<Ipv6Addr>();
            address(
                ip.map_err(|_| bad("the address is no IPv6 one"))?.into(),
                port,
            )
        }
        _ => Err(bad("it is not understood")),
    }
}

async fn binary(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let mut signature = [0; SIGNATURE.len()];
    stream.read_exact(&mut signature).await?;
    if signature != SIGNATURE {
        return Err(bad("it is not understood"));
    }
    let command = stream.read_u8().await?;
    let family = stream.read_u8().await?;
    let length = usize::from(stream.read_u16().await?);
    if length > LONGEST_REST {
        return Err(bad("it is too long"));
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await?;
    let mut rest = rest.as_slice();
    match (command, family) {
        // The proxy speaks for itself: it looks whether the server is there.
        (0x20, _) => Ok(None),
        (0x21, 0x11) => {
            let (from, port) = source::<4>(&mut rest).await?;
            Ok(Some(SocketAddr::new(Ipv4Addr::from(from).into(), port)))
        }
        (0x21, 0x21) => {
            let (from, port) = source::<16>(&mut rest).await?;
            Ok(Some(SocketAddr::new(Ipv6Addr::from(from).into(), port)))
        }
        // A client that has no address of the network.
        (0x21, _) => Ok(None),
        _ => Err(bad("version or command is not known")),
    }
}

/// The first of two addresses and two ports.
async fn source<const LENGTH: usize>(rest: &mut &[u8]) -> io::Result<([u8; LENGTH], u16)> {
    let mut from = [0; LENGTH];
    let mut to = [0; LENGTH];
    let short = |_| bad("addresses are missing");
    rest.read_exact(&mut from).await.map_err(short)?;
    rest.read_exact(&mut to).await.map_err(short)?;
    let port = rest.read_u16().await.map_err(short)?;
    rest.read_u16().await.map_err(short)?;
    Ok((from, port))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// What is found out about a client that sends `bytes`, and what is left to read.
    async fn client(trusted: &[&str], bytes: &[u8]) -> (io::Result<SocketAddr>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        sender.write_all(bytes).await.unwrap();
        drop(sender);
        let (mut stream, peer) = listener.accept().await.unwrap();
        let trusted = trusted.iter().map(|it| it.parse().unwrap()).collect();
        let told = Proxies::new(trusted).client(&mut stream, peer).await;
        let told = told.map(|it| match it == peer {
            true => "0.0.0.0:0".parse().unwrap(),
            false => it,
        });
        let mut left = Vec::new();
        // A stream that was cut has nothing left.
        let _ = stream.read_to_end(&mut left).await;
        (told, left)
    }

    fn of_version_2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [
            &SIGNATURE[..],
            &[command, family],
            &length,
            rest,
            b"\x16tls",
        ]
        .concat()
    }

    const LOCAL: &[&str] = &["10.0.0.0/8", "127.0.0.0/8"];

    #[tokio::test]
    async fn a_trusted_proxy_tells_who_its_client_is() {
        // Inventory §5.1: proxy_protocol_trusted_cidrs
        let ours: SocketAddr = "0.0.0.0:0".parse().unwrap();
        let v4 = [&[192, 0, 2, 1, 10, 0, 0, 1][..], &[0xdc, 0x04, 1, 187]].concat();
        let v6 = [&Ipv6Addr::LOCALHOST.octets()[..], &[0; 16], &[0, 9, 1, 187]].concat();
        // What follows the addresses is passed over.
        let more = [&v4[..], b"\x03\x00\x01x"].concat();
        for (bytes, wanted) in [
            (
                b"PROXY TCP4 192.0.2.1 10.0.0.1 56324 443\r\n\x16tls".to_vec(),
                "192.0.2.1:56324",
            ),
            (
                b"PROXY TCP6 2001:db8::1 ::1 9 443\r\n\x16tls".to_vec(),
                "[2001:db8::1]:9",
            ),
            (of_version_2(0x21, 0x11, &v4), "192.0.2.1:56324"),
            (of_version_2(0x21, 0x11, &more), "192.0.2.1:56324"),
            (of_version_2(0x21, 0x21, &v6), "[::1]:9"),
        ] {
            let (told, left) = client(LOCAL, &bytes).await;
            assert_eq!(told.unwrap(), wanted.parse().unwrap());
            assert_eq!(left, b"\x16tls");
        }
        for bytes in [
            b"\x16tls".to_vec(),
            b"PROXY UNKNOWN\r\n\x16tls".to_vec(),
            of_version_2(0x20, 0, b""),
            of_version_2(0x21, 0x31, &[0; 216]),
        ] {
            let (told, left) = client(LOCAL, &bytes).await;
            assert_eq!(told.unwrap(), ours);
            assert_eq!(left, b"\x16tls");
        }
    }

    #[tokio::test]
    async fn nobody_else_does() {
        // Inventory §5.1: proxy_protocol_trusted_cidrs
        let header = b"PROXY TCP4 192.0.2.1 10.0.0.1 56324 443\r\n\x16tls";
        let (told, _) = client(&["10.0.0.0/8"], header).await;
        let error = told.unwrap_err().to_string();
        assert!(error.contains("proxy_protocol_trusted_cidrs"), "{error}");
        // Without a header anybody may come; without the setting nothing is looked at.
        assert!(client(&["10.0.0.0/8"], b"\x16tls").await.0.is_ok());
        assert_eq!(client(&[], header).await.1, header);
    }

    #[tokio::test]
    async fn a_damaged_header_ends_the_connection() {
        // Inventory §5.1: proxy_protocol_trusted_cidrs
        for bytes in [
            b"PROXY\r\n".to_vec(),
            b"PROXY TCP4 ::1 ::1 1 1\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 10.0.0.1 99999 443\r\n".to_vec(),
            b"P".repeat(200),
            b"\r\n\r\n\0\r\nQUI".to_vec(),
            b"\r\n\r\n\0\r\nQUIT!\x21\x11\0\0".to_vec(),
            of_version_2(0x11, 0x11, &[0; 12]),
            of_version_2(0x21, 0x11, &[0; 5]),
            of_version_2(0x21, 0x11, &[0; 5000]),
        ] {
            let (told, _) = client(LOCAL, &bytes).await;
            assert!(told.is_err(), "{bytes:?}");
        }
    }
}
