"""Names in PromQL: which metrics an expression asks for, and by which labels. Knows as much grammar as that needs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

#: What Prometheus gives every series of a target that a PodMonitor found.
TARGET_LABELS = frozenset({"job", "namespace", "pod", "container", "endpoint", "instance"})
_WORDS = frozenset(
    {"sum", "max", "min", "count", "topk", "rate", "increase", "deriv", "predict_linear", "histogram_quantile"}
    | {"last_over_time"}
    | {"clamp_min", "absent", "vector", "time", "by", "on", "and", "or", "unless", "offset"}
)
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_SELECTOR = re.compile(r"\b([a-z_:][\w:]*)\s*\{([^}]*)\}")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_GROUPING = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_DURATION = re.compile(r"\[[^\]]*\]|\b\d+[smhdwy]\b")
_NAME = re.compile(r"[A-Za-z_:][\w:]*")
_SUFFIX = re.compile(r"_(?:bucket|sum|count)$")


@dataclass(frozen=True, slots=True)
class Names:
    """`matched`: metric and label of every matcher; `grouped`: labels of every `by` and `on`."""

    metrics: frozenset[str]
    matched: frozenset[tuple[str, str]]
    grouped: frozenset[str]


def names(expression: str) -> Names:
    """All names of an expression. ValueError for a word that is neither a metric nor known here."""
    plain = _STRING.sub('""', expression)
    matched = frozenset(
        (metric, label) for metric, matchers in _SELECTOR.findall(plain) for label in _MATCHER.findall(matchers)
    )
    grouped = frozenset(label.strip() for labels in _GROUPING.findall(plain) for label in labels.split(",") if label)
    rest = _DURATION.sub(" ", _GROUPING.sub(" ", re.sub(r"\{[^}]*\}", " ", plain)))
    words = set(_NAME.findall(rest)) - _WORDS
    if strange := {word for word in words if "_" not in word}:
        raise ValueError(f"{expression!r}: {', '.join(sorted(strange))} is neither a metric nor a word known here")
    return Names(frozenset(words), matched, grouped)


def legend_labels(legend: str) -> frozenset[str]:
    """The labels that `{{label}}` in a legend names."""
    return frozenset(re.findall(r"\{\{\s*(\w+)\s*\}\}", legend))


def unknown(expression: str, exposed: dict[str, frozenset[str]]) -> Iterator[str]:
    """What is wrong with an expression, where `exposed` has the labels of every metric that there is."""
    found = names(expression)
    for metric in sorted(found.metrics - exposed.keys()):
        yield f"there is no metric {metric}"
    for metric, label in sorted(found.matched):
        if label not in exposed.get(metric, frozenset()) | TARGET_LABELS:
            yield f"{metric} has no label {label}"
    for metric in sorted(found.metrics & exposed.keys()):
        for label in sorted(found.grouped - exposed[metric] - TARGET_LABELS):
            yield f"{metric} has no label {label} to group by"
