"""Following the configuration file: what was changed is noticed, whenever that was."""

from __future__ import annotations

import threading
from pathlib import Path

from nfs_provisioner.config import ControllerConfig, load_controller_config
from nfs_provisioner.process import follow_config

HEAD = "apiVersion: nfs-provisioner.io/v1alpha1\nkind: ProvisionerConfig\nprovisioner: example.com/nfs\n"


def test_a_file_that_changed_between_its_first_reading_and_the_first_look_is_noticed(tmp_path: Path) -> None:
    """A controller takes seconds to start on a busy machine, and a ConfigMap may change meanwhile."""
    file = tmp_path / "config.yaml"
    file.write_text(HEAD + "workers: 2\n")
    used = load_controller_config(file)
    file.write_text(HEAD + "workers: 3\n")
    end, seen = threading.Event(), list[ControllerConfig]()

    def changed(fresh: ControllerConfig) -> None:
        seen.append(fresh)
        end.set()

    follower = threading.Thread(
        target=follow_config,
        args=(file, end),
        kwargs={"on_read": lambda _right: None, "on_change": changed, "poll": 0.01},
        daemon=True,
    )
    follower.start()
    told = end.wait(30)
    end.set()
    follower.join(30)
    assert told and [config.workers for config in seen] == [3]
    assert used.workers == 2
