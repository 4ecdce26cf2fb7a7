"""StorageClass objects and their parameters, and the syntax of pathPattern."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from nfs_provisioner.config import (
    DEFAULT_PATH_PATTERN,
    ClassParameters,
    PathPattern,
    StorageClassSpec,
    Variable,
    parse_class,
    parse_parameters,
    parse_pattern,
)
from nfs_provisioner.errors import InvalidInput


def storage_class(parameters: Any = None, **others: Any) -> dict[str, Any]:
    base = {"metadata": {"name": "nfs"}, "provisioner": "nfs-provisioner.io/nfs"}
    return base | ({} if parameters is None else {"parameters": parameters}) | others


def problem(obj: dict[str, Any]) -> str:
    with pytest.raises(InvalidInput) as caught:
        parse_class(obj)
    return caught.value.message


def test_the_least_a_class_says() -> None:
    assert parse_class(storage_class()) == StorageClassSpec(
        name="nfs",
        provisioner="nfs-provisioner.io/nfs",
        parameters=ClassParameters(
            exports=(),
            path_pattern="${.PVC.namespace}-${.PVC.name}-${.PV.name}",
            on_delete="archive",
            archive_retention=None,
            directory_mode=0o777,
            uid=0,
            gid=0,
            quota="none",
        ),
        reclaim_policy="Delete",
        binding_mode="Immediate",
        mount_options=(),
        allow_expansion=False,
    )


def test_all_a_class_can_say() -> None:
    obj = storage_class(
        {
            "export": "web, db",
            "pathPattern": "${.PVC.namespace}/${.PVC.name}",
            "onDelete": "retain",
            "archiveRetention": "30d",
            "directoryMode": "2770",
            "uid": "1000",
            "gid": "4294967294",
            "quota": "soft",
        },
        apiVersion="storage.k8s.io/v1",
        kind="StorageClass",
        reclaimPolicy="Retain",
        volumeBindingMode="WaitForFirstConsumer",
        mountOptions=["nfsvers=4.2", "hard"],
        allowVolumeExpansion=True,
        allowedTopologies=[],
    )
    spec = parse_class(obj)
    assert spec == StorageClassSpec(
        name="nfs",
        provisioner="nfs-provisioner.io/nfs",
        parameters=ClassParameters(
            exports=("web", "db"),
            path_pattern="${.PVC.namespace}/${.PVC.name}",
            on_delete="retain",
            archive_retention=2592000.0,
            directory_mode=0o2770,
            uid=1000,
            gid=2**32 - 2,
            quota="soft",
        ),
        reclaim_policy="Retain",
        binding_mode="WaitForFirstConsumer",
        mount_options=("nfsvers=4.2", "hard"),
        allow_expansion=True,
    )
    assert pickle.loads(pickle.dumps(spec)) == spec


@pytest.mark.parametrize(
    ("parameters", "on_delete"),
    [
        ({}, "archive"),
        ({"archiveOnDelete": "true"}, "archive"),
        ({"archiveOnDelete": "false"}, "delete"),
        # What nfs-subdir-external-provisioner takes, because Go does.
        ({"archiveOnDelete": "False"}, "delete"),
        ({"archiveOnDelete": "1"}, "archive"),
        ({"onDelete": "delete"}, "delete"),
        ({"onDelete": "retain", "archiveOnDelete": "false"}, "retain"),
        ({"onDelete": "archive", "archiveOnDelete": "false"}, "archive"),
        ({"onDelete": "delete", "archiveOnDelete": "true"}, "delete"),
    ],
)
def test_what_becomes_of_a_deleted_volume(parameters: dict[str, str], on_delete: str) -> None:
    assert parse_class(storage_class(parameters)).parameters.on_delete == on_delete


@pytest.mark.parametrize("typo", ["Delete", "delet", "retian", "archive ", " delete", "remove", "true", "", "delete\n"])
def test_h10_a_typo_in_on_delete_is_refused(typo: str) -> None:
    message = problem(storage_class({"onDelete": typo, "archiveOnDelete": "false"}))
    assert message.startswith(f"StorageClass nfs: parameters.onDelete: {typo!r} is not")
    assert "write archive, delete or retain" in message


@pytest.mark.parametrize("key", ["ondelete", "onDelet", "OnDelete", "on-delete"])
def test_h10_a_typo_in_the_name_of_on_delete_is_refused(key: str) -> None:
    assert "unknown key; did you mean onDelete?" in problem(storage_class({key: "retain"}))


@pytest.mark.parametrize("value", ["yes", "maybe", "", "tRUE", "2", " true", True])
def test_h10_a_typo_in_archive_on_delete_is_refused_even_beside_on_delete(value: object) -> None:
    assert "write one of them, in quotes" in problem(storage_class({"onDelete": "retain", "archiveOnDelete": value}))


def test_h10_a_frozen_specification_does_not_change_with_its_class() -> None:
    obj = storage_class({"onDelete": "retain"}, mountOptions=["hard"])
    spec = parse_class(obj)
    obj["parameters"]["onDelete"] = "delete"
    obj["mountOptions"].append("soft")
    assert (spec.parameters.on_delete, spec.mount_options) == ("retain", ("hard",))
    with pytest.raises(AttributeError):
        spec.parameters.on_delete = "delete"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "mode"), [("0777", 0o777), ("777", 0o777), ("0700", 0o700), ("07777", 0o7777), ("1777", 0o1777)]
)
def test_modes_are_octal(text: str, mode: int) -> None:
    assert parse_parameters({"directoryMode": text}).directory_mode == mode


@pytest.mark.parametrize(
    ("parameters", "key", "says"),
    [
        ({"exports": "web"}, "exports", "did you mean export?"),
        ({"csi.storage.k8s.io/fstype": "nfs4"}, "csi.storage.k8s.io/fstype", "unknown key; known are"),
        ({"export": ""}, "export", "is empty"),
        ({"export": "web,,db"}, "export", "'' is not an object's name"),
        ({"export": "web,"}, "export", "'' is not an object's name"),
        ({"export": "web,web"}, "export", "names an export twice"),
        ({"export": "Web"}, "export", "'Web' is not an object's name"),
        ({"export": "x" * 64}, "export", "at most 63"),
        ({"archiveRetention": "30"}, "archiveRetention", "'30' is not a duration"),
        ({"archiveRetention": "0s"}, "archiveRetention", "write onDelete: delete"),
        ({"directoryMode": "0o777"}, "directoryMode", "not an octal mode"),
        ({"directoryMode": "0778"}, "directoryMode", "not an octal mode"),
        ({"directoryMode": "77"}, "directoryMode", "not an octal mode"),
        ({"directoryMode": "17777"}, "directoryMode", "not an octal mode"),
        ({"directoryMode": "u=rwx"}, "directoryMode", "not an octal mode"),
        ({"directoryMode": 511}, "directoryMode", "511 is not an octal mode; write one in quotes"),
        ({"uid": "-1"}, "uid", "not a numeric owner"),
        ({"uid": "4294967295"}, "uid", "from 0 to 4294967294"),
        ({"uid": "root"}, "uid", "not a numeric owner"),
        ({"gid": "1000.0"}, "gid", "not a numeric owner"),
        ({"gid": "١"}, "gid", "not a numeric owner"),
        ({"quota": "hard"}, "quota", "write none or soft"),
        ({"pathPattern": ""}, "pathPattern", "the pattern is empty"),
        ({"pathPattern": 5}, "pathPattern", "not a text"),
        ({"pathPattern": "${.PVC.nam}"}, "pathPattern", "unknown variable ${.PVC.nam}; did you mean .PVC.name?"),
    ],
)
def test_a_bad_parameter_is_refused(parameters: dict[str, Any], key: str, says: str) -> None:
    message = problem(storage_class(parameters))
    assert message.startswith(f"StorageClass nfs: parameters.{key}: ")
    assert says in message


@pytest.mark.parametrize(
    ("obj", "key", "says"),
    [
        (storage_class(reclaimPolicy="Recycle"), "reclaimPolicy", "'Recycle' is not"),
        (storage_class(volumeBindingMode="Later"), "volumeBindingMode", "write Immediate or WaitForFirstConsumer"),
        (storage_class(mountOptions="hard"), "mountOptions", "is not a list"),
        (storage_class(mountOptions=["a\nb"]), "mountOptions[0]", "control characters"),
        (storage_class(allowVolumeExpansion="true"), "allowVolumeExpansion", "without quotes"),
        (storage_class(parameters=["a"]), "parameters", "is not a mapping"),
        (storage_class(provisioner=""), "provisioner", "not a provisioner's name"),
        (storage_class(kind="NFSExport"), "kind", "write StorageClass"),
    ],
)
def test_a_bad_field_is_refused(obj: dict[str, Any], key: str, says: str) -> None:
    message = problem(obj)
    assert message.startswith(f"StorageClass nfs: {key}: ")
    assert says in message


def test_a_newer_api_server_may_send_fields_that_are_unknown_here() -> None:
    assert parse_class(storage_class(novelty=True)) == parse_class(storage_class())


def test_the_parameters_alone_can_be_read() -> None:
    assert parse_parameters({}) == ClassParameters()
    with pytest.raises(InvalidInput, match=r"^class fast: quota"):
        parse_parameters({"quota": "x"}, source="class fast")


def test_a_pattern_is_split_into_text_and_variables() -> None:
    text = "k8s/${.PVC.namespace}/${.PVC.labels.app.kubernetes.io/name}-${.PVC.annotations.nfs.io/path}.d/${.PV.name}"
    assert parse_pattern(text) == PathPattern(
        text,
        (
            "k8s/",
            Variable("namespace"),
            "/",
            Variable("label", "app.kubernetes.io/name"),
            "-",
            Variable("annotation", "nfs.io/path"),
            ".d/",
            Variable("pv"),
        ),
    )
    assert parse_pattern(DEFAULT_PATH_PATTERN).parts == (
        Variable("namespace"),
        "-",
        Variable("name"),
        "-",
        Variable("pv"),
    )
    assert parse_pattern("constant/directory").parts == ("constant/directory",)


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("", "the pattern is empty"),
        ("/${.PVC.name}", "starts with '/'"),
        ("/", "starts with '/'"),
        (".", "'.' or '..' component"),
        ("..", "'.' or '..' component"),
        ("${.PVC.namespace}/../${.PVC.name}", "'.' or '..' component"),
        ("${.PVC.namespace}//${.PVC.name}", "has an empty"),
        ("${.PVC.namespace}/", "'/' at its end"),
        ("./${.PVC.name}", "'.' or '..' component"),
        ("${.PVC.Name}", "did you mean .PVC.name?"),
        ("${.PVC.uid}", "unknown variable ${.PVC.uid}"),
        ("${.PVC.label.app}", "did you mean .PVC.labels.KEY?"),
        ("${.PVC.labels.}", "'' cannot be the key"),
        ("${.PVC.labels.a b}", "'a b' cannot be the key"),
        ("${.PVC.labels.a/b/c}", "'a/b/c' cannot be the key"),
        ("${.PVC.labels.../x}", "'../x' cannot be the key"),
        # As in the incumbent, a space makes it another variable; there it silently stands for nothing.
        ("${ .PVC.name }", "unknown variable ${ .PVC.name }; did you mean .PVC.name?"),
        ("${}", "unknown variable ${}"),
        ("${.PVC.name", "'$' stands outside"),
        ("$.PVC.name}", "'$' stands outside"),
        ("$(PVC.name)", "'$' stands outside"),
        ("{{.PVC.name}}", "'{' stands outside"),
        ("${${.PVC.name}}", "unknown variable"),
        ("${.PVC.name}}", "'}' stands outside"),
        ("a\nb", "control characters"),
        ("a\x00b", "control characters"),
        ("x" * 5000, "longer than 4096"),
    ],
)
def test_h02_a_pattern_that_no_claim_can_make_right_is_refused_in_the_class(pattern: str, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_pattern(pattern)
    assert says in caught.value.message
    assert len(caught.value.message) < 400


def test_h19_a_class_name_may_have_253_characters_in_one_piece() -> None:
    longest = "c" * 253
    assert parse_class(storage_class(metadata={"name": longest})).name == longest
    with pytest.raises(InvalidInput, match="at most 253"):
        parse_class(storage_class(metadata={"name": longest + "c"}))
