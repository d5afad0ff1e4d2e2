//! Texts, numbers and truth values.

use zeroize::Zeroizing;

use super::{Decode, Node, prefix};
use crate::gonum::{NumberError, parse_int};
use crate::hcl::{HclError, Scalar};

fn scalar<'a>(path: &str, wanted: &str, node: &Node<'a>) -> Result<&'a Scalar, HclError> {
    match node {
        Node::Literal(literal) => Ok(&literal.scalar),
        node => Err(mismatch(path, wanted, node)),
    }
}

fn mismatch(path: &str, wanted: &str, node: &Node<'_>) -> HclError {
    let message = format!(
        "{}expected {wanted}, found {}",
        prefix(path),
        node.describe()
    );
    HclError::new(node.position(), message)
}

impl Decode for bool {
    fn decode(&mut self, path: &str, node: Node<'_>) -> Result<(), HclError> {
        let wanted = "true or false without quotes";
        match scalar(path, wanted, &node)? {
            Scalar::Bool(value) => *self = *value,
            _ => return Err(mismatch(path, wanted, &node)),
        }
        Ok(())
    }
}

impl Decode for i64 {
    fn decode(&mut self, path: &str, node: Node<'_>) -> Result<(), HclError> {
        let wanted = "a whole number";
        let (Scalar::Number(text) | Scalar::Text(text)) = scalar(path, wanted, &node)? else {
            return Err(mismatch(path, wanted, &node));
        };
        *self = parse_int(text).map_err(|why| {
            let why = match why {
                NumberError::Syntax => "which it is not",
                NumberError::Range => "and it is out of range",
            };
            HclError::new(
                node.position(),
                format!("{}expected {wanted}, {why}", prefix(path)),
            )
        })?;
        Ok(())
    }
}

impl Decode for f64 {
    fn decode(&mut self, path: &str, node: Node<'_>) -> Result<(), HclError> {
        let wanted = "a number";
        let text = match scalar(path, wanted, &node)? {
            Scalar::Number(text) => text.as_str(),
            Scalar::Float(text) => text,
            _ => return Err(mismatch(path, wanted, &node)),
        };
        *self = text.parse().map_err(|_| mismatch(path, wanted, &node))?;
        Ok(())
    }
}

impl Decode for Zeroizing<String> {
    fn decode(&mut self, path: &str, node: Node<'_>) -> Result<(), HclError> {
        let wanted = "a text in quotes";
        match scalar(path, wanted, &node)? {
            Scalar::Text(text) | Scalar::Number(text) => *self = text.clone(),
            _ => return Err(mismatch(path, wanted, &node)),
        }
        Ok(())
    }
}

impl Decode for String {
    fn decode(&mut self, path: &str, node: Node<'_>) -> Result<(), HclError> {
        let mut text = Zeroizing::<Self>::default();
        text.decode(path, node)?;
        *self = std::mem::take(&mut *text);
        Ok(())
    }
}
