//! The first line that a plugin prints: where it listens, and what it speaks there.
//!
//! `CORE|APP|NETWORK|ADDRESS|PROTOCOL[|CERTIFICATE[|MULTIPLEXED]]`

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ah_identity_provider::{Code, Explained};

/// The version of the handshake itself.
const CORE: &str = "1";

/// The version of what SPIRE's plugins speak.
const APP: &str = "1";

/// A certificate is longer than this; older plugins print something else in its place.
const NOT_A_CERTIFICATE: usize = 50;

/// Where a plugin listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Unix(PathBuf),
    /// On this machine.
    Tcp(SocketAddr),
}

/// Reads the line.
pub(crate) fn parse(line: &str) -> Result<Address, Explained> {
    let line = line.trim();
    let parts: Vec<&str> = line.split('|').collect();
    let refuse = |why: String, hint: &str| {
        Explained::new(Code::Other, "the plugin's handshake was refused")
            .cause(why)
            .hint(hint)
    };
    let rebuild = "build the plugin with SPIRE's plugin SDK of version 1";
    let [core, app, network, address, rest @ ..] = parts.as_slice() else {
        let shown: String = line.chars().take(200).collect();
        return Err(refuse(
            format!("its first line on stdout is no handshake: {shown:?}"),
            "the program has to be a plugin of SPIRE's plugin SDK, and has to print nothing to stdout before it serves",
        ));
    };
    if *core != CORE {
        let why = format!("it has version {core:?} of the core protocol, and this host has {CORE}");
        return Err(refuse(why, rebuild));
    }
    if *app != APP {
        let why = format!("it has version {app:?} of the plugin protocol, and this host has {APP}");
        return Err(refuse(why, rebuild));
    }
    let (protocol, certificate) = match rest {
        [] => ("netrpc", ""),
        [protocol] => (*protocol, ""),
        [protocol, certificate, ..] => (*protocol, *certificate),
    };
    if protocol != "grpc" {
        let why = format!("it speaks {protocol:?}, and this host speaks \"grpc\"");
        return Err(refuse(why, rebuild));
    }
    if certificate.len() > NOT_A_CERTIFICATE {
        return Err(refuse(
            "it wants TLS, which SPIRE's plugins do not speak".to_owned(),
            "build the plugin without a TLS provider",
        ));
    }
    match *network {
        "unix" if !address.is_empty() => Ok(Address::Unix(PathBuf::from(address))),
        "tcp" => match address.parse::<SocketAddr>() {
            Ok(address) if is_here(address.ip()) => Ok(Address::Tcp(address)),
            _ => Err(refuse(
                format!("{address:?} is no loopback address with a port"),
                "let the plugin listen on a unix socket",
            )),
        },
        _ => Err(refuse(
            format!("it listens on {network:?} {address:?}"),
            "let the plugin listen on a unix socket",
        )),
    }
}

fn is_here(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    // go-plugin: the line with and without what newer plugins add.
    #[test]
    fn lines_of_real_plugins_are_understood() {
        let at = Address::Unix("/tmp/plugin123".into());
        for line in [
            "1|1|unix|/tmp/plugin123|grpc",
            "1|1|unix|/tmp/plugin123|grpc|\n",
            " 1|1|unix|/tmp/plugin123|grpc||true",
        ] {
            assert_eq!(parse(line).unwrap(), at);
        }
        let tcp = parse("1|1|tcp|127.0.0.1:1234|grpc").unwrap();
        assert_eq!(tcp, Address::Tcp("127.0.0.1:1234".parse().unwrap()));
    }

    #[test]
    fn every_lie_is_named() {
        let certificate = "A".repeat(600);
        for (line, told) in [
            ("", "no handshake: \"\""),
            ("hello", "no handshake: \"hello\""),
            ("1|1|unix", "no handshake"),
            ("2|1|unix|/a|grpc", "version \"2\" of the core protocol"),
            ("x|1|unix|/a|grpc", "version \"x\" of the core protocol"),
            ("1|2|unix|/a|grpc", "version \"2\" of the plugin protocol"),
            ("1|1|unix|/a", "speaks \"netrpc\""),
            ("1|1|unix|/a|netrpc", "speaks \"netrpc\""),
            ("1|1|unix||grpc", "listens on \"unix\" \"\""),
            ("1|1|udp|/a|grpc", "listens on \"udp\""),
            ("1|1|tcp|10.0.0.1:80|grpc", "no loopback address"),
            ("1|1|tcp|localhost|grpc", "no loopback address"),
            (&format!("1|1|unix|/a|grpc|{certificate}"), "wants TLS"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.report().contains(told), "{line}: {}", error.report());
            assert!(error.hint.is_some());
        }
    }
}
