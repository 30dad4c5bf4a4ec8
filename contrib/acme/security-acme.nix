# Certificates of security.acme for fc-frontend: the client listens on 127.0.0.1:8402, and the daemon's group may read
# what it gets.
#
#     imports = [ /path/to/contrib/nixos /path/to/contrib/acme/security-acme.nix ];
#     security.acme.certs."shop.example.org" = { };
{ config, ... }:
{
  security.acme = {
    acceptTerms = true;
    defaults = {
      listenHTTP = "127.0.0.1:8402";
      group = "fc-frontend";
    };
  };
  services.fc-frontend.settings.frontends.web = {
    binds = [ "0.0.0.0:443" "[::]:443" ];
    tls.certificates = [ "/var/lib/acme/*/" ];
    acme.challenges = "127.0.0.1:8402";
    http = { binds = [ "0.0.0.0:80" "[::]:80" ]; redirect = "https"; };
  };
}
