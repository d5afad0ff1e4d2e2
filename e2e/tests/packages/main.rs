//! What is shipped: Debian packages, tarballs, images.

mod contents;
mod image;
mod units;
