//! Numbers and bytes of binary formats, all big-endian.

/// What is left of a value.
pub(in crate::node) struct Reader<'a>(&'a [u8]);

/// Why bytes are no value. A text.
pub(in crate::node) const SHORT: &str = "it ends too early";

impl<'a> Reader<'a> {
    pub(in crate::node) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// What was not read yet.
    pub(in crate::node) fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub(in crate::node) fn take(&mut self, length: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(in crate::node) fn u16(&mut self) -> Result<u16, &'static str> {
        let bytes = self.take(2)?.try_into().map_err(|_| SHORT)?;
        Ok(u16::from_be_bytes(bytes))
    }

    pub(in crate::node) fn u32(&mut self) -> Result<u32, &'static str> {
        let bytes = self.take(4)?.try_into().map_err(|_| SHORT)?;
        Ok(u32::from_be_bytes(bytes))
    }

    pub(in crate::node) fn u64(&mut self) -> Result<u64, &'static str> {
        let bytes = self.take(8)?.try_into().map_err(|_| SHORT)?;
        Ok(u64::from_be_bytes(bytes))
    }

    /// That nothing is left.
    pub(in crate::node) fn end(&self) -> Result<(), &'static str> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err("something stands behind its end")
    }
}

/// `number` without the zeros in front of it.
pub(in crate::node) fn without_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros..).unwrap_or_default()
}

/// `number` with leading zeros, so that it has `length` bytes; none where it is longer.
pub(in crate::node) fn padded(number: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut out = vec![0; length.checked_sub(number.len())?];
    out.extend_from_slice(number);
    Some(out)
}
