{ config, pkgs, ... }:
{
imports = [ /path/to/agent-harbor/nix/nixos-modules ];
# Secrets management (using sops-nix)
sops.secrets."vault/role-id" = { };
sops.secrets."vault/secret-id" = { };
services.agent-harbor.access-point = {
enable = true;
settings = {
fleetListen = "0.0.0.0:4433";
serverIdentity = "vault";
vault = {
address = "https://vault.example.com:8200";
pkiPath = "pki_int/issue/access-point";
certCn = "access-point.example.com";
certTtl = "24h";
};
executorSanUriPrefix = "spiffe://example.org/ah/agent/";
};
# Secrets injected at runtime
environmentFile = config.sops.secrets."vault/env".path;
};
}
