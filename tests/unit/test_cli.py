"""The command line where no cluster is needed: usage, offline verbs, pipes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from nfs_provisioner import __version__, cli
from nfs_provisioner.cli import main
from nfs_provisioner.errors import LostLeadership, NfsProvisionerError, RefusedForSafety

COMMAND = (sys.executable, "-m", "nfs_provisioner")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"nfs-provisioner {__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["status", "--nonsense"],
        ["status", "-o", "xml"],
        ["recover"],
        ["archives", "purge", "web"],
        ["accept", "web"],
        ["check-config"],
    ],
    ids=lambda words: " ".join(words) or "nothing",
)
def test_wrong_usage_ends_with_two(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "usage: nfs-provisioner" in capsys.readouterr().err


VERBS = ["run", "demo", "status", "volumes", "archives", "accept", "recover", "check-config", "version"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_stands_in_the_list(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], [verb, "--help"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
        assert verb in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"),
    [(NfsProvisionerError("m"), 1), (LostLeadership("m"), 1), (RefusedForSafety("m"), 3), (KeyboardInterrupt(), 130)],
    ids=lambda value: type(value).__name__,
)
def test_each_error_has_its_exit_code_and_one_line(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_options: Any) -> int:
        raise error

    monkeypatch.setattr(cli, "_version", fails)
    assert main(["version"]) == code
    assert capsys.readouterr().err == ("" if code == 130 else "nfs-provisioner: m\n")


def test_the_version_as_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"nfs-provisioner {__version__}\n"


def test_a_name_that_is_empty_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """As an unset variable of a script leaves it: it must not be read as everything, or as the list of all."""
    for words in (["status", ""], ["accept", "", "--replica", "a"], ["accept", "web", "--replica", ""]):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--kubeconfig", "/nowhere"])
        assert ended.value.code == 2
        assert "is empty" in capsys.readouterr().err


# -- check-config -----------------------------------------------------------------------------------------------------

GOOD = """\
apiVersion: nfs-provisioner.io/v1alpha1
kind: ProvisionerConfig
workers: 4
"""


def test_good_files_are_named_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(GOOD)
    assert main(["check-config", str(file)]) == 0
    printed = capsys.readouterr()
    assert str(file) in printed.out and printed.err == ""


def test_a_typo_is_named_with_file_line_and_key_and_ends_with_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(GOOD.replace("workers", "wokers"))
    assert main(["check-config", str(file)]) == 2
    printed = capsys.readouterr()
    assert f"{file}:3" in printed.err and "wokers" in printed.err
    assert printed.out == ""


def test_a_controller_with_a_bad_configuration_does_not_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(GOOD + "workers: 5\n")
    assert main(["run", "--config", str(file)]) == 2
    assert str(file) in capsys.readouterr().err


# -- status by URL ----------------------------------------------------------------------------------------------------

EMPTY = b'{"version": "v", "leader": "l", "provisioner": "p", "exports": [], "volumes": [], "archives": []}'


@pytest.fixture
def url() -> Iterator[str]:
    """Something that answers /api/status as a controller without any export does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/api/status" else 503)
            self.end_headers()
            self.wfile.write(EMPTY if self.path == "/api/status" else b"no leader")

        def log_message(self, *_: Any) -> None:
            """Nobody reads it."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.05))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_cluster_without_exports_says_what_to_do(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", url]) == 0
    assert "kubectl explain nfsexport.spec" in capsys.readouterr().out


def test_an_unknown_export_with_none_there(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "web", "--url", url]) == 2
    assert "none" in capsys.readouterr().err


@pytest.mark.parametrize("answer", [b"[]", b"{}", b"null", b'{"exports": 3}', b"SSH-2.0-OpenSSH_9.6"], ids=bytes.decode)
def test_what_is_not_a_controller_is_said_to_be_none(answer: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                head = b"" if answer.startswith(b"SSH") else b"HTTP/1.0 200 OK\r\n\r\n"
                connection.sendall(head + answer)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        assert main(["status", "--url", url]) == 1
        thread.join()
    assert capsys.readouterr().err.startswith(f"nfs-provisioner: {url}")


@pytest.mark.parametrize(
    "url", ["foo", "127.0.0.1:8080", "http://", "http://127.0.0.1:x", "http://[::1", "file:///x", ""]
)
def test_what_is_not_a_url_is_wrong_usage(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", url]) == 2
    assert "http://127.0.0.1:8080" in capsys.readouterr().err, "what would be right"


def test_a_controller_that_does_not_answer_is_a_failure(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", f"{url}/elsewhere"]) == 1
    assert "503" in capsys.readouterr().err
    assert main(["status", "--url", "http://127.0.0.1:1"]) == 1
    assert "127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.parametrize("buffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("words", [["status", "-o", "json"], ["status"], ["--help"]], ids=" ".join)
def test_a_reader_that_goes_away_is_no_error(url: str, words: list[str], buffered: str) -> None:
    """`nfs-provisioner volumes | head`, and head has seen enough before the first line."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = os.environ | {"PYTHONUNBUFFERED": buffered}
    address = [] if words == ["--help"] else ["--url", url]
    try:
        ran = subprocess.run(
            (*COMMAND, *words, *address), stdout=writing, stderr=subprocess.PIPE, timeout=240, env=environment
        )
    finally:
        os.close(writing)
    assert (ran.returncode, ran.stderr) == (0, b"")


@pytest.mark.parametrize("buffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_output_that_finds_no_space_is_a_failure_in_one_line(url: str, buffered: str) -> None:
    with open("/dev/full", "wb") as full:
        ran = subprocess.run(
            (*COMMAND, "status", "--url", url),
            stdout=full, stderr=subprocess.PIPE, timeout=240, env=os.environ | {"PYTHONUNBUFFERED": buffered},
        )  # fmt: skip
    assert ran.returncode == 1
    assert ran.stderr == b"nfs-provisioner: the output cannot be written: No space left on device\n"


def test_a_closed_output_is_no_error(url: str) -> None:
    ran = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *COMMAND, "status", "--url", url], stderr=subprocess.PIPE, timeout=240
    )
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_a_pipe_gets_neither_colours_nor_progress(url: str) -> None:
    ran = subprocess.run((*COMMAND, "status", "--url", url), capture_output=True, timeout=240)
    assert ran.returncode == 0 and b"\x1b" not in ran.stdout and ran.stderr == b""
