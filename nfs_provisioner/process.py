"""What a process needs beside its work: where it runs, how it writes its log, and when its configuration changed."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from nfs_provisioner.config import ControllerConfig, load_controller_config
from nfs_provisioner.errors import InvalidInput

log = logging.getLogger(__name__)

CONFIG_POLL = 5.0  # seconds between looks at the configuration file

_SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def own_namespace() -> str:
    """The namespace this process runs in: $POD_NAMESPACE, the ServiceAccount's, or nfs-provisioner."""
    if os.environ.get("POD_NAMESPACE"):
        return os.environ["POD_NAMESPACE"]
    if _SERVICE_ACCOUNT_NAMESPACE.exists():
        return _SERVICE_ACCOUNT_NAMESPACE.read_text().strip()
    return "nfs-provisioner"


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def configure_logging(config: ControllerConfig) -> None:
    """One line an entry on stderr, as text or JSON."""
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(_JsonFormatter() if config.log.format == "json" else text)
    logging.basicConfig(level=config.log.level.upper(), handlers=[handler], force=True)
    logging.getLogger("urllib3").setLevel(logging.WARNING)  # a line a request says nothing that the metrics do not


def follow_config(
    path: Path,
    end: threading.Event,
    *,
    on_read: Callable[[bool], None],
    on_change: Callable[[ControllerConfig], None],
    poll: float = CONFIG_POLL,
) -> None:
    """Until `end`: each time that the file changed, `on_read(whether it is right)`, and what it says if it is.

    Also at first, because it may have changed between the reading that the caller knows of and now.
    """
    seen = None
    while not end.wait(poll):
        now = _stamp(path)
        if now == seen:
            continue
        seen = now
        try:
            fresh = load_controller_config(path)
        except InvalidInput as error:
            log.error("the changed configuration is not used: %s", error.message)  # noqa: TRY400
            on_read(False)
            continue
        on_read(True)
        on_change(fresh)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
