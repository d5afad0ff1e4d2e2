# Evaluates a configuration as NixOS would, and tells what comes of it: units, files, users, directories.
{
  configuration,
  lib ? import ./lib.nix,
}:
let
  # A store path that says what it is of.
  stored = name: "/nix/store/00000000000000000000000000000000-${name}";
  derivation = name: {
    type = "derivation";
    inherit name;
    outPath = stored name;
  };
  pkgs = {
    coreutils = derivation "coreutils";
    callPackage = _: _: derivation "agent-harbor";
    writeText = name: text: derivation name // { inherit text; };
  };

  inherit
    (lib.evalModules {
      specialArgs = { inherit pkgs; };
      modules = [
        ./nixos.nix
        configuration
      ];
    })
    config
    ;

  # Lines of a section as NixOS writes them: a list is the same key several times.
  text = value: if builtins.isBool value then (if value then "true" else "false") else toString value;
  lines =
    section:
    lib.concatLists (
      lib.mapAttrsToList (
        name: value: map (one: "${name}=${text one}") (if builtins.isList value then value else [ value ])
      ) section
    );
  joined = names: lib.optional (names != [ ]) (toString names);
  unit =
    it:
    lib.concatStringsSep "\n" (
      [ "[Unit]" ]
      ++ lines {
        Description = it.description;
        After = joined it.after;
        BindsTo = joined it.bindsTo;
        StartLimitIntervalSec = lib.optional (it.startLimitIntervalSec != null) it.startLimitIntervalSec;
        Wants = joined it.wants;
      }
      ++ [
        ""
        "[Service]"
      ]
      ++ lines it.serviceConfig
      ++ [
        ""
        "[Install]"
      ]
      ++ lines { WantedBy = joined it.wantedBy; }
    )
    + "\n";

  failed = lib.filter (one: !one.assertion) config.assertions;
in
if failed != [ ] then
  throw "\nFailed assertions:\n${lib.concatMapStringsSep "\n" (one: "- ${one.message}") failed}"
else
  {
    inherit (config) warnings;
    units = lib.mapAttrs (_: unit) config.systemd.services;
    # By path below /etc: where it is in the store, and what is in it.
    files = lib.mapAttrs (_: file: {
      store = "${file.source}";
      inherit (file.source) text;
    }) config.environment.etc;
    ports = config.networking.firewall.allowedTCPPorts;
    directories = lib.concatLists (
      lib.mapAttrsToList (
        _: lib.mapAttrsToList (path: it: "${path} ${it.d.mode} ${it.d.user} ${it.d.group}")
      ) config.systemd.tmpfiles.settings
    );
    users = lib.mapAttrs (_: user: [ user.group ] ++ user.extraGroups) config.users.users;
    groups = builtins.attrNames config.users.groups;
  }
