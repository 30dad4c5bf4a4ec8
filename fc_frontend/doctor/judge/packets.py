"""Check whether packet filter rules redirect or refuse connections to HAProxy's binds.

kube-proxy, CNI plugins, container engines and firewalls add such rules.  A connection is evaluated
against the chains in the kernel's order (nft(8), iptables(8)): first `prerouting`, where addresses
are rewritten, then `input`, where connections are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from fc_frontend.doctor.findings import Finding, Group
from fc_frontend.errors import Problem
from fc_frontend.plan.model import Address
from fc_frontend.plurals import counted
from fc_frontend.text import one_line

_GROUP = Group("network")
_CHECK = "packet filter"
_MOST_SHOWN = 5
_HOOKS = ("prerouting", "input")
"""The hooks, in the order in which the kernel runs them."""
_DEEPEST = 64
"""The most nested chains that are followed; kube-proxy needs four."""
_SERVICE = re.compile(r"(?:(?:service|external)-[A-Z0-9]{8}-)?([a-z0-9.-]+/[a-z0-9.-]+)")
"""The Service in rules of kube-proxy: in comments of iptables, such as `default/web:http`, and in
names of nftables' chains, such as `external-ULMVA6XW-default/web/tcp/http`."""
_POLICY = "policy drop"
INSIDE = re.compile(r"lo|(br-[0-9a-f]{12}|(docker|cni|podman|lxdbr|virbr)[A-Za-z0-9_.-]*\+?)")
"""Interfaces where no connection from outside arrives: `lo`, and bridges of containers."""
IPVS_INTERFACE = "kube-ipvs0"
"""The interface to which kube-proxy adds the addresses of all Services in mode `ipvs`."""


class Applies(Enum):
    """Whether a rule applies to a connection."""

    NO = auto()
    MAYBE = auto()
    """It depends on more than address and port, such as the source."""
    YES = auto()


class Action(Enum):
    """What a rule does with a connection it applies to."""

    CONTINUE = auto()
    ACCEPT = auto()
    RETURN = auto()
    JUMP = auto()
    GOTO = auto()
    TAKE = auto()
    """The connection is redirected to another address or program."""
    REFUSE = auto()


@dataclass(frozen=True, slots=True)
class Connection:
    """A new connection from another host; `protocol` is tcp or udp."""

    address: Address
    port: int
    protocol: str = "tcp"

    def __str__(self) -> str:
        host = str(self.address) if self.address.version == 4 else f"[{self.address}]"
        return f"{'udp@' if self.protocol == 'udp' else ''}{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class RuleEffect:
    """The effect of a rule on a connection; it is certain unless `is_sure` is False."""

    action: Action
    target: str = ""
    """The target chain of JUMP and GOTO."""
    is_sure: bool = True
    by: str = ""
    """The named map that contains the verdict."""
    marks: int = 0
    """The bits that it sets in the packet's mark."""


@dataclass(frozen=True, slots=True)
class PacketRule:
    """A rule; `effects` returns its effects on a connection, none if it does not apply."""

    effects: Callable[[Connection], Sequence[RuleEffect]]
    comment: str = ""
    needs_marks: int = 0
    """The bits of the packet's mark without which it does not apply."""


@dataclass(slots=True)
class Chain:
    """A chain; `hook` and `priority` are set for base chains, which the kernel runs itself."""

    name: str
    rules: list[PacketRule] = field(default_factory=list)
    hook: str = ""
    priority: int = 0
    refuses: bool = False
    """Whether its policy refuses connections that no rule decides on."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table with its chains by name; `versions` are the IP versions that it filters."""

    name: str
    chains: Mapping[str, Chain]
    versions: frozenset[int]


@dataclass(frozen=True, slots=True)
class PacketFacts:
    """The tables of this host.

    `unread` is why rules cannot be read, or None if all were.  `is_shared` is set if this host has
    interfaces of network plugins or kube-proxy, which add rules.  `ipvs` lists the addresses on
    kube-proxy's interface.
    """

    tables: tuple[Table, ...] = ()
    unread: Problem | None = None
    is_shared: bool = False
    ipvs: frozenset[Address] = frozenset()


@dataclass(frozen=True, slots=True)
class Hit:
    """A rule that redirects or refuses a connection; `chains` is the path to it."""

    action: Action
    table: str
    chains: tuple[str, ...]
    comments: tuple[str, ...]
    is_sure: bool


class _End(Enum):
    """How a chain ended."""

    RETURNED = auto()
    ACCEPTED = auto()
    ENDED = auto()
    """The connection is redirected or refused."""


@dataclass(slots=True)
class _Way:
    """The evaluation of one table for a connection; matching rules are added to `hits`."""

    connection: Connection
    table: Table
    hits: list[Hit]
    may_have_ended: bool = False
    """Set once a rule that may apply would have accepted the connection."""
    marks: int = 0
    """The bits that rules may have set in the packet's mark; it is 0 at first."""

    def through(
        self, chain: Chain, chains: tuple[str, ...], comments: tuple[str, ...], *, is_sure: bool
    ) -> _End:
        """Return how a chain ends; `is_sure` is whether the connection certainly reaches it."""
        path = (*chains, chain.name)
        for rule in chain.rules:
            if rule.needs_marks & ~self.marks:
                continue
            said = (*comments, rule.comment) if rule.comment else comments
            for effect in rule.effects(self.connection):
                self.marks |= effect.marks
                applies = is_sure and effect.is_sure
                way = (*path, effect.by) if effect.by else path
                end = self._end_of(effect, way, said, is_sure=applies)
                if end is not None and effect.is_sure:
                    return end
                if end is _End.ACCEPTED:
                    self.may_have_ended = True
                elif end is _End.RETURNED:
                    is_sure = False
        return _End.RETURNED

    def _end_of(
        self, effect: RuleEffect, path: tuple[str, ...], comments: tuple[str, ...], *, is_sure: bool
    ) -> _End | None:
        """Return how the chain ends if the effect applies, or None if the chain continues."""
        match effect.action:
            case Action.TAKE | Action.REFUSE:
                surely = is_sure and not self.may_have_ended
                self.hits.append(Hit(effect.action, self.table.name, path, comments, surely))
                return _End.ENDED
            case Action.ACCEPT:
                return _End.ACCEPTED
            case Action.RETURN:
                return _End.RETURNED
            case Action.JUMP | Action.GOTO:
                chain = self.table.chains.get(effect.target)
                if chain is None or len(path) >= _DEEPEST:
                    return None
                end = self.through(chain, path, comments, is_sure=is_sure)
                is_back = end is _End.RETURNED and effect.action is Action.JUMP
                return None if is_back else end
        return None


def follow(connection: Connection, tables: Iterable[Table]) -> list[Hit]:
    """Return the rules that redirect or refuse a connection, in the order of evaluation."""
    entered = [
        (_HOOKS.index(chain.hook), chain.priority, table, chain)
        for table in tables
        if connection.address.version in table.versions
        for chain in table.chains.values()
        if chain.hook in _HOOKS
    ]
    hits: list[Hit] = []
    marks = 0
    for _, _, table, chain in sorted(entered, key=lambda each: each[:2]):
        way = _Way(connection, table, hits, marks=marks)
        end = way.through(chain, (), (), is_sure=True)
        marks = way.marks
        if end is _End.RETURNED and chain.refuses:
            is_sure = not way.may_have_ended
            hits.append(Hit(Action.REFUSE, table.name, (chain.name,), (_POLICY,), is_sure))
            end = _End.ENDED
        if end is _End.ENDED:
            break
    return hits


def judge_packets(connections: Iterable[Connection], facts: PacketFacts) -> tuple[Finding, ...]:
    """Judge which connections do not reach HAProxy, because of whose rules, and the remedy."""
    return tuple(_judged(tuple(connections), facts))


def _judged(connections: tuple[Connection, ...], facts: PacketFacts) -> Iterator[Finding]:
    if facts.unread is not None:
        if facts.is_shared:
            said = f"the rules cannot be read: {facts.unread.message}"
            yield _GROUP.unknown(_CHECK, said, facts.unread.remedy)
        return
    found = [finding for each in connections for finding in _of_connection(each, facts)]
    yield from found[:_MOST_SHOWN]
    if len(found) > _MOST_SHOWN:
        more = counted(len(found) - _MOST_SHOWN, "more bind")
        yield _GROUP.problem(_CHECK, f"{more} like these", "see `nft list ruleset`")
    if not found:
        checked = counted(len(connections), "bind")
        yield _GROUP.ok(_CHECK, f"no rule of this host takes connections to {checked}")


def _of_connection(connection: Connection, facts: PacketFacts) -> Iterator[Finding]:
    hits = follow(connection, facts.tables)
    sure = [hit for hit in hits if hit.is_sure]
    # A firewall that accepts only some sources is intended.
    unsure = [hit for hit in hits if hit.action is Action.TAKE]
    if sure or unsure:
        hit = (sure or unsure)[0]
        owner, remedy = _owner(hit, connection)
        how = "redirected" if hit.action is Action.TAKE else "refused"
        part = "" if sure else "some "
        say = _GROUP.problem if sure else _GROUP.warning
        chains = " → ".join(hit.chains[:1] + hit.chains[1:][-2:])
        yield say(
            _CHECK,
            f"{part}connections to {connection} are {how} before HAProxy gets them, by {owner} "
            f"(table {hit.table}, {chains})",
            remedy,
        )
    elif connection.address in facts.ipvs:
        yield _GROUP.warning(
            _CHECK,
            f"{connection.address} is on {IPVS_INTERFACE}: kube-proxy (IPVS) takes connections to "
            "the ports that a Service has there",
            "use an address that no Service has as its own, or see `ipvsadm -Ln`",
        )


def _owner(hit: Hit, connection: Connection) -> tuple[str, str]:
    """Return the owner of a rule, by the names of its chains and table, and the remedy."""
    names = (hit.table, *hit.chains)
    service = _service(hit)
    if hit.table == "kube-proxy" or any(name.startswith("KUBE-") for name in names):
        owner = f"kube-proxy for Service {service}" if service else "kube-proxy"
        if hit.action is Action.REFUSE:
            return owner, "use another port, or see why the Service has no endpoints"
        if any("nodeport" in name.lower() for name in names):
            return owner, (
                f"{connection.port} is its node port: use another port, or give the Service another"
            )
        return owner, (
            "the Service has this address as its own: give one of the two another address; k3s "
            "assigns node addresses unless it is started with --disable=servicelb,traefik"
        )
    if any(name.startswith(("CNI-HOSTPORT", "CNI-DN-", "cni_hostport")) for name in names):
        return "a pod's hostPort", (
            "use another port, or remove the pod, such as one of k3s ServiceLB "
            "(svclb-…): `kubectl get pods -A | grep svclb`"
        )
    if any(name == "netavark" or name.startswith("NETAVARK") for name in names):
        return "podman", f"stop the container that publishes port {connection.port}: `podman ps`"
    if any(name.startswith(("DOCKER", "docker-bridges")) for name in names):
        return "Docker", f"stop the container that publishes port {connection.port}: `docker ps`"
    if hit.action is Action.REFUSE:
        rule = "the policy" if hit.comments == (_POLICY,) else "a rule"
        return f"{rule} of the firewall", "accept connections to this port there"
    said = one_line(next(iter(hit.comments[-1:]), ""))
    owner = f"a rule with the comment “{said}”" if said else "a rule without a comment"
    return owner, "remove the rule, or use another address or port"


def _service(hit: Hit) -> str:
    """Return the Service for which kube-proxy added the rules; empty if unknown."""
    for text in (*hit.comments, *hit.chains):
        if found := _SERVICE.match(text):
            return found[1]
    return ""
