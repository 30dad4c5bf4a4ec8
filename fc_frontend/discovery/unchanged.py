"""Skip services whose DNS answers have not changed since the last sweep.

The answer for a service is computed from replies.  If all of them came from plain answers, the next
sweep only compares bytes.  Services with any other reply are resolved again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fc_frontend.discovery.budget import ServiceLookups
from fc_frontend.discovery.channel import Question
from fc_frontend.discovery.client import DnsClient
from fc_frontend.discovery.scan import AnswerFingerprint
from fc_frontend.plan.model import Answer, Cluster, Freshness, Resolution, ServiceSpec


@dataclass(slots=True)
class _Known:
    """An answer, with the queries and the fingerprints of the replies that it is based on."""

    spec: ServiceSpec
    answer: Answer
    replies: tuple[tuple[Question, AnswerFingerprint | None], ...]


class UnchangedAnswers:
    """The replies behind each answer, for one client and one set of cluster settings."""

    def __init__(self) -> None:
        self._for: tuple[DnsClient, Cluster] | None = None
        self._known: dict[str, _Known] = {}

    async def settled(
        self,
        specs: Iterable[ServiceSpec],
        cluster: Cluster,
        client: DnsClient,
        previous: Resolution,
    ) -> dict[str, Answer]:
        """Return the previous answers (the same objects) of services with unchanged replies."""
        if self._for is None or self._for[0] is not client or self._for[1] != cluster:
            self._for, self._known = (client, cluster), {}
        known = [k for spec in specs if (k := self._still(spec, previous.get(spec.name)))]
        questions = {question: None for k in known for question, _ in k.replies}
        same = await client.compare(tuple(questions)) if questions else set()
        settled = {
            k.spec.name: k.answer
            for k in known
            if all(question in same for question, _ in k.replies)
        }
        if len(self._known) > len(known):
            self._known = {k.spec.name: k for k in known}
        return settled

    def _still(self, spec: ServiceSpec, previous: Answer | None) -> _Known | None:
        known = self._known.get(spec.name)
        if known is None or previous is None:
            return None
        if known.spec is not spec and known.spec != spec:
            return None
        if known.answer is not previous:
            if known.answer != previous:
                return None
            known.answer = previous
        if any(question.fingerprint is not fingerprint for question, fingerprint in known.replies):
            return None
        return known

    def learn(self, spec: ServiceSpec, answer: Answer, lookups: ServiceLookups) -> None:
        """Store the replies that a new answer is based on, if they are plain."""
        self._known.pop(spec.name, None)
        if answer.freshness is not Freshness.FRESH or answer.is_cut or answer.lost_at is not None:
            return
        replies = []
        for name, rdtype, reply in lookups.replies:
            question = lookups.client.source(name, rdtype, reply)
            if question is None:
                return
            replies.append((question, question.fingerprint))
        self._known[spec.name] = _Known(spec, answer, tuple(replies))
