"""Offline checks of files: what `check-config FILE...` reports.

Responsible for finding the documents of ours in YAML files and parsing them as the controller would. Must not contact
a cluster. Invariant: every document is checked or named as passed over; nothing is skipped in silence, and no part of
a file with problems is called good.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from nfs_provisioner.config.controller import CONFIG_KIND, ControllerConfig, read_controller_config
from nfs_provisioner.config.documents import Document, read_documents, read_text
from nfs_provisioner.config.export import EXPORT_KIND, read_export
from nfs_provisioner.config.fields import Place
from nfs_provisioner.config.storageclass import CLASS_KIND, read_class
from nfs_provisioner.config.text import did_you_mean
from nfs_provisioner.errors import InvalidInput

_OUR_KINDS = (CONFIG_KIND, EXPORT_KIND)
_of_ours = re.compile(rf"^(apiVersion: *nfs-provisioner\.io/|kind: *{CONFIG_KIND}\b)", re.MULTILINE)


@dataclass(slots=True)
class CheckReport:
    """One line for each problem, each good document of a file without any, and each that was passed over (and why)."""

    problems: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)


def check_file(path: str | Path) -> list[str]:
    """The problems in one file; empty when there are none."""
    return check_files([path]).problems


def check_files(paths: Iterable[str | Path]) -> CheckReport:
    """The problems in several files that belong together.

    A ProvisionerConfig among them says which StorageClasses are ours and below which mount root the replicas lie.
    """
    reports: dict[str, CheckReport] = {}
    documents: list[Document] = []
    for path in paths:
        report = reports[str(path)] = CheckReport()
        try:
            found = list(read_documents(read_text(path), str(path)))
            if not found:
                report.passed_over.append(f"{path}: holds no document")
            for document in found:
                documents.extend(_in_config_map(document) or [document])
        except InvalidInput as error:
            report.problems.append(error.message)
    config = _check_configs(documents, reports)
    for document in documents:
        if document.scalar("kind") != CONFIG_KIND:
            _check_document(document, config, reports[document.source])
    return CheckReport(
        problems=[line for report in reports.values() for line in report.problems],
        checked=[line for report in reports.values() if not report.problems for line in report.checked],
        passed_over=[line for report in reports.values() for line in report.passed_over],
    )


def _in_config_map(document: Document) -> list[Document]:
    """The configuration that a ConfigMap carries: an installed controller has no other file."""
    if document.scalar("kind") != "ConfigMap":
        return []
    texts = [text for text in document.texts("data") if _of_ours.search(text)]
    return [found for text in texts for found in read_documents(text, document.source)]


def _check_configs(documents: list[Document], reports: dict[str, CheckReport]) -> ControllerConfig:
    config = ControllerConfig()
    for document in documents:
        if document.scalar("kind") == CONFIG_KIND:
            report = reports[document.source]
            try:
                value, lines = document.build()
                config = read_controller_config(value, Place(document.source, lines))
            except InvalidInput as error:
                report.problems.extend(error.message.splitlines())
            report.checked.append(f"{document.source}:{document.line}: {CONFIG_KIND}")
    return config


def _check_document(document: Document, config: ControllerConfig, report: CheckReport) -> None:
    kind = document.scalar("kind")
    where = f"{document.source}:{document.line}"
    if kind is None:
        report.problems.append(f"{where}: kind is missing; write kind: {' or '.join((*_OUR_KINDS, CLASS_KIND))}")
        return
    if kind == CLASS_KIND and (document.scalar("provisioner") or config.provisioner) != config.provisioner:
        reason = f"its provisioner is {document.scalar('provisioner')}, not {config.provisioner}"
        report.passed_over.append(f"{where}: {kind}: {reason}")
        return
    if kind not in (EXPORT_KIND, CLASS_KIND):
        _pass_over(document, kind, where, report)
        return
    try:
        value, lines = document.build()
        place = Place(document.source, lines)
        if kind == EXPORT_KIND:
            read_export(value, place, mount_root=config.mount_root)
        else:
            read_class(value, place)
    except InvalidInput as error:
        report.problems.extend(error.message.splitlines())
    report.checked.append(f"{where}: {kind}")


def _pass_over(document: Document, kind: str, where: str, report: CheckReport) -> None:
    group = (document.scalar("apiVersion") or "").partition("/")[0]
    if group == "nfs-provisioner.io":
        report.problems.append(f"{where}: unknown kind {kind}{did_you_mean(kind, _OUR_KINDS)}")
    else:
        report.passed_over.append(f"{where}: {kind}: not a kind that is checked here")
