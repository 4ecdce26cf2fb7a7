"""The controller's configuration file: what it gives, and what its errors say."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import pytest

from nfs_provisioner.config import (
    ControllerConfig,
    HttpConfig,
    LeaderElectionConfig,
    LogConfig,
    load_controller_config,
    parse_controller_config,
)
from nfs_provisioner.errors import InvalidInput

HEAD = "apiVersion: nfs-provisioner.io/v1alpha1\nkind: ProvisionerConfig\n"


def problems(text: str) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        parse_controller_config(text, "c.yaml")
    return caught.value.message.splitlines()


def problem(text: str) -> str:
    (only,) = problems(text)
    return only


def test_an_empty_configuration_is_the_contracts_defaults() -> None:
    assert parse_controller_config(HEAD, "c.yaml") == ControllerConfig(
        provisioner="nfs-provisioner.io/nfs",
        adopt_from=(),
        workers=8,
        leader_election=LeaderElectionConfig(
            enabled=True, namespace=None, lease_duration=15.0, renew_deadline=10.0, retry_period=2.0
        ),
        http=HttpConfig(bind="0.0.0.0", port=8080),
        log=LogConfig(format="text", level="info"),
        mount_root="/exports",
        fence_commands={},
    )


def test_the_contracts_example_is_the_defaults() -> None:
    example = HEAD + (
        "provisioner: nfs-provisioner.io/nfs      # StorageClass.provisioner it serves\n"
        "adoptFrom: []\n"
        "workers: 8\n"
        "leaderElection: {enabled: true, namespace: null, leaseDuration: 15s, renewDeadline: 10s, retryPeriod: 2s}\n"
        "http: {bind: 0.0.0.0, port: 8080}\n"
        "log: {format: text, level: info}         # or json\n"
        "mountRoot: /exports\n"
        "fenceCommands: {}\n"
    )
    assert parse_controller_config(example, "c.yaml") == ControllerConfig()


def test_every_key_is_read() -> None:
    config = parse_controller_config(
        HEAD
        + "provisioner: example.com/files\n"
        + "adoptFrom: [cluster.local/nfs-subdir, k8s-sigs.io/nfs-subdir-external-provisioner]\n"
        + "workers: 64\n"
        + "leaderElection: {enabled: false, namespace: storage, leaseDuration: 1m, renewDeadline: 40s,"
        + " retryPeriod: 5s}\n"
        + "http: {bind: '::1', port: 0}\n"
        + "log: {format: json, level: debug}\n"
        + "mountRoot: /mnt/nfs\n"
        + "fenceCommands:\n  web: [ipmitool, -H, 10.0.0.11, power, 'off']\n",
        "c.yaml",
    )
    assert config == ControllerConfig(
        provisioner="example.com/files",
        adopt_from=("cluster.local/nfs-subdir", "k8s-sigs.io/nfs-subdir-external-provisioner"),
        workers=64,
        leader_election=LeaderElectionConfig(False, "storage", 60.0, 40.0, 5.0),
        http=HttpConfig("::1", 0),
        log=LogConfig("json", "debug"),
        mount_root="/mnt/nfs",
        fence_commands={"web": ("ipmitool", "-H", "10.0.0.11", "power", "off")},
    )
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_key_without_a_value_is_its_default() -> None:
    assert (
        parse_controller_config(HEAD + "fenceCommands:\nadoptFrom:\nhttp:\nworkers:\n", "c.yaml") == ControllerConfig()
    )


@pytest.mark.parametrize(
    ("lines", "line", "key", "says"),
    [
        ("worker: 9", 3, "worker", "did you mean workers?"),
        ("log:\n  levle: info", 4, "log.levle", "did you mean level?"),
        ("workers: 0", 3, "workers", "0 is not a whole number from 1 to 64"),
        ("workers: 65", 3, "workers", "65 is not"),
        ("workers: '8'", 3, "workers", "'8' is not"),
        ("workers: yes", 3, "workers", "true is not"),
        ("workers: 8.0", 3, "workers", "8.0 is not"),
        ("http:\n\n  port: 65536", 5, "http.port", "65536 is not"),
        ("http: {bind: localhost}", 3, "http.bind", "'localhost' is not an IP address"),
        ("http: 8080", 3, "http", "8080 is not a mapping"),
        ("log: {level: INFO}", 3, "log.level", "write debug, info, warning or error"),
        ("log: {format: xml}", 3, "log.format", "write text or json"),
        ("leaderElection: {enabled: 'true'}", 3, "leaderElection.enabled", "without quotes"),
        ("leaderElection: {namespace: Storage}", 3, "leaderElection.namespace", "'Storage' is not a name"),
        ("leaderElection: {leaseDuration: 15}", 3, "leaderElection.leaseDuration", "15 is not a duration"),
        ("leaderElection: {leaseDuration: 15.5s}", 3, "leaderElection.leaseDuration", "whole seconds"),
        ("leaderElection: {leaseDuration: 0s}", 3, "leaderElection.leaseDuration", "whole seconds"),
        ("leaderElection: {retryPeriod: -2s}", 3, "leaderElection.retryPeriod", "'-2s' is not a duration"),
        ("leaderElection: {retryPeriod: 0s}", 3, "leaderElection.retryPeriod", "without pause"),
        ("leaderElection: {renewDeadline: 15s}", 3, "leaderElection.renewDeadline", "not below leaseDuration (15s)"),
        ("leaderElection: {leaseDuration: 9s}", 3, "leaderElection.renewDeadline", "not below leaseDuration (9s)"),
        ("leaderElection: {retryPeriod: 8.4s}", 3, "leaderElection.retryPeriod", "less than 8.33s"),
        ("mountRoot: exports", 3, "mountRoot", "not a clean absolute path"),
        ("mountRoot: /exports/", 3, "mountRoot", "not a clean absolute path"),
        ("mountRoot: /a//b", 3, "mountRoot", "not a clean absolute path"),
        ("mountRoot: /a/../b", 3, "mountRoot", "not a clean absolute path"),
        ("mountRoot: /a/./b", 3, "mountRoot", "not a clean absolute path"),
        ("mountRoot: /", 3, "mountRoot", "not a clean absolute path"),
        ("mountRoot: ''", 3, "mountRoot", "is empty"),
        ('mountRoot: "/a\\nb"', 3, "mountRoot", "control characters"),
        (f"mountRoot: /{'x' * 256}", 3, "mountRoot", "too long"),
        ("provisioner: a/b/c", 3, "provisioner", "'a/b/c' is not a provisioner's name"),
        ("adoptFrom:\n- a/b\n- c d", 5, "adoptFrom[1]", "'c d' is not a provisioner's name"),
        ("adoptFrom:\n- a/b\n- a/b", 5, "adoptFrom[1]", "listed twice"),
        ("adoptFrom: a/b", 3, "adoptFrom", "is not a list"),
        ("adoptFrom: [nfs-provisioner.io/nfs]", 3, "adoptFrom", "this provisioner itself"),
        ("fenceCommands: {web: reboot}", 3, "fenceCommands.web", "is not a command"),
        ("fenceCommands: {web: []}", 3, "fenceCommands.web", "is not a command"),
        ("fenceCommands: {web: [a, 3]}", 3, "fenceCommands.web", "3 is not a text"),
        ("fenceCommands: {web: [a, '']}", 3, "fenceCommands.web", "is empty"),
        ("fenceCommands: {Web_1: [a]}", 3, "fenceCommands.Web_1", "not an object's name"),
    ],
)
def test_a_bad_value_is_refused_with_file_line_and_key(lines: str, line: int, key: str, says: str) -> None:
    message = problem(HEAD + lines + "\n")
    assert message.startswith(f"c.yaml:{line}: {key}: ")
    assert says in message


def test_all_problems_are_told_at_once_in_the_order_of_the_file() -> None:
    found = problems(HEAD + "wrkers: 8\nlog: {level: x}\nleaderElection: {leaseDuration: 15}\nmountRoot: x\n")
    assert [message.split(":")[1] for message in found] == ["3", "4", "5", "6"]


def test_the_times_of_a_lease_are_compared_only_when_all_of_them_could_be_read() -> None:
    assert "renewDeadlin:" in problem(HEAD + "leaderElection: {leaseDuration: 5s, renewDeadlin: 3s, retryPeriod: 1s}\n")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "c.yaml: holds 0 YAML documents"),
        ("# nothing\n", "c.yaml: holds 0 YAML documents"),
        (f"{HEAD}---\n{HEAD}", "c.yaml:4: holds 2 YAML documents"),
        ("kind: ProvisionerConfig", "c.yaml:1: apiVersion is missing; write apiVersion: nfs-provisioner.io/v1alpha1"),
        ("apiVersion: nfs-provisioner.io/v1alpha1", "c.yaml:1: kind is missing; write kind: ProvisionerConfig"),
        (HEAD.replace("v1alpha1", "v2"), "c.yaml:1: apiVersion: 'nfs-provisioner.io/v2' is not"),
        (HEAD.replace("ProvisionerConfig", "NFSExport"), "c.yaml:2: kind: 'NFSExport' is not"),
        ("- a", "c.yaml:1: ['a'] is not a mapping"),
        ("just text", "c.yaml:1: 'just text' is not a mapping"),
        (f"{HEAD}http: [\n", "c.yaml:4: not valid YAML"),
        (f"{HEAD}a: b: c", "c.yaml:3: not valid YAML: mapping values are not allowed here"),
        (f"{HEAD}\thttp: 1", "c.yaml:3: not valid YAML"),
        (f"{HEAD}a: *b", "c.yaml:3: not valid YAML: found undefined alias"),
        (f"{HEAD}a: \x07", "c.yaml:3: not valid YAML: character U+0007"),
        (f"{HEAD}workers: 8\nworkers: 9", "c.yaml:4: key workers is given twice, first on line 3"),
        (f"{HEAD}1: 2", "c.yaml:3: a key is not a text"),
        (f"{HEAD}on: 2", "c.yaml:3: a key is not a text"),
        (f"{HEAD}? [a]\n: 2", "c.yaml:3: a key is not a text"),
        (f"{HEAD}x: &x {{}}\n<<: *x", "c.yaml:4: the merge key << is not supported"),
        (f"{HEAD}workers: &a [*a]", "c.yaml:3: an alias refers to what it is part of"),
        (f"{HEAD}workers: !!python/object:os.system x", "c.yaml:3: the YAML tag"),
        (f"{HEAD}workers: !!int x", "c.yaml:3: 'x' is not what the YAML tag int stands for"),
        (f"{HEAD}workers: !!bool x", "c.yaml:3: 'x' is not what the YAML tag bool stands for"),
        (f"{HEAD}workers: {'9' * 5000}", "c.yaml:3: "),
        (f"{HEAD}workers: {'[' * 5000}", "c.yaml: nested too deeply"),
    ],
)
def test_a_text_that_is_no_configuration_at_all(text: str, says: str) -> None:
    message = problem(text)
    assert message.startswith(says)
    assert len(message) < 400


def test_aliases_may_be_used_and_may_not_explode() -> None:
    shared = HEAD + "fenceCommands:\n  web: &off [power, 'off']\n  db: *off\n"
    assert parse_controller_config(shared, "c.yaml").fence_commands == {"web": ("power", "off"), "db": ("power", "off")}
    levels = "abcdefghij"
    bomb = "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in itertools.pairwise(levels))
    assert "grow without bound" in problem(f"{HEAD}a: &a [x]\n{bomb}")


def test_a_date_stays_the_text_that_it_is() -> None:
    assert "'2026-01-02' is not a duration" in problem(HEAD + "leaderElection: {retryPeriod: 2026-01-02}")


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("\ufeff" + HEAD, encoding="utf-8")
    assert load_controller_config(file) == ControllerConfig()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"none\.yaml: cannot be read: No such file"):
        load_controller_config(tmp_path / "none.yaml")
    with pytest.raises(InvalidInput, match="cannot be read: Is a directory"):
        load_controller_config(tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(HEAD.encode() + b"# caf\xe9\n")
    with pytest.raises(InvalidInput, match=r"latin\.yaml:3: is not UTF-8 text"):
        load_controller_config(latin)
    with pytest.raises(InvalidInput, match="/dev/zero: is larger than 4 MiB"):
        load_controller_config("/dev/zero")


def test_a_file_is_named_in_its_errors(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(HEAD + "workers: 99\n")
    with pytest.raises(InvalidInput) as caught:
        load_controller_config(str(file))
    assert caught.value.message == f"{file}:3: workers: 99 is not a whole number from 1 to 64"


def test_a_list_that_is_none_hides_no_other_problem() -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_controller_config(HEAD + "adoptFrom: x\nworkers: 0\nworkres: 1\n", "c.yaml")
    assert [line.split(": ")[1] for line in caught.value.message.splitlines()] == ["adoptFrom", "workers", "workres"]
