# The options of NixOS that our modules and the guides' configurations set, in their types; and that of sops-nix.
{ lib, ... }:
let
  t = lib.types;
  option =
    type: default:
    lib.mkOption {
      inherit type default;
      description = "As in NixOS.";
    };
  strings = option (t.listOf t.str) [ ];
  value = t.either (t.listOf t.str) (t.either t.str (t.either t.bool t.int));

  unit.options = {
    description = option t.str "";
    wantedBy = strings;
    wants = strings;
    after = strings;
    bindsTo = strings;
    startLimitIntervalSec = option (t.nullOr t.int) null;
    serviceConfig = option (t.attrsOf value) { };
  };
  user.options = {
    isSystemUser = option t.bool false;
    group = option t.str "";
    extraGroups = strings;
    description = option t.str "";
  };
  directory.options = {
    mode = option t.str "-";
    user = option t.str "-";
    group = option t.str "-";
  };
  secret.options = {
    path = option t.path "/run/secrets/of-this-machine";
  };
in
{
  options = {
    assertions = option (t.listOf t.anything) [ ];
    warnings = strings;
    environment.etc = option (t.attrsOf (t.submodule { options.source = option t.path "/nowhere"; })) { };
    environment.systemPackages = option (t.listOf t.package) [ ];
    networking.firewall.allowedTCPPorts = option (t.listOf t.port) [ ];
    networking.hostName = option t.str "nixos";
    systemd.services = option (t.attrsOf (t.submodule unit)) { };
    systemd.tmpfiles.settings = option (t.attrsOf (t.attrsOf (t.attrsOf (t.submodule directory)))) { };
    users.users = option (t.attrsOf (t.submodule user)) { };
    users.groups = option (t.attrsOf (t.submodule { })) { };
    sops.secrets = option (t.attrsOf (t.submodule secret)) { };
  };
}
