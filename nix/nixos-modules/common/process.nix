# What access point and executor have in common: settings, secrets, the unit.
{
  config,
  lib,
  pkgs,
  # access-point or executor
  role,
  # Names of the settings that choose the provider, of the command, and of the user.
  identity,
  command,
  user,
}:
let
  option = "services.agent-harbor.${role}";
  title = "Agent Harbor ${lib.replaceStrings [ "-" ] [ " " ] role}";
  cfg = config.services.agent-harbor.${role};
  paths = import ./paths.nix { inherit lib; };
  table = import ./settings.nix { inherit lib role; };
  account = import ./account.nix {
    inherit user;
    description = title;
    group = "ah";
    directory = "/run/ah";
  };

  declare =
    name: kind:
    lib.mkOption {
      type = lib.types.nullOr kind.type;
      default = null;
      description =
        if kind.secret or false then
          "Not allowed, because it would be in the store: ${kind.instead}."
        else
          "`--${lib.replaceStrings [ "_" ] [ "-" ] (table.key name)}`";
    };
  options = lib.mapAttrs declare table.flat // {
    vault = lib.mapAttrs (name: declare "vault.${name}") table.vault;
  };

  # Everything that is set: its name as typed, what it is, and its value.
  given =
    let
      of =
        prefix: kinds: values:
        lib.concatLists (
          lib.mapAttrsToList (
            name: kind:
            lib.optional (values.${name} != null) {
              inherit kind;
              name = "${prefix}${name}";
              value = values.${name};
            }
          ) kinds
        );
    in
    of "" table.flat cfg.settings ++ of "vault." table.vault cfg.settings.vault;

  provider = if cfg.settings.${identity} == null then "dev" else cfg.settings.${identity};
  isSet = name: builtins.any (setting: setting.name == name) given;
  needs = names: lib.filter (name: !isSet name) names;
  missing = {
    files = needs [
      "cert"
      "key"
      "ca"
    ];
    vault = needs [
      "vault.address"
      "vault.pkiPath"
    ];
    exec = needs [ "execCommand" ];
  };

  toml =
    value:
    if builtins.isAttrs value && !(value ? outPath) then
      "{ ${
        lib.concatStringsSep ", " (
          lib.mapAttrsToList (name: one: "${builtins.toJSON name} = ${toml one}") value
        )
      } }"
    else
      builtins.toJSON value;
  text =
    setting:
    let
      value =
        if !(setting.kind.file or false) then
          setting.value
        else if setting.kind.private or false then
          toString setting.value
        else
          paths.public setting.value;
    in
    "${table.key setting.name} = ${toml value}";
  file = pkgs.writeText "${role}.toml" (lib.concatMapStrings (setting: "${text setting}\n") given);
in
{
  inherit file provider;

  settings = lib.mkOption {
    type = lib.types.submodule { inherit options; };
    default = { };
    description = "Settings: the flags of `ah agent ${command}` in camel case, those of Vault in `vault`.";
  };

  environmentFile = lib.mkOption {
    type = lib.types.nullOr lib.types.path;
    default = null;
    description = "File with lines `NAME=value` for the process: secrets such as VAULT_SECRET_ID. It is read at each start and has to be outside of the store.";
  };

  assertions =
    lib.concatMap (setting: [
      {
        assertion = !(setting.kind.secret or false);
        message = "${option}.settings.${setting.name} would put a secret into the Nix store, where every user can read it: ${
          setting.kind.instead or ""
        }.";
      }
      {
        assertion = !(setting.kind.private or false && paths.inStore setting.value);
        message = "${option}.settings.${setting.name} names a file in the Nix store, where every user can read its secret: name one outside, as a string such as \"/run/secrets/…\".";
      }
      {
        assertion = !(setting.kind.url or false && builtins.match "[^/]*://[^/@]*:[^/@]+@.*" setting.value != null);
        message = "${option}.settings.${setting.name} would put a password into the Nix store, where every user can read it: write ${setting.kind.variable or ""}=… into the file that ${option}.environmentFile names, and remove the setting.";
      }
    ]) given
    ++ [
      {
        assertion = cfg.environmentFile == null || !paths.inStore cfg.environmentFile;
        message = "${option}.environmentFile is in the Nix store, where every user can read it: name a file outside, as a string such as \"/run/secrets/ah.env\".";
      }
      {
        # Variables can say what a setting says.
        assertion = cfg.environmentFile != null || (missing.${provider} or [ ]) == [ ];
        message = "${option}.settings.${identity} is \"${provider}\", which needs more: set ${
          lib.concatMapStringsSep ", " (name: "${option}.settings.${name}") (missing.${provider} or [ ])
        }.";
      }
      {
        assertion =
          provider != "vault"
          || cfg.environmentFile != null
          || builtins.any isSet [
            "vault.auth"
            "vault.roleIdFile"
            "vault.tokenFile"
            "vault.k8sRole"
            "vault.jwtFile"
          ];
        message = "${option} has nothing to log in to Vault with: write VAULT_ROLE_ID=… and VAULT_SECRET_ID=… into a file and name it in ${option}.environmentFile, or set ${option}.settings.vault.roleIdFile and secretIdFile.";
      }
    ];

  inherit (account) users tmpfiles;

  unit = {
    description = title;
    wantedBy = [ "multi-user.target" ];
    wants = [ "network-online.target" ];
    after = [
      "network-online.target"
      "spire-agent.service"
    ];
    serviceConfig = import ./sandbox.nix // {
      Type = "notify";
      ExecStart = "${cfg.package}/bin/ah agent ${command} --config ${file}";
      ExecReload = "${pkgs.coreutils}/bin/kill -HUP $MAINPID";
      EnvironmentFile = lib.optional (cfg.environmentFile != null) (toString cfg.environmentFile);
      User = user;
      StateDirectoryMode = "0700";
      ReadWritePaths = "/run/ah";
      # It waits for its first identity as long as that takes.
      TimeoutStartSec = "infinity";
      # Longer than the default of drainTimeout.
      TimeoutStopSec = "60s";
      WatchdogSec = "30s";
      Restart = "on-failure";
      # A usage error stays one.
      RestartPreventExitStatus = 2;
      CapabilityBoundingSet = "";
      ProtectProc = "invisible";
      # A command that prints an identity may be of a language that compiles as it runs.
      MemoryDenyWriteExecute = provider != "exec";
    };
  };
}
