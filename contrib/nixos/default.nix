# fc-frontend on NixOS. `services.fc-frontend.enable = true` brings the package, the user, the
# directories, the unit, HAProxy and the wiring between the two; `services.fc-frontend.services` declares.
#
#     imports = [ /path/to/fc-frontend/contrib/nixos ];
#     services.fc-frontend = {
#       enable = true;
#       clusterDns = [ "10.0.0.254" ];
#       services.ingress = { binds = [ "[::]:443" "0.0.0.0:443" ]; podPort = 443; mode = "tcp"; };
#     };
#
# On the Flying Circus platform, the options `flyingcircus.kubernetes.frontend.<name>` are kept, with the
# names, types and defaults that they have had. One default differs: without `maxExpectedPods`, which
# was 10, there are as many servers as pods.
{ config, lib, pkgs, ... }:
let
  cfg = config.services.fc-frontend;
  services = cfg.services // config.flyingcircus.kubernetes.frontend;
  toList = value: if builtins.isList value then value else [ value ];
  listed = name: value:
    if toList value == [ ] then { } else { ${name} = toList value; };
  cluster = listed "nameservers" cfg.clusterDns
    // listed "pod_network" cfg.podCidr
    // listed "service_network" cfg.serviceCidr
    // (cfg.settings.cluster or { });
  haproxy = {
    binary = "${cfg.haproxyPackage}/bin/haproxy";
    config_file = "/var/lib/haproxy-config/haproxy.cfg";
    master_socket = "/run/haproxy/master.sock";
    runtime_socket = "/run/haproxy/admin.sock";
    user = "haproxy";
    group = "haproxy";
  } // (cfg.settings.haproxy or { });
  files = import ./declarations.nix {
    settings = cfg.settings // { inherit cluster haproxy; };
    frontend = services;
  };
  ports = [ "podPort" "servicePort" "lbServicePort" ];
  portsOf = service: builtins.filter (name: service.${name} != null) ports;
  program = "${cfg.package}/bin/fc-frontend";

  oneOrMany = lib.types.either lib.types.str (lib.types.listOf lib.types.str);

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
        To this port on each of `services.fc-frontend.settings.cluster.nodes`.
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
    } // fields;
  };
  # Under fc-frontend's own names, which checks their values: `hosts`, `basic_auth`…
  fields = builtins.listToAttrs (map
    (name: {
      inherit name;
      value = optional lib.types.anything
        "The field `${name}` of a service: see contrib/examples/all-settings.yaml.";
    })
    [
      "allow" "balance" "basic_auth" "bind_options" "check" "discovery" "fallback" "frontend" "hosts" "nodes"
      "paths" "protocol" "proxy_protocol" "rate_limit" "redirects" "request_headers"
      "response_headers" "rewrite" "session_affinity" "sni" "sticky" "timeout" "unavailable_page"
    ]);
in
{
  options.services.fc-frontend = {
    enable = lib.mkEnableOption "fc-frontend, HAProxy in front of a Kubernetes cluster";
    package = lib.mkOption {
      type = lib.types.package;
      default = pkgs.callPackage ./package.nix { };
      description = "fc-frontend.";
    };
    haproxyPackage = lib.mkOption {
      type = lib.types.package;
      default = pkgs.haproxy;
      description = "HAProxy 2.6 or later.";
    };
    clusterDns = lib.mkOption {
      type = oneOrMany;
      default = [ ];
      example = [ "fd00:10:96::a" "10.0.0.254" ];
      description = "The cluster's nameservers; those of resolv.conf by default.";
    };
    podCidr = lib.mkOption {
      type = oneOrMany;
      default = [ ];
      example = [ "fd00:10:1::/56" "10.1.0.0/16" ];
      description = "The pod networks; addresses outside of them get no traffic.";
    };
    serviceCidr = lib.mkOption {
      type = oneOrMany;
      default = [ ];
      example = [ "fd00:10:96::/112" "10.0.0.0/24" ];
      description = "The networks of cluster IPs.";
    };
    settings = lib.mkOption {
      type = lib.types.attrsOf lib.types.anything;
      default = { };
      example = { intervals.hold = "5m"; };
      description = "Further settings; contrib/examples/all-settings.yaml lists all.";
    };
    services = lib.mkOption {
      type = lib.types.attrsOf (lib.types.submodule service);
      default = { };
      description = "Kubernetes Services that HAProxy forwards to.";
    };
  };
  options.flyingcircus.kubernetes.frontend = lib.mkOption {
    type = lib.types.attrsOf (lib.types.submodule service);
    default = { };
    description = "The same as `services.fc-frontend.services`, under its name on the platform.";
  };

  config = lib.mkIf cfg.enable {
    assertions = map
      (name: {
        assertion = builtins.length (portsOf services.${name}) == 1;
        message = "frontend ${name}: set exactly one of ${builtins.concatStringsSep ", " ports}";
      })
      (builtins.attrNames services);

    environment.systemPackages = [ cfg.package ];
    environment.etc = builtins.listToAttrs (map
      (name: { name = "fc-frontend/${name}"; value.text = files.${name}; })
      (builtins.attrNames files));

    users.groups.fc-frontend = { };
    users.groups.haproxy = { };
    users.users.fc-frontend = {
      isSystemUser = true;
      group = "fc-frontend";
      extraGroups = [ "haproxy" ];
      home = "/var/lib/fc-frontend";
    };
    users.users.haproxy = { isSystemUser = true; group = "haproxy"; };

    # haproxy.cfg changes at runtime: it cannot be in the store. Only fc-frontend may write it.
    systemd.tmpfiles.rules = [
      "d /var/lib/haproxy-config 0755 fc-frontend fc-frontend -"
      "f /var/lib/haproxy-config/haproxy.cfg 0640 fc-frontend haproxy -"
    ];

    # NixOS's own services.haproxy has a configuration in the store, which cannot be replaced.
    systemd.services.haproxy = {
      description = "HAProxy, configured by fc-frontend";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      # A switch to a new system generation must not cut connections.
      restartIfChanged = false;
      # Before fc-frontend has run, the file is empty, and HAProxy would not start.
      unitConfig.ConditionFileNotEmpty = haproxy.config_file;
      serviceConfig = {
        Type = "notify";
        ExecStart = "${cfg.haproxyPackage}/bin/haproxy -Ws -f ${haproxy.config_file} -S ${haproxy.master_socket},mode,660,group,haproxy";
        ExecReload = "/bin/sh -c '${program} check && kill -USR2 $MAINPID'";
        KillMode = "mixed";
        SuccessExitStatus = "143";
        Restart = "always";
        RuntimeDirectory = "haproxy";
        RuntimeDirectoryPreserve = true;
      };
    };

    systemd.services.fc-frontend-first = {
      description = "the first haproxy.cfg by fc-frontend";
      wantedBy = [ "multi-user.target" ];
      before = [ "haproxy.service" ];
      unitConfig.ConditionFileNotEmpty = "!${haproxy.config_file}";
      serviceConfig = {
        Type = "oneshot";
        User = "fc-frontend";
        StateDirectory = "fc-frontend";
        ExecStart = "${program} render --output ${haproxy.config_file}";
      };
    };

    systemd.services.fc-frontend = {
      description = "fc-frontend, configures HAProxy for the services of a Kubernetes cluster";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [ "network-online.target" "haproxy.service" ];
      reloadTriggers = map (name: files.${name}) (builtins.attrNames files);
      startLimitIntervalSec = 0;
      serviceConfig = {
        Type = "notify";
        NotifyAccess = "main";
        ExecStart = "${program} run";
        ExecReload = "/bin/sh -c 'kill -HUP $MAINPID'";
        Restart = "always";
        RestartSec = "1s";
        WatchdogSec = "30s";
        TimeoutStartSec = "2min";
        TimeoutStopSec = "90s";
        User = "fc-frontend";
        Group = "fc-frontend";
        SupplementaryGroups = [ "haproxy" ];
        StateDirectory = "fc-frontend";
        StateDirectoryMode = "0750";
        UMask = "0027";
        ReadWritePaths = [ "/var/lib/haproxy-config" ];
        AmbientCapabilities = [ "CAP_NET_BIND_SERVICE" ];
        CapabilityBoundingSet = [ "CAP_NET_BIND_SERVICE" ];
        NoNewPrivileges = true;
        ProtectSystem = "strict";
        ProtectHome = true;
        PrivateTmp = true;
        PrivateDevices = true;
        RestrictAddressFamilies = [ "AF_INET" "AF_INET6" "AF_UNIX" ];
      };
    };
  };
}
