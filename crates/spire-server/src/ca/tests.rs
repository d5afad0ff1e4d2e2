//! What is signed, and the life of authorities.

mod composing;
mod ejbca;
mod kit;
mod life;
mod operating;
mod own_svid;
mod signing;
mod upstream;
