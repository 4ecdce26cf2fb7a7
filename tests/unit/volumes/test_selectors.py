"""Label selectors, against the meaning that Kubernetes gives them."""

from __future__ import annotations

from typing import Any

import pytest

from nfs_provisioner.volumes.selectors import matches

LABELS = {"tier": "fast", "site": "north"}


def expression(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}


CASES: list[tuple[dict[str, Any] | None, bool]] = [
    (None, True),
    ({}, True),
    ({"matchLabels": {"tier": "fast"}}, True),
    ({"matchLabels": {"tier": "fast", "site": "south"}}, False),
    ({"matchLabels": {"rack": "1"}}, False),
    (expression("tier", "In", "slow", "fast"), True),
    (expression("tier", "In", "slow"), False),
    (expression("rack", "In", "1"), False),
    (expression("tier", "NotIn", "slow"), True),
    (expression("tier", "NotIn", "fast"), False),
    (expression("rack", "NotIn", "1"), True),
    (expression("tier", "Exists"), True),
    (expression("rack", "Exists"), False),
    (expression("rack", "DoesNotExist"), True),
    (expression("tier", "DoesNotExist"), False),
    (expression("tier", "Resembles", "fast"), False),
    ({"matchLabels": {"tier": "fast"}, **expression("rack", "Exists")}, False),
]


@pytest.mark.parametrize(("selector", "wanted"), CASES, ids=[str(selector) for selector, _ in CASES])
def test_a_selector_matches_as_kubernetes_says(selector: dict[str, Any] | None, wanted: bool) -> None:
    assert matches(selector, LABELS) is wanted
