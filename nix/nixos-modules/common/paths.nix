# Files that options name.
{ lib }:
{
  # Whether every user of the machine can read the file, because it is in the store.
  inStore = path: lib.hasPrefix "${builtins.storeDir}/" (toString path);

  # A file without secrets. A path that exists where the configuration is evaluated goes into the store, so that it
  # reaches the machine with the system; any other is one of the machine's own.
  public = path: if builtins.isPath path && builtins.pathExists path then "${path}" else toString path;
}
