# Evaluates contrib/nixos with a small stand-in for nixpkgs' `lib`, as nixpkgs is no Debian package.
# The stand-in checks types and fills in defaults; it does not merge modules. What it shows is that
# the module is sound Nix and what it makes of its options, not that nixpkgs likes it.
{ services, settings, options ? { }, platform ? { } }:
let
  check = name: test: { inherit name test; };
  lib = {
    mkOption = option: option // { _type = "option"; };
    mkEnableOption = description: lib.mkOption { type = lib.types.bool; default = false; inherit description; };
    mkIf = condition: content: if condition then content else { };
    types = {
      str = check "string" builtins.isString;
      lines = check "lines" builtins.isString;
      bool = check "bool" builtins.isBool;
      package = check "package" (_: true);
      either = one: two: check "${one.name} or ${two.name}" (value: one.test value || two.test value);
      anything = check "anything" (_: true);
      port = check "port" (value: builtins.isInt value && value >= 0 && value <= 65535);
      ints.positive = check "positive integer" (value: builtins.isInt value && value > 0);
      enum = values: check "one of ${builtins.toJSON values}" (value: builtins.elem value values);
      nullOr = type: check "null or ${type.name}" (value: value == null || type.test value);
      listOf = type: check "list of ${type.name}" (value: builtins.isList value && builtins.all type.test value);
      attrsOf = type: check "attributes of ${type.name}" builtins.isAttrs // { inner = type; };
      submodule = module: check "submodule" builtins.isAttrs // { inherit (module) options; };
    };
  };
  filled = where: options: values:
    let unknown = builtins.filter (name: !(options ? ${name})) (builtins.attrNames values);
    in
    if unknown != [ ] then throw "${where}.${builtins.head unknown} does not exist"
    else
      builtins.mapAttrs
        (name: option:
          let value = values.${name} or option.default;
          in
          if option.type.test value then value
          else throw "${where}.${name} is not of type ${option.type.name}")
        options;
  # Packages as names: what is built is not shown here, but what the units call.
  pkgs = {
    haproxy = "/nix/store/haproxy";
    callPackage = file: _: builtins.seq (import file) "/nix/store/fc-frontend";
  };
  module = import ../contrib/nixos { inherit config lib pkgs; };
  frontends = option: builtins.mapAttrs
    (name: filled "frontend.${name}" option.type.inner.options);
  values = filled "services.fc-frontend" module.options.services.fc-frontend
    ({ enable = true; inherit settings; } // options);
  config.services.fc-frontend = values // {
    services = frontends module.options.services.fc-frontend.services services;
  };
  config.flyingcircus.kubernetes.frontend =
    frontends module.options.flyingcircus.kubernetes.frontend platform;
  failed = builtins.filter (item: !item.assertion) module.config.assertions;
in
if failed != [ ] then throw (builtins.head failed).message
else {
  etc = builtins.mapAttrs (_: file: file.text) module.config.environment.etc;
  units = module.config.systemd.services;
  users = module.config.users.users;
  rules = module.config.systemd.tmpfiles.rules;
}
