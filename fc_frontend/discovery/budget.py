"""Limits for the lookups of one service, so that none delays the others or exhausts memory.

A service controls, directly or by its records, which queries it causes: SRV targets
without addresses, chains of CNAMEs, zones whose nameservers respond slowly or never.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from fc_frontend.discovery.client import DnsClient, Reply
from fc_frontend.discovery.scan import RecordType
from fc_frontend.plan.model import LookupLimit
from fc_frontend.plan.slots import MOST

MAX_QUERIES = 512
"""The maximum number of queries for a service in a sweep."""
MAX_SECONDS = 5.0
"""The maximum time from the first query for a service to its last answer."""
MAX_RECORDS = MOST
"""The maximum number of records in all answers for a service: its maximum number of slots."""
SERVICES_AT_ONCE = 64
"""The number of services looked up concurrently; the time limit excludes waiting for a turn."""
MAX_AT_ONCE = 4
"""The number of concurrent queries for one service."""

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
        """Return the reply; failures of DNS never raise."""


@dataclass(slots=True)
class ServiceLookups:
    """Queries for one service, within its limits, and the replies to them."""

    client: DnsClient
    replies: list[tuple[str, RecordType, Reply]] = field(default_factory=list)
    _queries: int = 0
    _records: int = 0

    async def ask(self, name: str, rdtype: RecordType) -> Reply:
        """Like `DnsClient.ask`.  Raises `OverBudget`."""
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
