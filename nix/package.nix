# `ah`, `spire-server`, `spire-agent` and `oidc-discovery-provider`, with man pages and completions.
{
  lib,
  stdenv,
  rustPlatform,
  installShellFiles,
}:
let
  workspace = (builtins.fromTOML (builtins.readFile ../Cargo.toml)).workspace;
in
rustPlatform.buildRustPackage {
  pname = "agent-harbor";
  inherit (workspace.package) version;

  src = builtins.path {
    name = "agent-harbor";
    path = ../.;
    # What cargo reads.
    filter =
      path: _:
      let
        name = lib.removePrefix "${toString ../.}/" (toString path);
      in
      builtins.any (part: name == part || lib.hasPrefix "${part}/" name) [
        ".cargo"
        "Cargo.lock"
        "Cargo.toml"
        "bench"
        "crates"
        "e2e"
      ];
  };
  cargoLock.lockFile = ../Cargo.lock;
  cargoBuildFlags = [
    "--package=ah-cli"
    "--package=spire-server"
    "--package=spire-agent"
    "--package=oidc-discovery-provider"
  ];

  # The tests make network namespaces and start PostgreSQL and OpenBao: `make test` runs them.
  doCheck = false;

  nativeBuildInputs = [ installShellFiles ];
  postInstall = lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
    mkdir man
    $out/bin/ah agent man man
    installManPage man/*
    installShellCompletion --cmd ah \
      --bash <($out/bin/ah agent completions bash) \
      --fish <($out/bin/ah agent completions fish) \
      --zsh <($out/bin/ah agent completions zsh)
  '';

  meta = {
    description = "Executors that prove who they are to an access point, with SPIRE's server and agent";
    license = lib.licenses.asl20;
    mainProgram = "ah";
    platforms = lib.platforms.linux;
  };
}
