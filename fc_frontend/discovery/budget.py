"""What the lookups of one service may take, so that none delays the others or fills the memory.

A service names, directly or by the records that it owns, what is asked on its behalf: SRV targets
without addresses, chains of CNAMEs, zones whose nameservers answer slowly or never.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from fc_frontend.discovery.client import DnsClient, Reply
from fc_frontend.discovery.scan import RecordType
from fc_frontend.plan.model import LookupLimit
from fc_frontend.plan.slots import MOST

MAX_QUERIES = 512
"""Questions about one service in a sweep."""
MAX_SECONDS = 5.0
"""From the first question about a service to its last answer."""
MAX_RECORDS = MOST
"""Records in all answers about one service: as many as it may have slots."""
SERVICES_AT_ONCE = 64
"""Services that are asked about at the same time; what waits takes nothing of its seconds."""
MAX_AT_ONCE = 4
"""Questions about one service that are asked at the same time."""

EXPLANATIONS = {
    LookupLimit.QUERIES: f"needs more than {MAX_QUERIES} DNS lookups",
    LookupLimit.SECONDS: f"its DNS lookups took longer than {MAX_SECONDS:g} s",
    LookupLimit.RECORDS: f"has more than {MAX_RECORDS} DNS records",
}
REMEDIES = {
    LookupLimit.QUERIES: "let cluster DNS send the addresses of SRV targets, or use a port number",
    LookupLimit.SECONDS: "find out which name below this service cluster DNS resolves too slowly",
    LookupLimit.RECORDS: "split the Service in the cluster into several",
}


class OverBudget(Exception):
    """The lookups of a service exceed a limit."""

    def __init__(self, limit: LookupLimit) -> None:
        super().__init__(limit.value)
        self.limit = limit


class Resolver(Protocol):
    """Sends queries to cluster DNS."""

    async def ask(self, name: str, rdtype: RecordType) -> Reply:
        """The answer; never raises for what DNS does."""


@dataclass(slots=True)
class ServiceLookups:
    """Resolver a client on behalf of one service, within its limits, and notes what it replied."""

    client: DnsClient
    replies: list[tuple[str, RecordType, Reply]] = field(default_factory=list)
    _queries: int = 0
    _records: int = 0

    async def ask(self, name: str, rdtype: RecordType) -> Reply:
        """As the client's.  Raises `OverBudget`."""
        self._queries += 1
        if self._queries > MAX_QUERIES:
            raise OverBudget(LookupLimit.QUERIES)
        reply = await self.client.ask(name, rdtype)
        self._records += len(reply.addresses)
        self._records += sum(1 + len(record.addresses) for record in reply.services)
        if self._records > MAX_RECORDS:
            raise OverBudget(LookupLimit.RECORDS)
        self.replies.append((name, rdtype, reply))
        return reply
