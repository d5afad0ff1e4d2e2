# A small stand-in for the parts of nixpkgs' `lib` that our modules use: the module system with types, defaults,
# conditions, merging and priorities, and some functions. What it does not know, it refuses. It has no freeform
# options, no `apply`, no `mkOrder`, and no `extendModules`.
let
  inherit (builtins)
    attrNames
    concatLists
    concatMap
    concatStringsSep
    elem
    filter
    genList
    head
    isAttrs
    isBool
    isFunction
    isPath
    listToAttrs
    mapAttrs
    stringLength
    substring
    toJSON
    ;

  show = loc: "`${concatStringsSep "." loc}'";
  isType = name: value: isAttrs value && value._type or "" == name;
  defaultPriority = 100;

  # --- values with a condition, a priority, or several at once -------------------------------------------------

  mkIf = condition: content: {
    _type = "if";
    inherit condition content;
  };
  mkMerge = contents: {
    _type = "merge";
    inherit contents;
  };
  mkOverride = priority: content: {
    _type = "override";
    inherit priority content;
  };

  # The definitions behind a value: conditions are asked here and no earlier.
  discharge =
    { value, priority, file }:
    if isType "if" value then
      if !isBool value.condition then
        throw "A condition in ${file} is not a boolean."
      else if value.condition then
        discharge {
          inherit priority file;
          value = value.content;
        }
      else
        [ ]
    else if isType "merge" value then
      concatMap (
        value:
        discharge {
          inherit priority file value;
        }
      ) value.contents
    else if isType "override" value then
      discharge {
        inherit file;
        inherit (value) priority;
        value = value.content;
      }
    else
      [ { inherit value priority file; } ];

  # As `discharge`, for a set of options: what wraps the set goes to each of its members, unasked.
  pushDown =
    definition:
    let
      inherit (definition) value;
      within =
        wrap: content:
        map (inner: inner // { value = mapAttrs (_: wrap) inner.value; }) (
          pushDown (definition // { value = content; })
        );
    in
    if isType "if" value then
      within (mkIf value.condition) value.content
    else if isType "override" value then
      within (mkOverride value.priority) value.content
    else if isType "merge" value then
      concatMap (value: pushDown (definition // { inherit value; })) value.contents
    else
      [ definition ];

  # --- one option -------------------------------------------------------------------------------------------

  mergeDefinitions =
    loc: type: definitions:
    let
      discharged = concatMap discharge definitions;
      best = builtins.foldl' (a: d: if d.priority < a then d.priority else a) 10000 discharged;
      chosen = filter (d: d.priority == best) discharged;
      wrong = filter (d: !type.check d.value) chosen;
    in
    {
      isDefined = chosen != [ ];
      value =
        if wrong != [ ] then
          throw "A definition for option ${show loc} is not of type `${type.description}'. Definition values:\n- In `${(head wrong).file}': ${shown (head wrong).value}"
        else
          type.merge loc chosen;
    };
  shown = value: if isFunction value then "<function>" else toJSON value;

  option =
    loc: declared: definitions:
    let
      default = {
        value = declared.default;
        priority = 1500;
        file = "the default";
      };
      merged = mergeDefinitions loc declared.type (
        definitions ++ (if declared ? default then [ default ] else [ ])
      );
    in
    if merged.isDefined then
      merged.value
    else
      throw "The option ${show loc} was accessed but has no value defined. Try setting the option.";

  types = import ./types.nix {
    inherit
      defaultPriority
      evaluate
      filterAttrs
      genAttrs
      mergeDefinitions
      show
      shown
      ;
  };

  # --- modules ----------------------------------------------------------------------------------------------

  # A module and all that it imports, as { file, options, config }.
  collect =
    arguments:
    { file, module }:
    let
      loaded = if isPath module then import module else module;
      at = if isPath module then toString module else file;
      plain = if isFunction loaded then loaded (arguments // { lib = self; }) else loaded;
      structured = plain ? config || plain ? options;
      unknown = filter (
        name:
        !elem name [
          "config"
          "disabledModules"
          "imports"
          "options"
        ]
      ) (attrNames plain);
    in
    if structured && unknown != [ ] then
      throw "Module `${at}' has an unsupported attribute `${head unknown}'."
    else
      concatMap (
        module:
        collect arguments {
          inherit module;
          file = at;
        }
      ) (plain.imports or [ ])
      ++ [
        {
          file = at;
          options = plain.options or { };
          config =
            if structured then
              plain.config or { }
            else
              removeAttrs plain [
                "imports"
                "disabledModules"
              ];
        }
      ];

  declare =
    loc: a: b:
    a
    // mapAttrs (
      name: value:
      let
        deeper = loc ++ [ name ];
      in
      if !(a ? ${name}) then
        value
      else if isType "option" value || isType "option" a.${name} then
        throw "The option ${show deeper} is already declared."
      else
        declare deeper a.${name} value
    ) b;

  tree =
    loc: declared: definitions:
    if isType "option" declared then
      option loc declared definitions
    else
      let
        pushed = concatMap pushDown definitions;
        strange = concatMap (
          d:
          if !isAttrs d.value then
            throw "The option ${show loc} is a set of options, and `${d.file}' gives it a value."
          else
            map (name: {
              inherit name;
              inherit (d) file;
            }) (filter (name: !(declared ? ${name})) (attrNames d.value))
        ) pushed;
      in
      if strange != [ ] then
        throw "The option ${show (loc ++ [ (head strange).name ])} does not exist. Definition values:\n- In `${(head strange).file}'"
      else
        mapAttrs (
          name: below:
          tree (loc ++ [ name ]) below (
            concatMap (d: if d.value ? ${name} then [ (d // { value = d.value.${name}; }) ] else [ ]) pushed
          )
        ) declared;

  evaluate =
    loc: arguments: modules:
    let
      collected = concatMap (collect (arguments // { inherit config; })) modules;
      options = builtins.foldl' (declare loc) { } (map (m: m.options) collected);
      config = tree loc options (
        map (m: {
          inherit (m) file;
          value = m.config;
          priority = defaultPriority;
        }) collected
      );
    in
    {
      inherit options config;
    };

  # --- functions --------------------------------------------------------------------------------------------

  genAttrs =
    names: f:
    listToAttrs (
      map (name: {
        inherit name;
        value = f name;
      }) names
    );
  filterAttrs = keep: set: genAttrs (filter (name: keep name set.${name}) (attrNames set)) (name: set.${name});
  mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
  concatMapStringsSep =
    separator: f: list:
    concatStringsSep separator (map f list);
  stringToCharacters = text: genList (at: substring at 1 text) (stringLength text);
  capitals = stringToCharacters "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
  smalls = stringToCharacters "abcdefghijklmnopqrstuvwxyz";

  self = {
    inherit
      concatLists
      concatMap
      concatMapStringsSep
      concatStringsSep
      filter
      filterAttrs
      mapAttrs
      mapAttrsToList
      mkIf
      mkMerge
      mkOverride
      stringToCharacters
      types
      ;
    mkDefault = mkOverride 1000;
    mkForce = mkOverride 50;
    mkOption =
      declared:
      let
        unknown = filter (
          name:
          !elem name [
            "default"
            "defaultText"
            "description"
            "example"
            "type"
          ]
        ) (attrNames declared);
      in
      if unknown != [ ] then throw "mkOption: ${head unknown}" else declared // { _type = "option"; };
    mkEnableOption =
      what:
      self.mkOption {
        type = types.bool;
        default = false;
        description = "Whether to enable ${what}.";
      };
    literalExpression = text: { inherit text; };
    concatMapStrings = concatMapStringsSep "";
    hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
    removePrefix =
      prefix: text:
      if self.hasPrefix prefix text then substring (stringLength prefix) (-1) text else text;
    optional = condition: value: if condition then [ value ] else [ ];
    optionalAttrs = condition: set: if condition then set else { };
    optionalString = condition: text: if condition then text else "";
    replaceStrings = builtins.replaceStrings;
    toLower = builtins.replaceStrings capitals smalls;
    evalModules =
      {
        modules,
        specialArgs ? { },
      }:
      evaluate [ ] specialArgs (
        map (module: {
          inherit module;
          file = "<configuration>";
        }) modules
      );
  };
in
self
