# The user of a service, and the directory of sockets that it shares with services of other users.
{
  user,
  description,
  # Its members may put sockets into the directory.
  group,
  directory,
}:
{
  users = {
    users.${user} = {
      isSystemUser = true;
      group = user;
      extraGroups = [ group ];
      inherit description;
    };
    groups.${user} = { };
    groups.${group} = { };
  };

  # Sticky, so that none removes another's socket.
  tmpfiles.settings.agent-harbor.${directory}.d = {
    mode = "1775";
    user = "root";
    inherit group;
  };
}
