"""`sync` and `verify`: the replication engine between two plain directories, for the command line.

Progress goes to stderr, and only to a terminal; what was done goes to stdout, as a sentence or as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nfs_provisioner.config import format_quantity, rough_size
from nfs_provisioner.errors import EXIT_DONE, EXIT_FAILED, RetryLater
from nfs_provisioner.replication import plain
from nfs_provisioner.replication.passes import Counts, Result

_NAMED = 20  # names printed of each kind; JSON has all that the result has
_OF_EACH_DIRECTORY = ("directories", "usage", "measured", "foreign")  # and what only a pair knows


def sync(options: argparse.Namespace) -> int:
    """One pass. EXIT_FAILED when it was not clean: run it again, or look at what it names."""
    with (
        _stopped_by_signals() as guard,
        _progress(options.source, lambda counts: counts.copied_bytes) as progress,
    ):
        result = plain.sync(
            options.source,
            options.target,
            dry_run=options.dry_run,
            allow_empty=options.allow_empty,
            progress=progress,
            guard=guard,
        )
    if options.dry_run and options.output == "text":
        for line in result.log:
            print(_printable(line))
    _report(options, result, _done(result.counts, "would be " if options.dry_run else ""))
    return EXIT_DONE if result.clean or (options.dry_run and not result.errors) else EXIT_FAILED


def verify(options: argparse.Namespace) -> int:
    """A comparison that writes nothing. EXIT_FAILED when the two sides differ, or when not all of them was seen."""
    with _progress(options.source, lambda counts: counts.bytes) as progress:
        result = plain.verify(options.source, options.target, checksum=options.checksum, progress=progress)
    if options.output == "text":
        for line in result.log:
            print(_printable(line))
    equal = result.clean and not result.log
    _report(options, result, _equal(result) if equal else "the two sides differ")
    unseen = [path for path, why in result.skipped if why != plain.OURS]
    return EXIT_DONE if equal and not unseen else EXIT_FAILED


def _equal(result: Result) -> str:
    sentence, names = "the two sides are equal", [_printable(path) for path, _ in result.skipped]
    if not names:
        return sentence
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{sentence}, but for what was left out: {', '.join(names[:_NAMED])}{more}"


@contextmanager
def _stopped_by_signals() -> Iterator[Callable[[], None]]:
    """Ends of every kind unwind, so that nothing of ours stays in the target. What it yields stops copies under way."""
    stopped = threading.Event()

    def stop(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:  # the second one, too: whoever is at a terminal may see that it hangs
            stopped.set()
            raise KeyboardInterrupt
        if not stopped.is_set():
            stopped.set()
            raise SystemExit(128 + number)

    def guard() -> None:
        if stopped.is_set():
            raise RetryLater("stopped by a signal")

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        if before[number] != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, stop)
    try:
        yield guard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _done(counts: Counts, would: str) -> str:
    sizes = format_quantity(counts.copied_bytes) if counts.copied_bytes else "0"
    return (
        f"{counts.entries} entries: {counts.copied_files} files ({sizes} bytes) {would}copied, "
        f"{counts.mended} {would}mended, {counts.renamed} {would}renamed, {counts.deleted} {would}deleted"
    )


def _report(options: argparse.Namespace, result: Result, sentence: str) -> None:
    if options.output == "json":
        found = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
        for name in _OF_EACH_DIRECTORY:
            del found[name]
        found |= {"counts": dataclasses.asdict(result.counts), "deferred": sorted(result.deferred)}
        print(json.dumps({key: _named(value) for key, value in found.items()}, indent=2))
        return
    print(sentence)
    for what, paths in (
        ("unstable (changed during every attempt to copy it)", result.unstable),
        ("skipped", [f"{path}: {why}" for path, why in result.skipped]),
        ("failed", [f"{path}: {why}" for path, why in result.errors]),
        ("same size and times, other content (kept on both sides)", result.different),
        ("deletion put off: its directory changes; the next run looks again", sorted(result.deferred)),
    ):
        for path in list(paths)[:_NAMED]:
            print(f"{what}: {_printable(path)}", file=sys.stderr)
        if len(paths) > _NAMED:
            print(f"{what}: {len(paths) - _NAMED} more", file=sys.stderr)
    if result.not_compared:
        what = ", ".join(result.not_compared)
        print(f"not compared: {what} (the target does not hold it, or you may not set it there)", file=sys.stderr)
    if result.waiting:
        print(f"{result.waiting} deletions wait: more than the limit allows", file=sys.stderr)


def _named(value: Any) -> Any:
    """Names that are not UTF-8 as JSON can hold them."""
    if isinstance(value, str):
        return _printable(value)
    if isinstance(value, list | tuple):
        return [_named(one) for one in value]
    return value


def _printable(text: str) -> str:
    return os.fsencode(text).decode("utf-8", "backslashreplace").replace("\n", "\\n")


@contextmanager
def _progress(source: str, done: Callable[[Counts], int]) -> Iterator[Callable[[Counts], None]]:
    """A bar on a terminal; `done` bytes are what it shows, and their rate. The number of entries is counted meanwhile:
    until it is known, nothing is promised."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda counts: None
        return
    columns = (
        TextColumn("{task.fields[files]} files, {task.fields[size]}, {task.fields[rate]}/s"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("", total=None, files=0, size="0B", rate="0B")
        threading.Thread(target=lambda: bars.update(bar, total=_entries(source)), daemon=True).start()
        began = time.monotonic()

        def show(counts: Counts) -> None:
            rate = int(done(counts) / max(time.monotonic() - began, 0.1))
            size = rough_size(done(counts))
            bars.update(bar, completed=counts.entries, files=counts.files, size=size, rate=rough_size(rate))

        yield show


def _entries(source: str) -> int:
    found = 0
    for _, directories, files in os.walk(source):
        found += len(directories) + len(files)
    return found
