"""Tallies: counts and seconds that add up, whichever way they travel."""

import json
import time
from dataclasses import asdict

import pytest

from ray_wsss.runs.tally import Tally


def test_tallies_add_up():
    total, one = Tally(), Tally(images=2, prompts=9, masks=4, errors=1, seconds={"encode": 1.5})
    for _ in range(2):
        total.add(one)
    total.add(Tally(masks=1, unknown=2, seconds={"write": 0.5}))
    assert total.unknown == 2
    total.unknown = 0
    assert total == Tally(images=4, prompts=18, masks=9, errors=2, seconds={"encode": 3.0, "write": 0.5})
    assert one.seconds == {"encode": 1.5}
    assert Tally() == Tally(seconds={})


def test_a_phase_counts_the_seconds_of_its_blocks():
    tally = Tally(seconds={"write": 1.0})
    for _ in range(2):
        with tally.phase("encode"), tally.phase("write"):
            time.sleep(0.01)
    assert 0.02 <= tally.seconds["write"] - 1.0 <= tally.seconds["encode"]


def test_tallies_travel_as_json():
    tally = Tally(images=2, prompts=9, masks=4, errors=1, seconds={"encode": 1.5})
    assert Tally(**json.loads(json.dumps(asdict(tally)))) == tally


def test_tallies_share_no_seconds():
    first, second = Tally(), Tally()
    first.add(Tally(seconds={"write": 1.0}))
    second.add(first)
    second.seconds["write"] += 1.0
    assert (first.seconds, Tally().seconds) == ({"write": 1.0}, {})


def test_a_phase_passes_errors_on():
    with pytest.raises(ValueError, match="why"), Tally().phase("write"):
        raise ValueError("why")
