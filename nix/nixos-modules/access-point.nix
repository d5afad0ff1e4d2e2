{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.agent-harbor.access-point;
  process = import ./common/process.nix {
    inherit config lib pkgs;
    role = "access-point";
    identity = "serverIdentity";
    command = "access-point";
    user = "agent-harbor";
  };
in
{
  options.services.agent-harbor.access-point = {
    enable = lib.mkEnableOption "the access point, which executors enroll with";
    package = import ./common/package.nix { inherit lib pkgs; };
    inherit (process) settings environmentFile;
  };

  config = lib.mkIf cfg.enable {
    inherit (process) assertions users;
    environment.systemPackages = [ cfg.package ];
    environment.etc."ah/access-point.toml".source = process.file;
    systemd.tmpfiles = process.tmpfiles;
    systemd.services.ah-access-point = process.unit // {
      serviceConfig = process.unit.serviceConfig // {
        StateDirectory = "ah";
        RestartSec = "5s";
        ProcSubset = "pid";
        # One descriptor for each executor.
        LimitNOFILE = 524288;
      };
    };
  };
}
