# The option `package` of every module.
{ lib, pkgs }:
lib.mkOption {
  type = lib.types.package;
  default = pkgs.callPackage ../../package.nix { };
  defaultText = lib.literalExpression "pkgs.callPackage ./nix/package.nix { }";
  description = "Package that holds `ah`, `spire-server`, `spire-agent` and `oidc-discovery-provider`.";
}
