"""Passes whose servers hang: only the pair's own child waits for them."""

from __future__ import annotations

import pytest

from nfs_provisioner.replication.pairprocess import PairProcess
from tests.nfs.conftest import MakeHanging, give_calls_up_after
from tests.nfs.stand import Stand, directory_of, eventually
from tests.plugins.hang import CHANGES

STANDSTILL = 7.0

pytestmark = [pytest.mark.nfs, pytest.mark.usefixtures("impatient")]


def test_h33_a_pass_that_hangs_delays_no_claim_and_is_made_again(
    stand: Stand, hanging: MakeHanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only writing hangs: looks at the standby are answered, so nothing but the pass itself can notice."""
    give_calls_up_after(STANDSTILL, monkeypatch)
    assert PairProcess.__init__.__kwdefaults__ is not None
    monkeypatch.setitem(PairProcess.__init__.__kwdefaults__, "standstill", STANDSTILL)
    standby = hanging("pair", "b")
    active = stand.exports / "pair" / "a"
    active.mkdir()
    stand.export("pair", {"a": active, "b": standby.path}, replication={"interval": "1s"})
    stand.start_controller().ready("pair")
    volume = stand.bind("pair")
    place, copy = active / directory_of(volume), standby.backing / directory_of(volume)
    (place / "first").write_text("data")
    assert eventually(lambda: (copy / "first").exists(), "the first file arrives")
    standby.hang(only=CHANGES)
    (place / "second").write_text("data")
    assert eventually(lambda: all(standby.waiting() for _ in range(1000)), "a call of the pass hangs")
    stand.bound(*stand.claims("pair", 20))
    assert standby.waiting() > 0, stand.overview("pair")
    stand.says("pair", "Degraded", "stands still", "hangs or is out of reach")
    assert stand.healthy()
    assert not (copy / "second").exists()
    standby.release()
    assert eventually(lambda: (copy / "second").exists(), "the second file arrives")
    stand.ready("pair")
