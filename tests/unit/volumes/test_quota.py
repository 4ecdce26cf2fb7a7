"""Soft quotas: when a volume counts as over it, and what its owner reads."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nfs_provisioner.export.records import ClaimRef, Policy, State, VolumeRecord
from nfs_provisioner.export.usage import Usage
from nfs_provisioner.volumes import quota
from tests.unit.export.world import volume

GI = 1 << 30
TABLE = [
    # used, requested, before, after
    (0, 100, False, False),
    (99, 100, False, False),
    (100, 100, False, False),  # all of it, and no more
    (101, 100, False, True),
    (101, 100, True, True),
    (100, 100, True, True),
    (95, 100, True, True),
    (94, 100, True, False),
    (96, 100, False, False),  # on the way up, this is nothing yet
    (10 * GI + 512, 10 * GI, False, True),
]


@pytest.mark.parametrize(("used", "requested", "before", "after"), TABLE)
def test_a_quota_is_exceeded_from_more_than_all_until_less_than_most(
    used: int, requested: int, before: bool, after: bool
) -> None:
    assert quota.exceeded(used, requested, before) is after


def record(requested: int = 10 * GI, **changes: object) -> VolumeRecord:
    made = replace(volume("pv", "dir"), claim=ClaimRef("shop", "data", "uid"), state=State.LIVE, requested=requested)
    return replace(made, **({"policy": Policy(quota="soft")} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "applies"),
    [
        (record(), True),
        (record(policy=Policy()), False),
        (record(state=State.ARCHIVED), False),
        (record(state=State.RETAINED), False),  # there is no claim to tell
        (record(requested=0), False),
    ],
)
def test_quotas_are_of_live_volumes_whose_class_asked_for_them(changed: VolumeRecord, applies: bool) -> None:
    assert quota.applies(changed) is applies


@pytest.mark.parametrize(
    ("used", "requested", "says"),
    [
        (12 * GI, 10 * GI, ("take 12Gi, more than the 10Gi", '"storage":"15Gi"')),
        (10 * GI + 512, 10 * GI, ("take 10737418752 bytes, more than the 10737418240 bytes", '"storage":"13Gi"')),
        (2 << 20, 1 << 20, ("take 2Mi, more than the 1Mi", '"storage":"2458Ki"')),
        (5000, 4096, ("take 4.9Ki, more than the 4Ki", '"storage":"6Ki"')),
    ],
)
def test_the_message_has_figures_for_people_and_what_to_do(used: int, requested: int, says: tuple[str, ...]) -> None:
    message = quota.message(record(requested), Usage(used, 12, 0.0))
    for part in (*says, "12 entries", "delete some", "kubectl -n shop patch pvc data"):
        assert part in message
