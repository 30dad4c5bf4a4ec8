# From the module's options to the files in /etc/fc-frontend: names to contents. Builtins only, so
# that it can be evaluated, and is tested, without nixpkgs.
#
# Fields keep their names, which fc-frontend knows: a declaration can be followed from the Nix file
# to the message about it. What is null or empty is left to fc-frontend's defaults.
{ settings, frontend }:
let
  isSet = value: !(builtins.elem value [ null "" [ ] ]);
  given = service: builtins.listToAttrs (
    builtins.concatMap
      (name: if isSet service.${name} then [{ inherit name; value = service.${name}; }] else [ ])
      (builtins.attrNames service)
  );
in
{
  "config.json" = builtins.toJSON settings;
  "services.d/nixos.json" = builtins.toJSON { services = builtins.mapAttrs (_: given) frontend; };
}
