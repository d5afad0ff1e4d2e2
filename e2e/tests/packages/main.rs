//! What is shipped: Debian packages, tarballs, images.

mod contents;
mod debian;
mod image;
mod kit;
mod units;
