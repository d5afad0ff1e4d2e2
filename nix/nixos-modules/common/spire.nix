# What the units of SPIRE's programs have in common. `state` is below /var/lib.
{ user, state }:
import ./sandbox.nix
// {
  Type = "notify";
  User = user;
  StateDirectory = state;
  StateDirectoryMode = "0700";
  WorkingDirectory = "/var/lib/${state}";
  ReadWritePaths = "/run/spire";
  TimeoutStopSec = "30s";
  WatchdogSec = "30s";
  Restart = "on-failure";
  RestartSec = "5s";
}
