"""The losses of 50 steps of the demo's recipe: they change on purpose or by mistake.

After a change on purpose, ``WRITE_GOLDEN=1 pytest tests/unit/training/test_golden_losses.py`` writes them
anew; say in the commit why they changed.
"""

import json
import os
from pathlib import Path

import pytest

from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.training.classifier import train_classifier
from ray_wsss.training.local_session import LocalSession

GOLDEN = Path(__file__).with_name("golden_losses.json")
STEPS, WARMUP = 50, 49
# From a network that has learned little, CPM enlarges rounding errors tenfold a step (it divides by maxima
# that are near 0): in its first step processors still agree.
CHANGES = {
    "classifier.max_iters": STEPS,
    "classifier.batch_size": 8,
    "classifier.log_every": 1,
    "classifier.lr_warmup_iters": 0,
    # AdamW's first steps divide rounding errors by themselves.
    "classifier.optimiser": "sgd",
    "classifier.lr": 5e-3,
    "classifier.augment.long_side_px": (56, 72),
    "classifier.augment.crop_px": 64,
    "cpm.warmup_iters": WARMUP,
    "cpm.min_distance_px": 4,
    "cpm.reuse_pass": False,
}
# Processors sum in different orders.
TOLERANCE = 2e-3


@pytest.fixture(scope="module")
def losses(scene_dataset, make_views, tmp_path_factory) -> list[dict[str, float]]:
    out = tmp_path_factory.mktemp("golden")
    recipe = override(PRESETS["demo"], CHANGES)
    train_classifier(recipe, scene_dataset, LocalSession(out), segments=make_views("fp16")["segments"])
    checkpoint = LocalSession(out).latest_checkpoint()
    assert checkpoint is not None
    history = json.loads((checkpoint / "progress.json").read_text())["history"]
    return [{k: v for k, v in entry.items() if k.startswith("loss_")} for entry in history]


def test_losses_are_as_they_were(losses):
    if os.environ.get("WRITE_GOLDEN"):
        rounded = [{name: round(value, 6) for name, value in entry.items()} for entry in losses]
        GOLDEN.write_text(json.dumps(rounded, indent=0) + "\n")
        pytest.fail(f"{GOLDEN} is written anew")
    golden = json.loads(GOLDEN.read_text())
    assert len(losses) == len(golden) == STEPS
    for step, (entry, expected) in enumerate(zip(losses, golden)):
        assert entry == pytest.approx(expected, abs=TOLERANCE), step


def test_the_golden_run_has_all_parts():
    golden = json.loads(GOLDEN.read_text())
    assert [set(entry) for entry in golden] == [
        {"loss_cls", "loss_ssc"} | ({"loss_cpm"} if step >= WARMUP else set()) for step in range(STEPS)
    ]
    first, last = (sum(entry["loss_cls"] for entry in part) for part in (golden[:10], golden[-10:]))
    assert last < first  # of ten steps, since batches differ by more than a step learns
