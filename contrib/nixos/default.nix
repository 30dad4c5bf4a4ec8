# The options `flyingcircus.kubernetes.frontend.<name>`, with the names, types and defaults that they
# have had, written to /etc/fc-frontend for fc-frontend to follow. One default is another: without
# `maxExpectedPods`, which was 10, there are as many servers as pods.
#
# This module declares; it starts nothing. Units are in contrib/systemd.
{ config, lib, ... }:
let
  cfg = config.flyingcircus.services.fc-frontend;
  files = import ./declarations.nix {
    inherit (cfg) settings;
    frontend = config.flyingcircus.kubernetes.frontend;
  };
  ports = [ "podPort" "servicePort" "lbServicePort" ];
  portsOf = service: builtins.filter (name: service.${name} != null) ports;

  optional = type: description: lib.mkOption {
    type = lib.types.nullOr type;
    default = null;
    inherit description;
  };

  service = {
    options = {
      serviceName = optional lib.types.str "The Kubernetes Service; the attribute's name by default.";
      namespace = lib.mkOption {
        type = lib.types.str;
        default = "default";
        description = "The Service's namespace.";
      };
      binds = lib.mkOption {
        type = lib.types.nullOr (lib.types.listOf lib.types.str);
        default = null;
        example = [ "0.0.0.0:8008" "[::]:8008" ];
        description = "Addresses with ports to listen on; 127.0.0.1 with the service's port by default.";
      };
      mode = lib.mkOption {
        type = lib.types.enum [ "http" "tcp" ];
        # fc-frontend's own default is tcp: it is always written.
        default = "http";
        description = "Forward HTTP requests or TCP connections.";
      };
      podPort = optional lib.types.port "Straight to this port of the pods, found by cluster DNS.";
      servicePort = optional lib.types.port "To this port of the Service's cluster IP.";
      lbServicePort = optional lib.types.port ''
        To this port on each of `flyingcircus.services.fc-frontend.settings.cluster.nodes`.
      '';
      maxExpectedPods = optional lib.types.ints.positive ''
        A fixed number of servers; pods beyond it get no traffic. As many as there are pods by default.
      '';
      sslBackend = lib.mkOption {
        type = lib.types.bool;
        default = false;
        description = "TLS to the pods, without verification of their certificates.";
      };
      haproxyExtraConfig = lib.mkOption {
        type = lib.types.lines;
        default = "";
        description = "Lines of HAProxy configuration, added to the service's section.";
      };
      extraPodTemplateOptions = lib.mkOption {
        type = lib.types.lines;
        default = "";
        description = "Words added to each server.";
      };
    };
  };
in
{
  options.flyingcircus = {
    services.fc-frontend = {
      enable = lib.mkEnableOption "declarations for fc-frontend in /etc/fc-frontend";
      settings = lib.mkOption {
        type = lib.types.attrsOf lib.types.anything;
        default = { };
        example = { cluster.nameservers = [ "10.0.0.254:53" ]; };
        description = "The settings of fc-frontend; contrib/examples/all-settings.yaml lists all.";
      };
    };
    kubernetes.frontend = lib.mkOption {
      type = lib.types.attrsOf (lib.types.submodule service);
      default = { };
      description = "Kubernetes services that HAProxy forwards to.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = map
      (name: {
        assertion = builtins.length (portsOf config.flyingcircus.kubernetes.frontend.${name}) == 1;
        message = "flyingcircus.kubernetes.frontend.${name}: set exactly one of ${builtins.concatStringsSep ", " ports}";
      })
      (builtins.attrNames config.flyingcircus.kubernetes.frontend);
    environment.etc = builtins.listToAttrs (map
      (name: { name = "fc-frontend/${name}"; value.text = files.${name}; })
      (builtins.attrNames files));
  };
}
