# NixOS modules of SPIRE's server and agent, the access point and the executor: docs/nixos.md.
{
  imports = [
    ./spire-server.nix
    ./spire-agent.nix
    ./access-point.nix
    ./executor.nix
  ];
}
