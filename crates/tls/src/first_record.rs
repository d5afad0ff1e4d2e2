//! What a peer sends first, looked at while it stays in the kernel.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{MsgFlags, recv};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// What has come from a peer so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum First {
    /// A handshake record (RFC 8446 section 5.1), the whole of it or more than any client needs.
    Record,
    /// What cannot become one.
    Other,
    /// Nothing, or a part of one.
    Part,
    /// Nothing, and the peer sends no more.
    End,
}

/// Waits for the whole first record of TLS, or for what cannot become one, which is a part when no more comes.
pub(crate) async fn first_record(stream: &TcpStream) -> io::Result<First> {
    loop {
        // An accepted socket counts as readable before anything came; what is not there is found out by the reading.
        let ready = stream.ready(Interest::READABLE).await?;
        let first = look(stream)?;
        if first != First::Part || ready.is_read_closed() {
            return Ok(first);
        }
    }
}

/// Looks at what is there, and waits for nothing.
pub(crate) fn look(stream: &TcpStream) -> io::Result<First> {
    let looked = stream.try_io(Interest::READABLE, || {
        let mut start = [0; MOST_PEEKED];
        let there = recv(stream.as_raw_fd(), &mut start, MsgFlags::MSG_PEEK)?;
        match judge(start.get(..there).unwrap_or_default()) {
            // The next that arrives makes the socket readable again.
            First::Part => Err(io::ErrorKind::WouldBlock.into()),
            first => Ok(first),
        }
    });
    match looked {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(First::Part),
        looked => looked,
    }
}

/// Judges `start`, the first bytes of a peer; none of them is its end.
fn judge(start: &[u8]) -> First {
    match start {
        [] => First::End,
        [kind, ..] if *kind != HANDSHAKE_RECORD => First::Other,
        [_, _, _, high, low, rest @ ..]
            if rest.len() >= usize::from(u16::from_be_bytes([*high, *low])) =>
        {
            First::Record
        }
        _ if start.len() >= MOST_PEEKED => First::Record,
        _ => First::Part,
    }
}

/// ContentType of handshake messages (RFC 8446 section 5.1).
const HANDSHAKE_RECORD: u8 = 22;
/// More of a first record than any client needs. A larger one is read as it comes.
const MOST_PEEKED: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_record_is_waited_for_whole() {
        // AP-16
        let record = [22, 3, 1, 1, 2].into_iter().chain([7; 258]);
        let record: Vec<u8> = record.collect();
        for length in 1..record.len() {
            assert_eq!(judge(&record[..length]), First::Part, "{length}");
        }
        assert_eq!(judge(&record), First::Record);
        assert_eq!(judge(&[]), First::End);
        // One that is too large is read as it comes.
        let large = [22, 3, 1, 0x40, 0].into_iter().chain([7; MOST_PEEKED]);
        let large: Vec<u8> = large.collect();
        assert_eq!(judge(&large[..MOST_PEEKED]), First::Record);
        // The alert, or the reason, of what is no TLS must not wait for more of it.
        for other in [
            b"GET / HTTP/1.1".as_slice(),
            b"\x15",
            b"\x17\x03\x03\x00\x01",
        ] {
            assert_eq!(judge(other), First::Other);
        }
    }
}
