# What the modules offer: the paths of their options, and for each setting of a role the key of its settings file.
let
  lib = import ./lib.nix;
  pkgs = { };
  declared =
    (lib.evalModules {
      specialArgs = { inherit pkgs; };
      modules = [
        ./nixos.nix
        ../nixos-modules
      ];
    }).options;
  paths =
    prefix: tree:
    if tree._type or "" == "option" then
      [ prefix ]
    else
      lib.concatLists (lib.mapAttrsToList (name: paths "${prefix}.${name}") tree);
  keys =
    role:
    let
      table = import ../nixos-modules/common/settings.nix { inherit lib role; };
      names = builtins.attrNames table.flat ++ map (name: "vault.${name}") (builtins.attrNames table.vault);
    in
    builtins.listToAttrs (
      map (name: {
        inherit name;
        value = table.key name;
      }) names
    );
in
{
  options = paths "services" declared.services;
  settings = {
    access-point = keys "access-point";
    executor = keys "executor";
  };
}
