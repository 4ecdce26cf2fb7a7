"""What a person asks of an export, as text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfs_provisioner.errors import InvalidInput, RefusedForSafety
from nfs_provisioner.volumes import answers
from nfs_provisioner.volumes.requests import Request, compose, parse

NAMES = st.from_regex(r"[a-zA-Z0-9._-]{1,60}", fullmatch=True)


@given(st.sampled_from(["accept", "archives purge", "confirm-deletions"]), NAMES, st.integers(0, 10**6))
def test_what_the_command_line_writes_is_understood(verb: str, name: str, epoch: int) -> None:
    text = compose(verb, name, epoch, "2026-01-01T00:00:00.000000Z")
    assert parse(text, epoch=epoch) == Request(verb, name, epoch)


@pytest.mark.parametrize(
    "name",
    ["archived-two words", "archived-it's", 'archived-"', "archived-a\\b", "archived-$(x)", "archived- two  gaps"],
)
def test_a_name_that_a_pattern_gave_spaces_or_quotes_can_be_asked_for(name: str) -> None:
    """A pathPattern may put any annotation's text into a directory's name, and so into an archive's."""
    text = compose("archives purge", name, 3, "x")
    assert parse(text, epoch=3) == Request("archives purge", name, 3)


def test_a_lone_quote_that_a_person_writes_is_part_of_the_name() -> None:
    assert parse("archives purge archived-it's epoch=3", epoch=3).name == "archived-it's"


@pytest.mark.parametrize(
    "text", ["accept --replica b epoch=3", "accept --replica=b epoch=3", "  accept   epoch=3  --replica b  at=x "]
)
def test_what_a_person_writes_with_kubectl_is_understood(text: str) -> None:
    assert parse(text, epoch=3) == Request("accept", "b", 3)


@pytest.mark.parametrize("asked", [2, 4])
def test_a_request_of_another_epoch_is_refused(asked: int) -> None:
    with pytest.raises(RefusedForSafety, match=f"epoch {asked}, the export is at 3"):
        parse(f"archives purge old epoch={asked}", epoch=3)


BAD = [
    ("", "not understood"),
    ("purge old epoch=3", "not understood"),
    ("archives delete old epoch=3", "not understood"),
    ("accept b epoch=3", "not understood"),
    ("confirm-deletions epoch=3", "confirm-deletions VOLUME epoch=N"),
    ("archives purge epoch=3", "archives purge NAME epoch=N"),
    ("archives purge one two epoch=3", "archives purge NAME epoch=N"),
    ("accept --replica epoch=3", "accept --replica NAME epoch=N"),
    ("archives purge old", "epoch is missing"),
    ("archives purge old epoch=", "epoch is missing"),
    ("archives purge old epoch=-3", "epoch is missing"),
    ("archives purge old epoch=three", "epoch is missing"),
]


@pytest.mark.parametrize(("text", "says"), BAD, ids=[text or "nothing" for text, _ in BAD])
def test_what_is_not_understood_says_what_would_be(text: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        parse(text, epoch=3)


@given(st.text(max_size=80))
def test_no_text_gets_by(text: str) -> None:
    with pytest.raises((InvalidInput, RefusedForSafety)):
        parse(text, epoch=-1)  # no epoch that can be written is this one


def test_a_request_that_was_answered_is_not_answered_again_when_it_is_put_back_after_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """GitOps does that: it would purge the next archive of that name, or confirm the next deletions."""
    asked: list[str] = []

    def answer(_export: object, text: str) -> dict[str, str]:
        asked.append(text)
        return {"request": text, "result": "Done", "message": "", "time": ""}

    monkeypatch.setattr(answers, "answer", answer)
    services = SimpleNamespace(on_event=lambda *_: None)
    of = answers.Answers(cast(Any, SimpleNamespace(name="web")), {"request": "before"}, cast(Any, services))
    for text in ("before", "one", "two", "one", "before", "one at=now", "two"):
        of.turn(text)
    assert asked == ["one", "two", "one at=now"]
