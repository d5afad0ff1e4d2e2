{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.agent-harbor.executor;
  process = import ./common/process.nix {
    inherit config lib pkgs;
    role = "executor";
    identity = "identity";
    command = "enroll";
    user = "executor";
  };
in
{
  options.services.agent-harbor.executor = {
    enable = lib.mkEnableOption "the executor, which enrolls with an access point";
    package = import ./common/package.nix { inherit lib pkgs; };
    inherit (process) settings environmentFile;
  };

  config = lib.mkIf cfg.enable {
    inherit (process) users;
    assertions = process.assertions ++ [
      {
        assertion = cfg.settings.remoteServer != null || cfg.environmentFile != null;
        message = "services.agent-harbor.executor.settings.remoteServer is missing: name the access point, such as \"https://access-point.example.com:4433\".";
      }
    ];
    environment.systemPackages = [ cfg.package ];
    environment.etc."ah/executor.toml".source = process.file;
    systemd.tmpfiles = process.tmpfiles;
    systemd.services.ah-executor = process.unit // {
      serviceConfig = process.unit.serviceConfig // {
        StateDirectory = "ah-executor";
        RestartSec = "10s";
      };
    };
  };
}
