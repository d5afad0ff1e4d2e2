//! The NixOS modules, evaluated with nix on a stand-in of nixpkgs' `lib` (`nix/tests/lib.nix`).

mod complete;
mod debian;
mod evaluate;
mod guides;
mod refused;
mod running;
