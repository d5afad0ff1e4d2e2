# HCL 1 as server.conf and agent.conf are written in: attributes, and blocks with up to one label.
{ lib }:
let
  block =
    indent: head: body:
    if body == { } then
      [ "${indent}${head} {}" ]
    else
      [ "${indent}${head} {" ] ++ lines "${indent}    " body ++ [ "${indent}}" ];

  line =
    indent: name: value:
    if builtins.isAttrs value && value ? labelled then
      lib.concatLists (
        lib.mapAttrsToList (label: body: block indent "${name} ${builtins.toJSON label}" body) value.labelled
      )
    else if builtins.isAttrs value then
      block indent name value
    else
      [ "${indent}${name} = ${builtins.toJSON value}" ];

  lines = indent: body: lib.concatLists (lib.mapAttrsToList (line indent) body);
in
body: lib.concatStringsSep "\n" (lines "" body) + "\n"
