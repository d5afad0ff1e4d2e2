{
  config,
  lib,
  pkgs,
  ...
}:
let
  t = lib.types;
  option = "services.spire.agent";
  cfg = config.services.spire.agent;
  paths = import ./common/paths.nix { inherit lib; };
  account = import ./common/account.nix {
    user = "spire-agent";
    description = "SPIRE agent";
    group = "spire";
    directory = "/run/spire";
  };

  state = "/var/lib/spire/agent";
  unit = import ./common/spire.nix {
    user = "spire-agent";
    state = "spire/agent";
  };
  unless = condition: value: if condition then null else value;
  conf = import ./common/conf.nix {
    inherit lib option;
    inherit (cfg) settings;
    main = "agent";
    said = {
      data_dir = state;
      server_address = cfg.serverAddress;
      server_port = cfg.serverPort;
      socket_path = "/run/spire/agent.sock";
      trust_domain = cfg.trustDomain;
      trust_bundle_path = unless (cfg.trustBundlePath == null) (paths.public cfg.trustBundlePath);
      insecure_bootstrap = unless (!cfg.insecureBootstrap) true;
      join_token = cfg.joinToken;
      join_token_file = unless (cfg.joinTokenFile == null) (toString cfg.joinTokenFile);
    };
    defaults.log_level = "INFO";
    plugins.WorkloadAttestor = lib.optionalAttrs cfg.workloadAttestors.unix.enable {
      unix.plugin_data.discover_workload_path = true;
    };
    defaultPlugins = {
      NodeAttestor.join_token.plugin_data = { };
      KeyManager.disk.plugin_data.directory = state;
    };
  };
  file = pkgs.writeText "agent.conf" conf.text;
in
{
  # nixpkgs has modules for upstream's binaries under the same names.
  disabledModules = [ "services/security/spire/agent.nix" ];

  options.services.spire.agent = {
    enable = lib.mkEnableOption "the SPIRE agent";
    package = import ./common/package.nix { inherit lib pkgs; };
    trustDomain = lib.mkOption {
      type = t.str;
      example = "example.org";
      description = "Trust domain of the agent's server.";
    };
    serverAddress = lib.mkOption {
      type = t.str;
      example = "spire-server.example.org";
      description = "Host name or IP address of the server.";
    };
    serverPort = lib.mkOption {
      type = t.port;
      default = 8081;
      description = "TCP port of the server.";
    };
    trustBundlePath = lib.mkOption {
      type = t.nullOr t.path;
      default = null;
      description = "The server's bundle in PEM (`spire-server bundle show`), by which the agent knows the server at their first meeting.";
    };
    insecureBootstrap = lib.mkOption {
      type = t.bool;
      default = false;
      description = "Believe the first server that answers. For development, in the place of `trustBundlePath`.";
    };
    joinToken = lib.mkOption {
      type = t.nullOr t.str;
      default = null;
      description = "Join token. Every user of the machine can read it in the store, so prefer `joinTokenFile`.";
    };
    joinTokenFile = lib.mkOption {
      type = t.nullOr t.path;
      default = null;
      description = "File with the join token, read at each attempt to attest. It has to be outside of the store.";
    };
    workloadAttestors.unix.enable = lib.mkEnableOption "selectors of user, group and executable";
    settings = conf.declare;
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = builtins.match "[a-z0-9._-]+" cfg.trustDomain != null;
        message = "${option}.trustDomain is \"${cfg.trustDomain}\": write the bare name in lower case, such as \"example.org\".";
      }
      {
        assertion = cfg.trustBundlePath != null || cfg.insecureBootstrap;
        message = "${option} does not know its server: set ${option}.trustBundlePath to the server's bundle, or for development ${option}.insecureBootstrap = true.";
      }
      {
        assertion = cfg.trustBundlePath == null || !cfg.insecureBootstrap;
        message = "${option}.trustBundlePath and ${option}.insecureBootstrap exclude each other: remove insecureBootstrap.";
      }
      {
        assertion = cfg.joinToken == null || cfg.joinTokenFile == null;
        message = "${option}.joinToken and ${option}.joinTokenFile exclude each other: remove joinToken.";
      }
      {
        assertion = cfg.joinTokenFile == null || !paths.inStore cfg.joinTokenFile;
        message = "${option}.joinTokenFile is in the Nix store, where every user can read it: name a file outside, as a string such as \"/run/secrets/join-token\".";
      }
      {
        assertion =
          cfg.workloadAttestors.unix.enable || (cfg.settings.plugins.WorkloadAttestor or { }) != { };
        message = "${option}.workloadAttestors enables none, so that no process can get an identity: set ${option}.workloadAttestors.unix.enable = true, or name another in ${option}.settings.plugins.WorkloadAttestor.";
      }
    ]
    ++ conf.assertions;

    warnings = lib.optional (
      cfg.joinToken != null
    ) "${option}.joinToken can be read by every user in the Nix store until an agent has used it: write it into a file and name that in ${option}.joinTokenFile.";

    inherit (account) users;
    systemd.tmpfiles = account.tmpfiles;
    environment.systemPackages = [ cfg.package ];
    environment.etc."spire/agent.conf".source = file;

    systemd.services.spire-agent = {
      description = "SPIRE agent";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [
        "network-online.target"
        "spire-server.service"
      ];
      serviceConfig = unit // {
        ExecStart = "${cfg.package}/bin/spire-agent run -config ${file}";
        # It is ready once it can serve workloads, and waits for the server as long as that takes.
        TimeoutStartSec = "infinity";
        # Which executable another user's process runs, and what is in it: the selectors unix:path and unix:sha256.
        AmbientCapabilities = "CAP_SYS_PTRACE CAP_DAC_READ_SEARCH";
        CapabilityBoundingSet = "CAP_SYS_PTRACE CAP_DAC_READ_SEARCH";
      };
    };
  };
}
