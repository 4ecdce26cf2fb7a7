"""The command line: one function per verb; each calls what the daemon calls.

Exit codes: 0 done, 1 failed, 2 wrong usage or invalid configuration, 3 refused for safety.
"""

from __future__ import annotations

import argparse
import errno
import http.client
import json
import os
import shlex
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import yaml
from rich.console import Console

from nfs_provisioner import __version__, memory, tables
from nfs_provisioner.config import ControllerConfig, check_files, load_controller_config
from nfs_provisioner.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_USAGE,
    InvalidInput,
    NfsProvisionerError,
    RefusedForSafety,
)
from nfs_provisioner.kube.api import NFS_EXPORT, Api, NotFound, load
from nfs_provisioner.recover import as_yaml, recover
from nfs_provisioner.volumes import requests
from nfs_provisioner.volumes.objects import REQUEST

JsonObject = dict[str, Any]
_VERSION = f"nfs-provisioner {__version__}"
_ANSWER_WITHIN = 60.0  # seconds
_LEADER_TRIES = 10
_LISTS = ("exports", "volumes", "archives")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code."""
    if sys.stdout is None:  # `>&-`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    try:
        try:
            return _run_verb(arguments)
        finally:
            sys.stdout.flush()  # here, where it can be told what became of it
    except BrokenPipeError:
        _drop_output()
        return EXIT_DONE
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        _drop_output()
        print(f"nfs-provisioner: the output cannot be written: {error.strerror}", file=sys.stderr)
        return EXIT_FAILED


def _run_verb(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    try:
        code: int = options.verb(options)
    except NfsProvisionerError as error:
        print(f"nfs-provisioner: {error.message}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return code


def _drop_output() -> None:
    """What is left in the buffer has nowhere to go; the interpreter would try once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # the error that rich handles while it calls this; by itself it would end the process with 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nfs-provisioner", description="Kubernetes volumes on NFS exports: provisioned, archived, never lost."
    )
    parser.add_argument("--version", action="version", version=_VERSION)
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def verb(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        added.set_defaults(verb=run)
        return added

    added = verb("run", _run, "run the controller")
    added.add_argument("--config", type=Path, metavar="FILE", help="ProvisionerConfig; reloaded when it changes")
    _kubeconfig(added)
    added = verb("demo", _demo, "the whole product on this machine: no cluster, no root, no network")
    added.add_argument("--port", type=int, default=8080, help="of /metrics and /api/status (default 8080; 0: any)")
    added.add_argument("--keep", type=Path, metavar="DIR", help="use this directory and leave it behind")
    added.add_argument("--once", action="store_true", help="show everything and exit, instead of staying up")
    added = verb("status", _status, "exports, their replicas and what is wrong with them")
    added.add_argument("export", nargs="?", metavar="EXPORT", type=_name, help="only this one")
    _from_anywhere(added)
    added = verb("volumes", _volumes, "every volume, what it takes and its directory; the largest first")
    added.add_argument("-n", "--namespace", help="only this namespace's")
    _from_anywhere(added)
    _archive_verbs(verb("archives", _archives, "what was archived instead of deleted; `purge` deletes one for good"))
    added = verb("accept", _accept, "vouch for a replica's disk whose identity changed (restored, replaced)")
    added.add_argument("export", metavar="EXPORT", type=_name)
    added.add_argument("--replica", required=True, metavar="NAME", type=_name)
    _request_options(added)
    added = verb(
        "confirm-deletions", _confirm_deletions, "let the standby make deletions that wait because they are so many"
    )
    added.add_argument("export", metavar="EXPORT", type=_name)
    added.add_argument("volume", metavar="VOLUME", type=_name, help="the PV, or namespace/claim")
    _request_options(added)
    added = verb(
        "sync", _sync, "make TARGET equal to SOURCE, two plain directories, with the engine that keeps pairs equal"
    )
    _two_directories(added)
    added.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    added.add_argument(
        "--allow-empty", action="store_true", help="an empty SOURCE may empty TARGET; else it is taken for unmounted"
    )
    added = verb(
        "verify",
        _verify,
        "compare two plain directories; writes nothing, and exits with 1 when they differ or not all could be seen",
    )
    _two_directories(added)
    added.add_argument("--checksum", action="store_true", help="read every file on both sides")
    added = verb("recover", _recover, "print the manifests of every volume found at an export's root")
    added.add_argument("root", metavar="ROOT")
    added = verb("check-config", _check_config, "validate configuration, NFSExport and StorageClass files offline")
    added.add_argument("files", nargs="+", type=Path, metavar="FILE", help="YAML; also a ConfigMap")
    verb("version", _version, "print the version")
    return parser


def _name(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty")
    return text


def _kubeconfig(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kubeconfig", metavar="FILE", help="default: $KUBECONFIG, the pod's account, ~/.kube/config")


def _from_anywhere(
    parser: argparse.ArgumentParser, *, output: str = "table", namespace: str = "nfs-provisioner"
) -> None:
    _kubeconfig(parser)
    parser.add_argument("-o", "--output", choices=("table", "json", "yaml"), default=output)
    parser.add_argument(
        "--url", help="of a controller, such as http://127.0.0.1:8080, instead of the API server's proxy"
    )
    parser.add_argument(
        "--controller-namespace", default=namespace, metavar="NS", help="where the controller's Service is"
    )


def _request_options(parser: argparse.ArgumentParser) -> None:
    _kubeconfig(parser)
    parser.add_argument("--dry-run", action="store_true", default=False, help="print the request, write nothing")


def _two_directories(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("target", metavar="TARGET")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")


def _archive_verbs(parser: argparse.ArgumentParser) -> None:
    _from_anywhere(parser)
    below = parser.add_subparsers(metavar="list|purge")
    # Without defaults of their own: `archives --kubeconfig X purge` must not fall back to another cluster.
    listing = below.add_parser("list", help="the same", argument_default=argparse.SUPPRESS)
    listing.set_defaults(verb=_archives)
    _from_anywhere(listing, output=argparse.SUPPRESS, namespace=argparse.SUPPRESS)
    purge = below.add_parser("purge", help="delete an archive for good", argument_default=argparse.SUPPRESS)
    purge.add_argument("export", metavar="EXPORT", type=_name)
    purge.add_argument("name", metavar="NAME", type=_name)
    _request_options(purge)
    purge.set_defaults(verb=_purge)


# -- the controller -------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    from nfs_provisioner.daemon import Daemon
    from nfs_provisioner.process import configure_logging

    config = load_controller_config(options.config) if options.config else ControllerConfig()
    configure_logging(config)
    memory.one_arena()
    try:
        daemon = Daemon(config, kubeconfig=options.kubeconfig, config_file=options.config)
    except OSError as error:
        raise NfsProvisionerError(f"http {config.http.bind}:{config.http.port}: {error.strerror}") from error
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: daemon.stop())
    ending = daemon.run()
    if ending == "reload":
        os.execv(sys.executable, [sys.executable, "-m", "nfs_provisioner", *sys.argv[1:]])
    return EXIT_DONE if ending == "stopped" else EXIT_FAILED


def _demo(options: argparse.Namespace) -> int:
    from nfs_provisioner.demo.tour import tour

    return tour(port=options.port, keep=options.keep, once=options.once)


# -- what there is ----------------------------------------------------------------------------------------------------


def _fetch(options: argparse.Namespace) -> JsonObject:
    """The leader's /api/status; a Service spreads requests over all controllers, so the leader is asked for again."""
    if options.url is not None:
        return _get_url(options.url)
    api = load(options.kubeconfig)
    namespace = quote(options.controller_namespace, safe="")
    path = f"/api/v1/namespaces/{namespace}/services/http:nfs-provisioner:http/proxy/api/status"
    for left in reversed(range(_LEADER_TRIES)):
        try:
            answer: JsonObject = json.loads(api.get_raw(path))
            return answer
        except NotFound as error:
            raise NfsProvisionerError(
                f"there is no Service nfs-provisioner in namespace {options.controller_namespace}: is the controller "
                f"installed there? --controller-namespace names another ({error.message})"
            ) from error
        except NfsProvisionerError:
            if left == 0:
                raise
            time.sleep(0.2)
    raise AssertionError("unreachable")


def _get_url(given: str) -> JsonObject:
    url = given.rstrip("/") + "/api/status"
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        right = False
    if not right:
        raise InvalidInput(f"--url {given!r} is not a controller's; write one such as http://127.0.0.1:8080")
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            answer = json.load(response)
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")[:200].strip()
        raise NfsProvisionerError(f"{url}: {error.code}: {said}") from error
    except urllib.error.URLError as error:
        raise NfsProvisionerError(f"{url}: {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NfsProvisionerError(f"{url}: no controller answers there: {error}") from error
    if not isinstance(answer, dict) or not all(isinstance(answer.get(key), list) for key in _LISTS):
        raise NfsProvisionerError(f"{url}: no controller answers there: this is not its status")
    return answer


def _show(options: argparse.Namespace, data: Any, table: Callable[[Console], None]) -> int:
    if options.output == "json":
        print(json.dumps(data, indent=2))
    elif options.output == "yaml":
        print(yaml.safe_dump(data, sort_keys=False), end="")
    else:
        # In a pipe nothing is folded: programs that cut columns get one line a row.
        console = _Console() if sys.stdout.isatty() else _Console(width=10_000, no_color=True, highlight=False)
        table(console)
    return EXIT_DONE


def _status(options: argparse.Namespace) -> int:
    status = _fetch(options)
    if options.export:
        there = [export["name"] for export in status["exports"]]
        status["exports"] = [export for export in status["exports"] if export["name"] == options.export]
        if not status["exports"]:
            raise InvalidInput(f"there is no NFSExport {options.export!r}; there are: {', '.join(there) or 'none'}")
    shown = {key: status[key] for key in ("version", "leader", "provisioner", "exports")}
    return _show(options, shown, lambda console: tables.exports(console, status))


def _volumes(options: argparse.Namespace) -> int:
    shown = (row for row in _fetch(options)["volumes"] if options.namespace in (None, row["namespace"]))
    rows = tables.by_use(shown)
    return _show(options, rows, lambda console: tables.volumes(console, rows))


def _archives(options: argparse.Namespace) -> int:
    rows = sorted(_fetch(options)["archives"], key=lambda row: (row["export"], row["since"], row["name"]))
    return _show(options, rows, lambda console: tables.archives(console, rows))


# -- requests ----------------------------------------------------------------------------------------------------


def _purge(options: argparse.Namespace) -> int:
    return _request(options, "archives purge", options.name)


def _accept(options: argparse.Namespace) -> int:
    return _request(options, "accept", options.replica)


def _confirm_deletions(options: argparse.Namespace) -> int:
    return _request(options, "confirm-deletions", options.volume)


def _request(options: argparse.Namespace, verb: str, name: str) -> int:
    """Write the request as an annotation, and wait for its answer in the status."""
    api = load(options.kubeconfig)
    try:
        status = api.get(NFS_EXPORT, options.export).get("status") or {}
    except NotFound as error:
        raise InvalidInput(f"there is no NFSExport {options.export!r}; see 'nfs-provisioner status'") from error
    text = requests.compose(
        verb, name, int(status.get("epoch", 0)), datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    )
    if options.dry_run:
        print(shlex.join(["kubectl", "annotate", "--overwrite", "nfsexport", options.export, f"{REQUEST}={text}"]))
        return EXIT_DONE
    api.patch(NFS_EXPORT, options.export, {"metadata": {"annotations": {REQUEST: text}}})
    answer = _wait_for_answer(api, options.export, text)
    if answer["result"] == "Done":
        print(answer["message"])
        return EXIT_DONE
    kind = InvalidInput if answer["result"] == "Invalid" else RefusedForSafety
    raise kind(answer["message"])


def _wait_for_answer(api: Api, export: str, text: str) -> JsonObject:
    end = time.monotonic() + _ANSWER_WITHIN
    while time.monotonic() < end:
        handled = (api.get(NFS_EXPORT, export).get("status") or {}).get("lastHandledRequest") or {}
        if handled.get("request") == text:
            answer: JsonObject = handled
            return answer
        time.sleep(0.3)
    raise NfsProvisionerError(
        f"the request is written, but was not answered in {_ANSWER_WITHIN:g} s; is the controller running? "
        f"Its answer will be in: kubectl get nfsexport {export} -o jsonpath='{{.status.lastHandledRequest}}'"
    )


# -- offline ----------------------------------------------------------------------------------------------------


def _recover(options: argparse.Namespace) -> int:
    found = recover(options.root)
    sys.stdout.write(as_yaml(found, options.root))
    for note in found.notes:
        print(f"nfs-provisioner: {note}", file=sys.stderr)
    return EXIT_DONE


def _sync(options: argparse.Namespace) -> int:
    from nfs_provisioner import copying

    return copying.sync(options)


def _verify(options: argparse.Namespace) -> int:
    from nfs_provisioner import copying

    return copying.verify(options)


def _check_config(options: argparse.Namespace) -> int:
    report = check_files(options.files)
    for line in report.checked:
        print(f"ok: {line}")
    for line in report.passed_over:
        print(f"passed over: {line}")
    for problem in report.problems:
        print(f"nfs-provisioner: {problem}", file=sys.stderr)
    return EXIT_USAGE if report.problems else EXIT_DONE


def _version(_options: argparse.Namespace) -> int:
    print(_VERSION)
    return EXIT_DONE
