# /etc/nixos/configuration.nix
{
  imports = [ /path/to/agent-harbor/nix/nixos-modules ];

  services.spire.server = {
    enable = true;
    trustDomain = "example.org";
    bindAddress = "0.0.0.0";
    bindPort = 8081;

    dataStore = {
      type = "sqlite3";
      connectionString = "/var/lib/spire/server/datastore.sqlite3";
    };

    nodeAttestors = {
      joinToken.enable = true;
    };

    # Declarative registration entries
    registrationEntries = [
      {
        parentId = "spiffe://example.org/spire/agent/join_token/access-point-1";
        spiffeId = "spiffe://example.org/ah/serve";
        selectors = [ "unix:user:agent-harbor" ];
      }
      {
        parentId = "spiffe://example.org/spire/agent/join_token/executor-1";
        spiffeId = "spiffe://example.org/ah/agent/executor-1";
        selectors = [ "unix:user:executor" ];
      }
    ];
  };

  # Open firewall for SPIRE server
  networking.firewall.allowedTCPPorts = [ 8081 ];
}
