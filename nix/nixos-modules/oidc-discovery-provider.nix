{
  config,
  lib,
  pkgs,
  ...
}:
let
  t = lib.types;
  option = "services.spire.oidc-discovery-provider";
  cfg = config.services.spire.oidc-discovery-provider;
  paths = import ./common/paths.nix { inherit lib; };
  account = import ./common/account.nix {
    user = "oidc-discovery-provider";
    description = "OIDC discovery provider";
    group = "spire";
    directory = "/run/spire";
  };

  state = "/var/lib/spire/oidc-discovery-provider";
  unit = import ./common/spire.nix {
    user = "oidc-discovery-provider";
    state = "spire/oidc-discovery-provider";
  };
  acme = cfg.acme.email != null;
  files = cfg.certificate != null && cfg.key != null;
  said = {
    inherit (cfg) domains;
    workload_api = {
      socket_path = "/run/spire/agent.sock";
      trust_domain = cfg.trustDomain;
    };
    serving_cert_file =
      if files then
        {
          cert_file_path = paths.public cfg.certificate;
          key_file_path = toString cfg.key;
          addr = ":443";
        }
      else
        null;
    acme =
      if acme then
        {
          inherit (cfg.acme) email;
          tos_accepted = cfg.acme.acceptTerms;
          cache_dir = "${state}/acme";
        }
      else
        null;
  };
  own = builtins.attrNames (builtins.intersectAttrs said cfg.settings);
  file = pkgs.writeText "oidc-discovery-provider.conf" (
    import ./common/hcl.nix { inherit lib; } (
      {
        log_level = "INFO";
        health_checks = { };
      }
      // cfg.settings
      // lib.filterAttrs (_: value: value != null) said
    )
  );
in
{
  options.services.spire.oidc-discovery-provider = {
    enable = lib.mkEnableOption "the OIDC discovery provider";
    package = import ./common/package.nix { inherit lib pkgs; };
    trustDomain = lib.mkOption {
      type = t.str;
      example = "example.org";
      description = "Trust domain whose JWT keys it tells.";
    };
    domains = lib.mkOption {
      type = t.listOf t.str;
      default = [ ];
      example = [ "oidc.example.org" ];
      description = "Host names that clients ask for.";
    };
    certificate = lib.mkOption {
      type = t.nullOr t.path;
      default = null;
      description = "Certificate for these names, as PEM. It is read again when it changes.";
    };
    key = lib.mkOption {
      type = t.nullOr t.path;
      default = null;
      description = "Its key. It has to be outside of the store, and readable for the user `oidc-discovery-provider`.";
    };
    acme = {
      email = lib.mkOption {
        type = t.nullOr t.str;
        default = null;
        description = "Address of an account at Let's Encrypt, which then issues the certificates, in the place of `certificate` and `key`.";
      };
      acceptTerms = lib.mkOption {
        type = t.bool;
        default = false;
        description = "Whether you accept its terms of service.";
      };
    };
    settings = lib.mkOption {
      type = t.attrsOf t.anything;
      default = { };
      description = "What the other options do not say, as in the file.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.domains != [ ];
        message = "${option}.domains is empty: name the hosts that clients ask for, such as \"oidc.example.org\".";
      }
      {
        assertion = files != acme && (cfg.certificate == null) == (cfg.key == null);
        message = "${option} needs a certificate: set ${option}.certificate and ${option}.key, or ${option}.acme.email, and not both.";
      }
      {
        assertion = !acme || cfg.acme.acceptTerms;
        message = "${option}.acme.acceptTerms is false: read the terms of service of Let's Encrypt, and set it.";
      }
      {
        assertion = cfg.key == null || !paths.inStore cfg.key;
        message = "${option}.key is in the Nix store, where every user can read it: name a file outside, as a string such as \"/run/secrets/oidc-key.pem\".";
      }
    ]
    ++ map (key: {
      assertion = false;
      message = "${option}.settings.${key} has an option of its own, or is what the unit needs: remove it from settings.";
    }) own;

    inherit (account) users;
    systemd.tmpfiles = account.tmpfiles;
    environment.systemPackages = [ cfg.package ];
    environment.etc."spire/oidc-discovery-provider.conf".source = file;

    systemd.services.oidc-discovery-provider = {
      description = "OIDC discovery provider";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [
        "network-online.target"
        "spire-agent.service"
      ];
      serviceConfig = unit // {
        ExecStart = "${cfg.package}/bin/oidc-discovery-provider -config ${file}";
        # The port of HTTPS.
        AmbientCapabilities = "CAP_NET_BIND_SERVICE";
        CapabilityBoundingSet = "CAP_NET_BIND_SERVICE";
        ProtectProc = "invisible";
        ProcSubset = "pid";
      };
    };
  };
}
