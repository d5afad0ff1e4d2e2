{
  config,
  lib,
  pkgs,
  ...
}:
let
  t = lib.types;
  option = "services.spire.server";
  cfg = config.services.spire.server;
  paths = import ./common/paths.nix { inherit lib; };
  account = import ./common/account.nix {
    user = "spire-server";
    description = "SPIRE server";
    group = "spire";
    directory = "/run/spire";
  };
  sandbox = import ./common/sandbox.nix // {
    CapabilityBoundingSet = "";
    ProtectProc = "invisible";
    ProcSubset = "pid";
  };

  socket = "/run/spire/server.sock";
  state = "/var/lib/spire/server";
  unit = import ./common/spire.nix {
    user = "spire-server";
    state = "spire/server";
  };
  sqlite = cfg.dataStore.type == "sqlite3";
  database =
    if cfg.dataStore.connectionString != null then
      cfg.dataStore.connectionString
    else
      "${state}/datastore.sqlite3";

  # A URL with user:password@, what MySQL has instead, or the word of a key/value pair; a variable is none.
  password =
    builtins.match "[^/]*://[^/@]*:[^/@$][^/@]*@.*" database != null
    || builtins.match "(.* )?password ?= ?'?[^$' ].*" database != null
    || cfg.dataStore.type == "mysql" && builtins.match "[^:@/]*:[^$].*@.*" database != null;

  # Without a file of variables nothing is expanded, so that a `$` is a `$`.
  variables = cfg.environmentFile != null;

  conf = import ./common/conf.nix {
    inherit lib option;
    inherit (cfg) settings;
    main = "server";
    said = {
      bind_address = cfg.bindAddress;
      bind_port = cfg.bindPort;
      socket_path = socket;
      trust_domain = cfg.trustDomain;
      data_dir = state;
    };
    defaults.log_level = "INFO";
    plugins = {
      DataStore.sql.plugin_data = {
        database_type = cfg.dataStore.type;
        connection_string = database;
      };
      NodeAttestor = lib.optionalAttrs cfg.nodeAttestors.joinToken.enable {
        join_token.plugin_data = { };
      };
    };
    defaultPlugins.KeyManager.disk.plugin_data.keys_path = "${state}/keys.json";
  };
  file = pkgs.writeText "server.conf" conf.text;

  entries = pkgs.writeText "entries.json" (
    builtins.toJSON {
      entries = map (lib.filterAttrs (_: value: value != null)) cfg.registrationEntries;
    }
  );

  optional =
    type: description:
    lib.mkOption {
      type = t.nullOr type;
      default = null;
      inherit description;
    };
  entry.options = {
    parentId = lib.mkOption {
      type = t.str;
      description = "SPIFFE ID of the agent, or of a node alias, that may hand it out.";
    };
    spiffeId = lib.mkOption {
      type = t.str;
      description = "SPIFFE ID of the workload.";
    };
    selectors = lib.mkOption {
      type = t.listOf t.str;
      description = "What a process has to be, such as `unix:user:executor`; all of them have to hold.";
    };
    x509SvidTtl = optional t.ints.unsigned "Life of its X509-SVIDs in seconds.";
    jwtSvidTtl = optional t.ints.unsigned "Life of its JWT-SVIDs in seconds.";
    dnsNames = optional (t.listOf t.str) "DNS SANs of its X509-SVIDs.";
    federatesWith = optional (t.listOf t.str) "Trust domains whose bundles it gets.";
    hint = optional t.str "Tells the workload's SVIDs apart (`--spiffe-hint`).";
    admin = optional t.bool "Whether it may administer the server.";
    downstream = optional t.bool "Whether it is a server below this one.";
  };

  # What is wrong with an entry, or null.
  fault =
    one:
    let
      within = "spiffe://${cfg.trustDomain}/";
      lone = lib.filter (selector: builtins.match "[^:]+:.+" selector == null) one.selectors;
    in
    if !(lib.hasPrefix within one.spiffeId) then
      "spiffeId \"${one.spiffeId}\" is not of the trust domain: begin it with ${within}"
    else if !(lib.hasPrefix within one.parentId) then
      "parentId \"${one.parentId}\" is not of the trust domain: begin it with ${within}"
    else if one.selectors == [ ] then
      "selectors is empty: name what the process has to be, such as \"unix:user:executor\""
    else if lone != [ ] then
      "selector \"${builtins.head lone}\" lacks its type: write TYPE:VALUE, such as \"unix:user:executor\""
    else
      null;
  same = one: builtins.toJSON [
    one.parentId
    one.spiffeId
    (builtins.sort builtins.lessThan one.selectors)
  ];
  twice = lib.filter (
    one: builtins.length (lib.filter (other: same other == same one) cfg.registrationEntries) > 1
  ) cfg.registrationEntries;
in
{
  # nixpkgs has modules for upstream's binaries under the same names.
  disabledModules = [ "services/security/spire/server.nix" ];

  options.services.spire.server = {
    enable = lib.mkEnableOption "the SPIRE server";
    package = import ./common/package.nix { inherit lib pkgs; };
    trustDomain = lib.mkOption {
      type = t.str;
      example = "example.org";
      description = "Trust domain that the server is the authority of.";
    };
    bindAddress = lib.mkOption {
      type = t.str;
      default = "0.0.0.0";
      description = "Address that agents dial.";
    };
    bindPort = lib.mkOption {
      type = t.port;
      default = 8081;
      description = "TCP port that agents dial.";
    };
    dataStore = {
      type = lib.mkOption {
        type = t.enum [
          "sqlite3"
          "postgres"
          "mysql"
        ];
        default = "sqlite3";
        description = "Kind of database; servers that share a trust domain share a PostgreSQL, MySQL or MariaDB.";
      };
      connectionString = lib.mkOption {
        type = t.nullOr t.str;
        default = null;
        example = "postgres://spire:$SPIRE_DB_PASSWORD@db:5432/spire?sslmode=require";
        description = "Path of the SQLite database, by default `${state}/datastore.sqlite3`; or how to reach PostgreSQL or MySQL. With `environmentFile`, `$NAME` stands for a variable.";
      };
    };
    nodeAttestors.joinToken.enable = lib.mkEnableOption "attestation of agents by a join token";
    registrationEntries = lib.mkOption {
      type = t.listOf (t.submodule entry);
      default = [ ];
      description = "Registration entries. At each start the server gets those that it lacks, and loses those that were here before and no longer are; entries that were made otherwise stay.";
    };
    settings = conf.declare;
    environmentFile = lib.mkOption {
      type = t.nullOr t.path;
      default = null;
      description = "File with lines `NAME=value` of the variables that `dataStore.connectionString` names. It has to be outside of the store.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = builtins.match "[a-z0-9._-]+" cfg.trustDomain != null;
        message = "${option}.trustDomain is \"${cfg.trustDomain}\": write the bare name in lower case, such as \"example.org\".";
      }
      {
        assertion = cfg.nodeAttestors.joinToken.enable || (cfg.settings.plugins.NodeAttestor or { }) != { };
        message = "${option}.nodeAttestors enables none, so that no agent can prove what node it is: set ${option}.nodeAttestors.joinToken.enable = true, or name another in ${option}.settings.plugins.NodeAttestor.";
      }
      {
        assertion = sqlite || cfg.dataStore.connectionString != null;
        message = "${option}.dataStore.connectionString is missing: say how to reach the database, such as \"dbname=spire host=/run/postgresql\".";
      }
      {
        assertion = !sqlite || !(lib.hasPrefix "/" database) || lib.hasPrefix "${state}/" database;
        message = "${option}.dataStore.connectionString is \"${database}\", which the server may not write: name a file below ${state}.";
      }
      {
        assertion = !variables || !paths.inStore cfg.environmentFile;
        message = "${option}.environmentFile is in the Nix store, where every user can read it: name a file outside, as a string such as \"/run/secrets/spire.env\".";
      }
      {
        assertion = twice == [ ];
        message = "${option}.registrationEntries has the same parentId, spiffeId and selectors twice (${
          lib.concatMapStringsSep ", " (one: one.spiffeId) twice
        }): keep one of them.";
      }
    ]
    ++ conf.assertions
    ++ map (one: {
      assertion = fault one == null;
      message = "${option}.registrationEntries: ${toString (fault one)}.";
    }) cfg.registrationEntries;

    warnings = lib.optional password "${option}.dataStore.connectionString holds a password, which every user can read in the Nix store: write $NAME in its place, and NAME=… into the file that ${option}.environmentFile names.";

    inherit (account) users;
    systemd.tmpfiles = account.tmpfiles;
    environment.systemPackages = [ cfg.package ];
    environment.etc."spire/server.conf".source = file;
    environment.etc."spire/entries.json".source = entries;

    systemd.services.spire-server = {
      description = "SPIRE server";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [
        "network-online.target"
        "postgresql.service"
        "mysql.service"
      ];
      serviceConfig = unit // sandbox // {
        ExecStart = "${cfg.package}/bin/spire-server run -config ${file}${lib.optionalString variables " -expandEnv"}";
        EnvironmentFile = lib.optional variables (toString cfg.environmentFile);
        # One descriptor for each agent.
        LimitNOFILE = 524288;
      };
    };

    systemd.services.spire-server-entries = {
      description = "Registration entries of the SPIRE server";
      wantedBy = [ "spire-server.service" ];
      after = [ "spire-server.service" ];
      bindsTo = [ "spire-server.service" ];
      # What fails for now, such as a database that is away, is tried again for as long as it takes.
      startLimitIntervalSec = 0;
      serviceConfig = sandbox // {
        Type = "oneshot";
        RemainAfterExit = true;
        ExecStart = "${cfg.package}/bin/spire-server entry sync -socketPath ${socket} -owner nixos -file ${entries}";
        User = "spire-server";
        Restart = "on-failure";
        RestartSec = "5s";
      };
    };
  };
}
