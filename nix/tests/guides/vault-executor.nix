{ config, pkgs, ... }:
{
sops.secrets."vault/executor-role-id" = { };
sops.secrets."vault/executor-secret-id" = { };
services.agent-harbor.executor = {
enable = true;
settings = {
remoteServer = "https://access-point.example.com:4433";
identity = "vault";
vault = {
address = "https://vault.example.com:8200";
pkiPath = "pki_int/issue/executor";
certCn = config.networking.hostName;
};
};
environmentFile = config.sops.secrets."vault/executor-env".path;
};
}
