"""The training loop, on generated photographs at a small size."""

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ray_wsss.pretraining import train as module
from ray_wsss.pretraining.photos import Photo, split_held_out
from ray_wsss.pretraining.train import Batches, Schedule, Trainer, save_weights, train

JOBS = Path(__file__).parents[3] / "jobs"
JOB_FLAGS = {"train_lite_sam": ["--data"], "evaluate_clicks": ["--models", "tiny", "--annotations"]}
SCHEDULE = Schedule(
    steps=4,
    images_per_step=1,
    prompts_per_image=2,
    lr=1e-3,
    encoder_lr=1e-4,
    frozen_steps=1,
    small_steps=4,
    small_px=64,
    small_images_per_step=2,
)


@pytest.fixture(autouse=True)
def few_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(trainer: Trainer, photos: list[Photo], until: int) -> None:
    batches = Batches(photos, trainer.schedule, trainer.step)
    for at in range(until - trainer.step):
        trainer.train_step(batches[at])


def test_a_resumed_run_equals_one_that_went_through(photos: list[Photo], tmp_path: Path) -> None:
    through = Trainer(SCHEDULE)
    run(through, photos, 3)
    stopped = Trainer(SCHEDULE)
    run(stopped, photos, 2)
    stopped.save(tmp_path / "checkpoint.safetensors")
    resumed = Trainer(SCHEDULE)
    resumed.resume(tmp_path / "checkpoint.safetensors")
    assert resumed.step == 2
    run(resumed, photos, 3)
    for one in ("sam", "average"):
        expected = getattr(through, one).state_dict()
        for name, value in getattr(resumed, one).state_dict().items():
            torch.testing.assert_close(value, expected[name], msg=name)


def test_what_is_trained_when(photos: list[Photo]) -> None:
    trainer = Trainer(SCHEDULE)
    changed = []
    for until in (1, 2):
        before = {name: value.clone() for name, value in trainer.sam.state_dict().items()}
        run(trainer, photos, until)
        state = trainer.sam.state_dict()
        changed.append({name for name, value in state.items() if not torch.equal(value, before[name])})
    lite0 = "image_encoder.network"
    assert not any(name.startswith(lite0) for name in changed[0])
    assert {name.split(".")[3] for name in changed[1] if name.startswith(lite0)} == {"3", "4", "5", "6"}
    assert any(name.startswith("mask_decoder") for name in changed[0])


def test_the_loss_falls_on_one_batch(photos: list[Photo]) -> None:
    trainer = Trainer(replace(SCHEDULE, steps=1000, frozen_steps=1000, small_steps=1000))
    batches = Batches(photos, trainer.schedule, 0)
    batch = next(batch for batch in (batches[at] for at in range(20)) if batch.points is not None)
    losses = [trainer.train_step(batch)["single"] for _ in range(30)]
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])


def test_rate_warms_up_and_decays() -> None:
    schedule = replace(SCHEDULE, steps=1000)
    rates = [schedule.rate(step) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / module.WARM_UP, rel=0.01)
    assert max(rates) == pytest.approx(1, abs=0.05)
    assert rates[-1] == pytest.approx(0.01, abs=0.001)


def test_train_measures_and_saves(
    photos: list[Photo], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept, held_out = split_held_out(photos)
    checkpoint = tmp_path / "checkpoint.safetensors"
    with caplog.at_level("INFO"):
        sam = train(kept, held_out, SCHEDULE, checkpoint, measure_every=2)
    assert sum("held out" in message for message in caplog.messages) == 2
    save_weights(sam, tmp_path / "lite.safetensors")
    saved = load_file(tmp_path / "lite.safetensors")
    assert saved.keys() == sam.state_dict().keys()
    assert {value.dtype for value in saved.values()} == {torch.float16}
    # A finished run is not trained again.
    caplog.clear()
    with caplog.at_level("INFO"):
        train(kept, held_out, SCHEDULE, checkpoint, measure_every=2)
    assert caplog.messages == ["resumed at step 4"]


@pytest.mark.parametrize(("job", "flags"), JOB_FLAGS.items())
def test_jobs_name_what_is_missing(
    job: str, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{job}.py", *flags, str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(JOBS / f"{job}.py"), run_name="__main__")
    assert str(tmp_path / "nowhere") in str(ended.value.code)
