# On executor nodes
{
  services.spire.agent = {
    enable = true;
    trustDomain = "example.org";
    serverAddress = "spire-server.example.org";
    serverPort = 8081;

    # For production, provide a trust bundle
    trustBundlePath = /path/to/trust-bundle.pem;

    # Or for development:
    # insecureBootstrap = true;

    joinToken = "your-join-token-here";
    # Or use secrets management:
    # joinTokenFile = config.sops.secrets."spire/join-token".path;

    workloadAttestors = {
      unix.enable = true;
    };
  };
}
