//! What is signed, and the life of authorities.

mod aws;
mod composing;
mod ejbca;
mod kit;
mod life;
mod operating;
mod own_svid;
mod signing;
mod upstream;
