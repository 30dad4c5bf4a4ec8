"""Read this host's packet filter rules with `nft` and `iptables-save`, which change nothing."""

from __future__ import annotations

import shutil
import socket
from ipaddress import ip_address
from pathlib import Path

from fc_frontend.doctor.judge.iptables import parse_iptables
from fc_frontend.doctor.judge.network import CLUSTER_INTERFACE
from fc_frontend.doctor.judge.nftables import parse_nftables
from fc_frontend.doctor.judge.packets import IPVS_INTERFACE, Connection, PacketFacts, Table
from fc_frontend.doctor.observe.network import observe_addresses
from fc_frontend.errors import Unavailable
from fc_frontend.haproxy.process import minimal_environment, run
from fc_frontend.plan.model import Address
from fc_frontend.render.config import Config, sections_in
from fc_frontend.render.listeners import listeners_of
from fc_frontend.syntax.endpoints import Family
from fc_frontend.text import one_line

_MOST_BYTES = 256 * 1024 * 1024
"""The limit for all rules; kube-proxy has some 10 for each Service and endpoint."""
_LEGACY_NAMES = {4: "/proc/net/ip_tables_names", 6: "/proc/net/ip6_tables_names"}
"""The files that list the existing tables of the kernel's legacy interface."""
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_K3S_BIN = "/var/lib/rancher/k3s/data/current/bin/aux"
"""The directory of the iptables that k3s ships."""
_MOST_CONNECTIONS = 200


def observe_connections(text: str) -> tuple[Connection, ...]:
    """Return a connection for each address and port of the binds of a configuration.

    At most 200.  Loopback addresses are left out: no connection from outside reaches them.
    """
    found, _ = listeners_of(Config(text, "", sections_in(text)), socket.gethostname())
    local = [each.address.ip for each in observe_addresses()]
    connections: dict[Connection, None] = {}
    for _, listener in found:
        endpoint = listener.endpoint
        if endpoint.family is Family.IP and not endpoint.namespace:
            protocol = "udp" if endpoint.is_datagram else "tcp"
            for address in _addresses(endpoint.ipv4, endpoint.ipv6, local):
                for port in endpoint.ports[:_MOST_CONNECTIONS]:
                    connections[Connection(address, port, protocol)] = None
    return tuple(connections)[:_MOST_CONNECTIONS]


def _addresses(ipv4: str | None, ipv6: str | None, local: list[Address]) -> list[Address]:
    """Return the addresses of a bind: its own, or all of this host's for a wildcard."""
    found: list[Address] = []
    for host, wildcard, version in ((ipv4, "*", 4), (ipv6, "::", 6)):
        if host == wildcard:
            found += [each for each in local if each.version == version]
        elif host is not None:
            address = ip_address(host)
            found += [] if address.is_loopback else [address]
    return found


def observe_packets(timeout: float) -> PacketFacts:
    """Read the tables of this network namespace, with `timeout` seconds for each program."""
    is_shared = any(CLUSTER_INTERFACE.fullmatch(name) for _, name in socket.if_nameindex())
    ipvs = frozenset(
        each.address.ip for each in observe_addresses() if each.interface == IPVS_INTERFACE
    )
    try:
        return PacketFacts(_tables(timeout), is_shared=is_shared, ipvs=ipvs)
    except Unavailable as exc:
        return PacketFacts(unread=exc.problem, is_shared=is_shared, ipvs=ipvs)


def _tables(timeout: float) -> tuple[Table, ...]:
    """Return the tables of nftables and of both interfaces of iptables."""
    of_iptables: list[Table] = []
    has_all = True
    for version, name in ((4, "iptables"), (6, "ip6tables")):
        if _has_legacy_tables(version):
            save = _needed(_legacy_program(name, timeout), "iptables-legacy-save")
            of_iptables += parse_iptables(_output([save], timeout), version)
        program = _program(f"{name}-nft-save")
        output = _output([program], timeout) if program else ""
        of_iptables += parse_iptables(output, version)
        # Tables with rules that iptables cannot express are left out of its output.
        has_all = has_all and program is not None and "is incompatible" not in output
    nft = _needed(_program("nft"), "nftables")
    rules = _output([nft, "--json", "list", "ruleset"], timeout)
    try:
        native = parse_nftables(rules, with_iptables=not has_all)
    except (ValueError, TypeError, RecursionError):
        raise Unavailable.of("`nft --json` writes no JSON", "upgrade nftables") from None
    return (*native, *of_iptables)


def _has_legacy_tables(version: int) -> bool:
    """Return whether the kernel's older interface has tables; `Unavailable` if this is hidden."""
    try:
        return bool(Path(_LEGACY_NAMES[version]).read_text())
    except FileNotFoundError:
        return False
    except OSError as exc:
        raise Unavailable.of(
            f"{_LEGACY_NAMES[version]}: {exc.strerror}", "run `fc-frontend doctor` as root"
        ) from None


def _legacy_program(name: str, timeout: float) -> str | None:
    """Return the program that lists the tables of the older interface; None if there is none."""
    if (found := _program(f"{name}-legacy-save")) is not None:
        return found
    plain = _program(f"{name}-save")
    if plain is None or "nf_tables" in _output([plain, "--version"], timeout):
        return None
    return plain


def _program(name: str) -> str | None:
    path = minimal_environment()["PATH"]
    return shutil.which(name, path=f"{path}:{_SBIN}:{_K3S_BIN}")


def _needed(path: str | None, package: str) -> str:
    if path is None:
        raise Unavailable.of(f"{package} is not installed", f"install {package}")
    return path


def _output(argv: list[str], timeout: float) -> str:
    """Return the output of a program.  Raises `Unavailable`."""
    done = run(argv, timeout=timeout, limit=_MOST_BYTES)
    if done.status != 0:
        last = one_line(done.output.strip().rpartition("\n")[2])[:200]
        raise Unavailable.of(
            f"`{' '.join(argv)}` {done.ending}: {last}", "run `fc-frontend doctor` as root"
        )
    return done.output
