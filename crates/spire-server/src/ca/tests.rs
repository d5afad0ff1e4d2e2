//! What is signed, and the life of authorities.

mod aws;
mod cert_manager;
mod composing;
mod ejbca;
mod gcp_cas;
mod kit;
mod life;
mod operating;
mod own_svid;
mod signing;
mod upstream;
