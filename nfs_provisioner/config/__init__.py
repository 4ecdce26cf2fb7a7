"""Configuration: the controller's file, NFSExport and StorageClass objects, as frozen dataclasses.

Responsible for parsing once, with errors that name file, line, key, value and what would be right. Must not do I/O
other than reading the file it is given, nor look at a cluster or an export. Invariant: whoever holds one of these
dataclasses need not validate again.
"""

from __future__ import annotations

from nfs_provisioner.config.check import CheckReport, check_file, check_files
from nfs_provisioner.config.controller import (
    DEFAULT_MOUNT_ROOT,
    DEFAULT_PROVISIONER,
    ControllerConfig,
    HttpConfig,
    LeaderElectionConfig,
    LogConfig,
    load_controller_config,
    parse_controller_config,
)
from nfs_provisioner.config.export import (
    ExportSpec,
    ReplicaSpec,
    ReplicationSpec,
    Reserve,
    ServiceRef,
    parse_export,
)
from nfs_provisioner.config.fields import API_VERSION
from nfs_provisioner.config.pathpattern import DEFAULT_PATH_PATTERN, PathPattern, Variable, parse_pattern
from nfs_provisioner.config.storageclass import (
    ClassParameters,
    OnDelete,
    Quota,
    StorageClassSpec,
    parse_class,
    parse_parameters,
)
from nfs_provisioner.config.units import (
    capped_quantity,
    format_quantity,
    parse_duration,
    parse_percent,
    parse_quantity,
    rough_size,
)

__all__ = [
    "API_VERSION",
    "DEFAULT_MOUNT_ROOT",
    "DEFAULT_PATH_PATTERN",
    "DEFAULT_PROVISIONER",
    "CheckReport",
    "ClassParameters",
    "ControllerConfig",
    "ExportSpec",
    "HttpConfig",
    "LeaderElectionConfig",
    "LogConfig",
    "OnDelete",
    "PathPattern",
    "Quota",
    "ReplicaSpec",
    "ReplicationSpec",
    "Reserve",
    "ServiceRef",
    "StorageClassSpec",
    "Variable",
    "capped_quantity",
    "check_file",
    "check_files",
    "format_quantity",
    "load_controller_config",
    "parse_class",
    "parse_controller_config",
    "parse_duration",
    "parse_export",
    "parse_parameters",
    "parse_pattern",
    "parse_percent",
    "parse_quantity",
    "rough_size",
]
