# NixOS modules of SPIRE's server, agent and OIDC discovery provider, the access point and the executor: docs/nixos.md.
{
  imports = [
    ./spire-server.nix
    ./spire-agent.nix
    ./oidc-discovery-provider.nix
    ./access-point.nix
    ./executor.nix
  ];
}
