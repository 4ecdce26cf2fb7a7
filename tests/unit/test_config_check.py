"""check-config: files with several documents, ours and others'."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from nfs_provisioner.config import check_file, check_files

CONFIG = """\
apiVersion: nfs-provisioner.io/v1alpha1
kind: ProvisionerConfig
provisioner: example.com/files
mountRoot: /mnt
"""
EXPORT = """\
apiVersion: nfs-provisioner.io/v1alpha1
kind: NFSExport
metadata: {name: web}
spec:
  replicas:
  - {name: a, server: nfs-1, path: /srv, mountPath: ROOT/web/a}
"""
CLASS = """\
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: files}
provisioner: PROVISIONER
parameters:
  onDelete: retain
"""
OURS = CLASS.replace("PROVISIONER", "nfs-provisioner.io/nfs")
WEB = EXPORT.replace("ROOT", "/exports")


def write(path: Path, *documents: str) -> Path:
    path.write_text("---\n".join(documents))
    return path


def test_files_without_problems(tmp_path: Path) -> None:
    report = check_files([write(tmp_path / "a.yaml", WEB, OURS), write(tmp_path / "b.yaml", "", "# nothing\n")])
    assert (report.problems, report.passed_over) == ([], [f"{tmp_path}/b.yaml: holds no document"])
    assert report.checked == [f"{tmp_path}/a.yaml:1: NFSExport", f"{tmp_path}/a.yaml:8: StorageClass"]
    assert check_file(tmp_path / "a.yaml") == []


def test_the_configuration_among_the_files_says_what_is_ours_and_where_mounts_lie(tmp_path: Path) -> None:
    objects = write(
        tmp_path / "1.yaml", EXPORT.replace("ROOT", "/mnt"), CLASS.replace("PROVISIONER", "example.com/files"), OURS
    )
    config = write(tmp_path / "2.yaml", CONFIG)
    report = check_files([objects, config])
    assert report.problems == []
    assert len(report.checked) == 3
    assert report.passed_over == [
        f"{objects}:15: StorageClass: its provisioner is nfs-provisioner.io/nfs, not example.com/files"
    ]
    (problem,) = check_files([objects]).problems
    assert problem.startswith(
        f"{objects}:6: spec.replicas[0].mountPath: '/mnt/web/a' is not below mountRoot (/exports)"
    )


def test_every_problem_of_every_document_is_told_with_its_line(tmp_path: Path) -> None:
    file = write(
        tmp_path / "x.yaml",
        CONFIG.replace("mountRoot: /mnt", "mountroot: /mnt\nworkers: 99"),
        WEB.replace("server: nfs-1", "server: 'nfs 1'"),
        CLASS.replace("PROVISIONER", "nfs-provisioner.io/nfs").replace("retain", "retian")
        + "  uid: 0\nreclaim: Delete\n",
    )
    assert [problem.split(": ")[:2] for problem in check_file(file)] == [
        [f"{file}:4", "mountroot"],
        [f"{file}:5", "workers"],
        [f"{file}:12", "spec.replicas[0].server"],
        [f"{file}:19", "parameters.onDelete"],
        [f"{file}:20", "parameters.uid"],
        [f"{file}:21", "reclaim"],
    ]


def test_other_kinds_are_passed_over_and_named(tmp_path: Path) -> None:
    # What YAML is read with here would refuse this one; kubectl does not.
    service = "apiVersion: v1\nkind: Service\nspec: {<<: {a: 1}, 1: x, 1: y}\n"
    report = check_files([write(tmp_path / "x.yaml", service, WEB)])
    assert report.problems == []
    assert report.passed_over == [f"{tmp_path}/x.yaml:1: Service: not a kind that is checked here"]
    assert len(report.checked) == 1


def test_a_mistyped_kind_is_not_passed_over(tmp_path: Path) -> None:
    file = write(tmp_path / "x.yaml", WEB.replace("NFSExport", "NfsExport"), "metadata: {name: x}\n", "- 1\n")
    found = check_file(file)
    assert found[0] == f"{file}:1: unknown kind NfsExport; did you mean NFSExport?"
    assert found[1].startswith(f"{file}:8: kind is missing")
    assert found[2].startswith(f"{file}:10: kind is missing")


def test_a_wrong_api_version_is_told(tmp_path: Path) -> None:
    file = write(tmp_path / "x.yaml", OURS.replace("storage.k8s.io/v1", "storage.k8s.io/v1beta1"))
    (problem,) = check_file(file)
    assert problem.startswith(f"{file}:1: apiVersion: 'storage.k8s.io/v1beta1' is not what is read here")
    file = write(tmp_path / "y.yaml", WEB.replace("apiVersion: nfs-provisioner.io/v1alpha1\n", ""))
    (problem,) = check_file(file)
    assert problem.startswith(f"{file}:1: apiVersion is missing")


def test_a_class_without_provisioner_is_told(tmp_path: Path) -> None:
    file = write(tmp_path / "x.yaml", CLASS.replace("provisioner: PROVISIONER\n", ""))
    (problem,) = check_file(file)
    assert "provisioner is missing" in problem


def test_files_that_cannot_be_read_do_not_hide_the_others(tmp_path: Path) -> None:
    broken = write(tmp_path / "broken.yaml", WEB, "a: [\n")
    bad = write(tmp_path / "bad.yaml", WEB.replace("/srv", "srv"))
    report = check_files([tmp_path / "none.yaml", broken, bad])
    assert [problem.split(": ")[0] for problem in report.problems] == [
        f"{tmp_path}/none.yaml",
        f"{broken}:9",
        f"{bad}:6",
    ]


def test_a_file_with_problems_is_not_called_good(tmp_path: Path) -> None:
    """Not even the documents before the problem: what is read first would be believed."""
    half = write(tmp_path / "half.yaml", CONFIG.replace("mountRoot: /mnt", "workers: 2"), WEB.replace("/srv", "srv"))
    config = write(tmp_path / "config.yaml", WEB, CONFIG.replace("mountRoot: /mnt", "worker: 2"))
    good = write(tmp_path / "good.yaml", WEB)
    report = check_files([half, config, good])
    assert [problem.split(": ")[0] for problem in report.problems] == [f"{half}:11", f"{config}:11"]
    assert report.checked == [f"{good}:1: NFSExport"]


def test_lines_are_those_of_the_item_in_a_block(tmp_path: Path) -> None:
    text = dedent("""\
        # a comment

        apiVersion: nfs-provisioner.io/v1alpha1
        kind: NFSExport
        metadata:
          name: web
        spec:
          replicas:
          - name: a
            server: nfs-1
            path: /srv
            mountPath: /exports/web/a
          - name: b
            server: nfs-2
            path: srv
    """)
    file = write(tmp_path / "x.yaml", text)
    assert [problem.partition(": ")[0] for problem in check_file(file)] == [f"{file}:15"]
    file.write_text(text.replace("path: srv", "path: /srv"))
    (problem,) = check_file(file)
    assert (
        problem
        == f"{file}:13: spec.replicas[1]: mountPath is missing; write where the controller reaches the directory"
    )


CONFIG_MAP = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: nfs-provisioner}
data:
  script: |
    kind: of: thing
  config.yaml: |
    apiVersion: nfs-provisioner.io/v1alpha1
    kind: ProvisionerConfig
    # a comment
    workers: 8
    mountRoot: /other
"""


def test_the_configuration_is_found_in_the_configmap_that_carries_it(tmp_path: Path) -> None:
    """That is where an installed controller has it; a file of its own exists in the pod only."""
    file = tmp_path / "configmap.yaml"
    file.write_text(CONFIG_MAP)
    report = check_files([file])
    assert report.problems == [] and report.passed_over == []
    assert report.checked == [f"{file}:8: ProvisionerConfig"]
    file.write_text(CONFIG_MAP.replace("workers", "wokers"))
    (problem,) = check_files([file]).problems
    assert problem.startswith(f"{file}:11: wokers: unknown key")
    file.write_text(CONFIG_MAP.replace("workers: 8", "workers: ]"))
    (problem,) = check_files([file]).problems
    assert problem.startswith(f"{file}:11: not valid YAML")


def test_a_configmap_of_something_else_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "other.yaml"
    file.write_text("apiVersion: v1\nkind: ConfigMap\ndata: {a: 'x: y: z', b: null, c: [1]}\n")
    report = check_files([file])
    assert report.problems == [] and len(report.passed_over) == 1


@pytest.mark.parametrize("content", ["", "---\n", "# nothing\n"])
def test_a_file_that_holds_nothing_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text(content)
    assert check_files([file]).passed_over == [f"{file}: holds no document"]
