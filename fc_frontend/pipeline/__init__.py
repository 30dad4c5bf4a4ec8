"""The single path from files to a configuration, for the daemon and for every command.

`proposal.propose` is that path; `base` defines its starting point, `candidate` its intermediate
and final results, and `composer` does the work.
"""

from fc_frontend.pipeline.asking import resolve
from fc_frontend.pipeline.base import (
    Base,
    BaseOrigin,
    declared_now,
    find_base,
    is_same_cluster,
    running_plan,
    served_binds,
    settings_now,
    stored_base,
)
from fc_frontend.pipeline.candidate import Candidate, Check, Prepared, haproxy_check, no_check
from fc_frontend.pipeline.composer import ProposalMemo
from fc_frontend.pipeline.outcome import lost_settings, record
from fc_frontend.pipeline.proposal import base_of, prepare, prepare_offline, propose, with_slots

__all__ = (
    "Base",
    "BaseOrigin",
    "Candidate",
    "Check",
    "Prepared",
    "ProposalMemo",
    "base_of",
    "declared_now",
    "find_base",
    "haproxy_check",
    "is_same_cluster",
    "lost_settings",
    "no_check",
    "prepare",
    "prepare_offline",
    "propose",
    "record",
    "resolve",
    "running_plan",
    "served_binds",
    "settings_now",
    "stored_base",
    "with_slots",
)
