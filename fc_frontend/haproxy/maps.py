"""The maps of frontends as files beside haproxy.cfg.

They follow from its text alone, and are written before it.
"""

from __future__ import annotations

from fc_frontend import files
from fc_frontend.plan.model import Settings
from fc_frontend.render.config import maps_in


def write(settings: Settings, data: bytes) -> None:
    """Write the maps that the configuration `data` needs.  Raises `Unavailable`.

    They get the permissions of haproxy.cfg.  Maps of frontends that are gone stay: a worker that
    is about to be replaced may be the one that serves in the end.
    """
    path = settings.haproxy.config_file
    wanted = maps_in(path, data.decode("utf-8", "surrogateescape"))
    if not wanted:
        return
    config = files.read(path)
    files.make_directory(next(iter(wanted)).rpartition("/")[0], mode=0o755)
    for name, text in wanted.items():
        content = text.encode()
        found = files.read(name)
        if found is None or found.data != content:
            files.replace(name, content, attributes=config.attributes if config else None)
