//! Requests over unix sockets whose `:authority` is the socket's path.
//!
//! A unix socket has no host. grpc-go says `localhost`; gRPC for C++, Python and Java sends the path, as it is or
//! percent-encoded, which is no authority (RFC 3986 §3.2), and h2 refuses such a request before anybody sees it. What is
//! wrong in it is replaced letter by letter, so that the header block keeps its length and both ends' tables agree
//! (RFC 7541 §2.3). Nobody here reads the authority.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// RFC 9113 §3.4
const PREFACE: usize = 24;

/// RFC 9113 §4.1
const FRAME_HEADER: usize = 9;

/// `HEADERS` (RFC 9113 §6.2) and its flags.
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// What we announce; larger frames are an error that h2 tells.
const MAX_FRAME: usize = 16 * 1024;

/// `:authority` in the static table (RFC 7541 Appendix A).
const AUTHORITY: usize = 1;

pin_project! {
    /// A client's bytes with what h2 would refuse in authorities replaced.
    pub(crate) struct Relaxed<T> {
        #[pin]
        inner: T,
        frames: Frames,
    }
}

impl<T> Relaxed<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self {
            inner,
            frames: Frames {
                passing: PREFACE,
                held: Vec::new(),
                ready: Vec::new(),
                taken: 0,
            },
        }
    }
}

impl<T: AsyncRead> AsyncRead for Relaxed<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut this = self.project();
        loop {
            if this.frames.take(buffer) || buffer.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            let mut bytes = [0; 2048];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(this.inner.as_mut().poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.frames.add(read.filled());
        }
    }
}

impl<T: AsyncWrite> AsyncWrite for Relaxed<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.project().inner.poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().inner.poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().inner.poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.project().inner.poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

/// Where in the stream of frames we are.
struct Frames {
    /// Bytes that go through unseen: the preface, and payloads of other frames.
    passing: usize,
    /// A frame's header, and of `HEADERS` the payload, until it is whole.
    held: Vec<u8>,
    /// To be read, from `taken` on.
    ready: Vec<u8>,
    taken: usize,
}

impl Frames {
    /// Moves what is ready to `buffer`; whether there was anything.
    fn take(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let left = self.ready.get(self.taken..).unwrap_or_default();
        let some = left.get(..buffer.remaining()).unwrap_or(left);
        buffer.put_slice(some);
        self.taken = self.taken.saturating_add(some.len());
        let any = !some.is_empty();
        if self.taken == self.ready.len() {
            // An idle connection keeps nothing.
            self.ready = Vec::new();
            self.taken = 0;
        }
        any
    }

    fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let wanted = match self.passing {
                0 => self.frame_length().saturating_sub(self.held.len()),
                passing => passing,
            };
            let (now, later) = bytes.split_at_checked(wanted).unwrap_or((bytes, &[]));
            bytes = later;
            if self.passing > 0 {
                self.ready.extend_from_slice(now);
                self.passing = self.passing.saturating_sub(now.len());
                continue;
            }
            self.held.extend_from_slice(now);
            if self.held.len() == FRAME_HEADER && !self.is_headers() {
                self.passing = self.payload_length();
                self.ready.append(&mut self.held);
            } else if self.held.len() == self.frame_length() {
                self.relax();
                self.ready.append(&mut self.held);
                self.held = Vec::new();
            }
        }
    }

    fn payload_length(&self) -> usize {
        match self.held.as_slice() {
            [a, b, c, ..] => usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c),
            _ => 0,
        }
    }

    fn is_headers(&self) -> bool {
        self.held.get(3) == Some(&HEADERS) && self.payload_length() <= MAX_FRAME
    }

    /// How much is held before it is looked at.
    fn frame_length(&self) -> usize {
        if self.held.len() < FRAME_HEADER {
            return FRAME_HEADER;
        }
        FRAME_HEADER.saturating_add(self.payload_length())
    }

    /// Puts a whole `HEADERS` frame right. What cannot be understood is left for h2 to refuse.
    fn relax(&mut self) {
        let flags = self.held.get(4).copied().unwrap_or_default();
        let mut block = FRAME_HEADER..self.held.len();
        if flags & PADDED != 0 {
            let padding = self.held.get(block.start).copied().unwrap_or_default();
            block = block.start.saturating_add(1)..block.end.saturating_sub(usize::from(padding));
        }
        if flags & PRIORITY != 0 {
            block.start = block.start.saturating_add(5);
        }
        if let Some(block) = self.held.get_mut(block) {
            relax_block(block);
        }
    }
}

/// Walks over the fields of a header block (RFC 7541 §6) as far as it has them whole.
fn relax_block(block: &mut [u8]) -> Option<()> {
    let mut at = 0;
    while let Some(&first) = block.get(at) {
        // Indexed field, and the size of the table: no strings.
        let (prefix, literal) = match first {
            0x80.. => (7, false),
            0x40.. => (6, true),
            0x20.. => (5, false),
            _ => (4, true),
        };
        let (index, next) = integer(block, at, prefix)?;
        at = next;
        if !literal {
            continue;
        }
        let mut is_authority = index == AUTHORITY;
        if index == 0 {
            // gRPC's C core writes this name out.
            let (_, name) = string(block, at)?;
            at = name.end;
            is_authority = block.get(name)? == b":authority";
        }
        let (huffman, value) = string(block, at)?;
        at = value.end;
        if is_authority {
            let value = block.get_mut(value)?;
            if huffman {
                relax_huffman(value);
            } else {
                for letter in value {
                    if matches!(letter, b'%' | b'/') {
                        *letter = b'-';
                    }
                }
            }
        }
    }
    Some(())
}

/// RFC 7541 §5.1: the integer at `at`, and where it ends.
fn integer(block: &[u8], at: usize, prefix: u8) -> Option<(usize, usize)> {
    let most = (1_usize << prefix) - 1;
    let mut value = usize::from(*block.get(at)?) & most;
    let mut at = at + 1;
    if value < most {
        return Some((value, at));
    }
    for shift in [0, 7, 14] {
        let byte = usize::from(*block.get(at)?);
        at += 1;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, at));
        }
    }
    None
}

/// RFC 7541 §5.2: whether the string at `at` is in Huffman's code, and where its bytes are.
fn string(block: &[u8], at: usize) -> Option<(bool, Range<usize>)> {
    let huffman = block.get(at)? & 0x80 != 0;
    let (length, start) = integer(block, at, 7)?;
    let end = start
        .checked_add(length)
        .filter(|end| *end <= block.len())?;
    Some((huffman, start..end))
}

/// `%`, `/` and `-` have codes of six bits each (RFC 7541 Appendix B). Codes of up to eight bits are told by their
/// value alone and hold all that paths are made of; a longer one ends the walk.
fn relax_huffman(value: &mut [u8]) -> Option<()> {
    const PERCENT: u8 = 0b01_0101;
    const SLASH: u8 = 0b01_1000;
    const DASH: u8 = 0b01_0110;
    let bits = value.len().checked_mul(8)?;
    let mut at = 0;
    while at + 5 <= bits {
        let next = |count| peek(value, at, count);
        let length = if next(5)? < 0b0_1010 {
            5
        } else if next(6)? <= 0b10_1101 {
            6
        } else if next(7)? <= 0b111_1011 {
            7
        } else if next(8)? <= 0b1111_1101 {
            8
        } else {
            return None;
        };
        if length == 6 && matches!(next(6)?, PERCENT | SLASH) {
            for bit in 0..6 {
                let (byte, mask) = ((at + bit) / 8, 0x80 >> ((at + bit) % 8));
                let byte = value.get_mut(byte)?;
                *byte = match DASH & (0b10_0000 >> bit) {
                    0 => *byte & !mask,
                    _ => *byte | mask,
                };
            }
        }
        at += length;
    }
    Some(())
}

/// `count` bits from bit `at` on, at most eight.
fn peek(value: &[u8], at: usize, count: usize) -> Option<u8> {
    (at..at + count).try_fold(0, |found, bit| {
        let byte = value.get(bit / 8)?;
        Some(found << 1 | (byte >> (7 - bit % 8)) & 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags, 0, 0, 0, 1]);
        frame.extend(payload);
        frame
    }

    /// What comes out of `bytes`, fed `step` at a time.
    fn fed(bytes: &[u8], step: usize) -> Vec<u8> {
        let mut frames = Relaxed::new(()).frames;
        for part in bytes.chunks(step) {
            frames.add(part);
        }
        let mut buffer = vec![0; bytes.len()];
        let mut read = ReadBuf::new(&mut buffer);
        frames.take(&mut read);
        read.filled().to_vec()
    }

    fn stream(authority: &[u8]) -> Vec<u8> {
        let mut bytes = vec![b'P'; PREFACE];
        bytes.extend(frame(4, 0, b"%/%/%/"));
        // :method POST, then a new name with a value, then the authority.
        let mut block = vec![0x83, 0x40, 1, b'n', 2, b'%', b'/'];
        block.extend([0x41, u8::try_from(authority.len()).unwrap()]);
        block.extend(authority);
        block.extend([0x40, 10]);
        block.extend(b":authority");
        block.push(u8::try_from(authority.len()).unwrap());
        block.extend(authority);
        block.extend([0x04, 2, b'/', b'%']);
        bytes.extend(frame(HEADERS, 4, &block));
        let mut padded = vec![3, 0, 0, 0, 0, 16];
        padded.extend(&block);
        padded.extend(b"%/%");
        bytes.extend(frame(HEADERS, 4 | PADDED | PRIORITY, &padded));
        bytes.extend(frame(0, 1, b"%/"));
        bytes
    }

    #[test]
    fn a_path_becomes_an_authority_and_nothing_else_is_touched() {
        for (path, authority) in [
            (b"tmp%2Fa.sock", b"tmp-2Fa.sock"),
            (b"/tmp/aa.sock", b"-tmp-aa.sock"),
            (b"localhost:80", b"localhost:80"),
        ] {
            let bytes = stream(path);
            for step in [1, 2, 7, bytes.len()] {
                assert_eq!(fed(&bytes, step), stream(authority), "{step}");
            }
        }
    }

    // RFC 7541 Appendix B: `/a%-` is 011000 00011 010101 010110, and ones fill the last byte.
    #[test]
    fn a_path_in_huffmans_code_becomes_an_authority_too() {
        let mut path = [0b0110_0000, 0b0110_1010, 0b1010_1101];
        assert_eq!(relax_huffman(&mut path), Some(()));
        // `-a--`
        assert_eq!(path, [0b0101_1000, 0b0110_1011, 0b0010_1101]);
    }

    #[test]
    fn what_is_cut_off_is_left_alone() {
        for block in [
            &[0x41][..],
            &[0x41, 9, b'%'],
            &[0x7f, 0xff, 0xff, 0xff, 0xff],
        ] {
            let mut relaxed = block.to_vec();
            relax_block(&mut relaxed);
            assert_eq!(relaxed, block);
        }
        assert_eq!(relax_huffman(&mut [0xff, 0xff]), None);
    }
}
