# server.conf and agent.conf: what the options say, and what `settings` adds to it.
{
  lib,
  # Path of the option `settings`, and its value.
  option,
  settings,
  # Name of the main block, with what the options say in it, and with what is only a default.
  main,
  said,
  defaults,
  # Plugins by type and name: those that stand in any case, and those of types that `settings` may say otherwise.
  plugins,
  defaultPlugins,
}:
let
  given = settings.plugins or { };
  all = defaultPlugins // given;
  types = lib.mapAttrs (type: named: (plugins.${type} or { }) // named) all;
  own = builtins.attrNames (builtins.intersectAttrs said (settings.${main} or { }));
  fixed = builtins.attrNames (builtins.intersectAttrs { DataStore = { }; } given);
in
{
  text = import ./hcl.nix { inherit lib; } (
    removeAttrs settings [ "plugins" ]
    // {
      ${main} = defaults // (settings.${main} or { }) // lib.filterAttrs (_: value: value != null) said;
      plugins = lib.mapAttrs (_: labelled: { inherit labelled; }) (plugins // types);
    }
  );

  assertions = map (key: {
    assertion = false;
    message = "${option}.settings.${main}.${key} has an option of its own, or is what the unit needs: remove it from settings.";
  }) own
  ++ map (type: {
    assertion = false;
    message = "${option}.settings.plugins.${type} has options of its own: remove it from settings.";
  }) fixed;

  # The option itself.
  declare = lib.mkOption {
    type = lib.types.attrsOf (lib.types.attrsOf lib.types.anything);
    default = { };
    description = "What the other options do not say, nested as in the file. It is in the Nix store, where every user can read it.";
  };
}
