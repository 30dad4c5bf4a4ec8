# fc-frontend as a package: `pkgs.callPackage ./package.nix { }`.
{ lib, python3Packages }:
python3Packages.buildPythonApplication {
  pname = "fc-frontend";
  version = builtins.head (
    builtins.match ''.*__version__ = "([^"]+)".*'' (builtins.readFile ../../fc_frontend/__init__.py)
  );
  pyproject = true;
  src = ../..;
  build-system = [ python3Packages.hatchling ];
  dependencies = with python3Packages; [
    click
    cryptography
    dnspython
    h11
    jinja2
    prometheus-client
    psutil
    pydantic
    pyyaml
    rich
    watchdog
  ];
  # The tests need HAProxy, network namespaces and root.
  doCheck = false;
  meta = {
    description = "HAProxy in front of a Kubernetes cluster";
    license = lib.licenses.asl20;
    mainProgram = "fc-frontend";
  };
}
