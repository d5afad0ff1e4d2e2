# The types of the stand-in: what each checks, and how it merges definitions.
{
  defaultPriority,
  evaluate,
  filterAttrs,
  genAttrs,
  mergeDefinitions,
  show,
  shown,
}:
let
  inherit (builtins)
    all
    any
    attrNames
    concatLists
    concatMap
    concatStringsSep
    elem
    elemAt
    filter
    genList
    head
    isAttrs
    isBool
    isFloat
    isFunction
    isInt
    isList
    isPath
    isString
    length
    mapAttrs
    substring
    tail
    ;

  one =
    loc: definitions:
    let
      first = head definitions;
      other = filter (d: d.value != first.value) (tail definitions);
    in
    if other == [ ] then
      first.value
    else
      throw "The option ${show loc} has conflicting definition values:\n- In `${first.file}': ${shown first.value}\n- In `${(head other).file}': ${shown (head other).value}";

  simple = description: check: {
    inherit description check;
    merge = one;
  };
  isPlace = value: isPath value || (isString value && substring 0 1 value == "/") || value ? outPath;
in
rec {
  str = simple "string" isString;
  bool = simple "boolean" isBool;
  int = simple "signed integer" isInt;
  float = simple "floating point number" isFloat;
  anything = simple "anything" (_: true);
  path = simple "path" isPlace;
  package = simple "package" (value: isAttrs value && value.type or "" == "derivation");
  port = simple "16 bit unsigned integer; between 0 and 65535 (both inclusive)" (
    value: isInt value && value >= 0 && value <= 65535
  );
  ints.unsigned = simple "unsigned integer, meaning >=0" (value: isInt value && value >= 0);
  enum = values: simple "one of ${concatStringsSep ", " (map shown values)}" (value: elem value values);
  nullOr = type: {
    description = "null or ${type.description}";
    check = value: value == null || type.check value;
    merge =
      loc: definitions:
      if all (d: d.value == null) definitions then
        null
      else if any (d: d.value == null) definitions then
        one loc definitions
      else
        type.merge loc definitions;
  };
  either = a: b: {
    description = "${a.description} or ${b.description}";
    check = value: a.check value || b.check value;
    merge =
      loc: definitions:
      if all (d: a.check d.value) definitions then
        a.merge loc definitions
      else if all (d: b.check d.value) definitions then
        b.merge loc definitions
      else
        one loc definitions;
  };
  listOf = type: {
    description = "list of ${type.description}";
    check = isList;
    merge =
      loc: definitions:
      concatLists (
        genList (
          nth:
          let
            d = elemAt definitions nth;
            element =
              at:
              mergeDefinitions (loc ++ [ "\"[definition ${toString (nth + 1)}-entry ${toString (at + 1)}]\"" ]) type [
                {
                  inherit (d) file;
                  value = elemAt d.value at;
                  priority = defaultPriority;
                }
              ];
            elements = filter (element: element.isDefined) (genList element (length d.value));
          in
          map (element: element.value) elements
        ) (length definitions)
      );
  };
  attrsOf = type: {
    description = "attribute set of ${type.description}";
    check = isAttrs;
    merge =
      loc: definitions:
      let
        names = concatMap (d: attrNames d.value) definitions;
        merged =
          name:
          mergeDefinitions (loc ++ [ name ]) type (
            concatMap (
              d:
              if d.value ? ${name} then
                [
                  {
                    inherit (d) file;
                    value = d.value.${name};
                    priority = defaultPriority;
                  }
                ]
              else
                [ ]
            ) definitions
          );
      in
      mapAttrs (_: m: m.value) (filterAttrs (_: m: m.isDefined) (genAttrs names merged));
  };
  submodule = module: {
    description = "submodule";
    check = value: isAttrs value || isFunction value;
    merge =
      loc: definitions:
      (evaluate loc { } (
        [
          {
            file = "submodule";
            inherit module;
          }
        ]
        ++ map (d: {
          inherit (d) file;
          module = if isFunction d.value then d.value else { config = d.value; };
        }) definitions
      )).config;
  };
}
