"""A small sweep: weak trials are stopped, their CPUs come back, failures are recorded, results are usable."""

import json
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ray_wsss.cli import main
from ray_wsss.cluster.tune import run
from ray_wsss.cluster.workers import PROGRESS_LOG
from ray_wsss.config.settings_file import load_recipe
from ray_wsss.sweeps.trials import load_trial, load_trials

# Trial 2's first step throws the weights so far that no loss is a number any more.
SPACE = """
from ray import tune
SPACE = {
    "classifier.lr": tune.grid_search([1e-3, 2e-3, 1e30]),
    "classifier.optimiser": "sgd",
    "classifier.max_iters": 6,
    "classifier.validate_every": 2,
    "classifier.checkpoint_every": 2,
    "classifier.log_every": 2,
    "classifier.batch_size": 8,
    "classifier.lr_warmup_iters": 0,
    "cpm.warmup_iters": 1,
    "classifier.validate_images": 4,
}
METRIC, MODE, PRESET, GRACE = "val_miou", "max", "demo", 0.3
"""


@pytest.fixture(scope="module")
def command(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("swept")
    (folder / "space.py").write_text(SPACE)
    data = ["--dataset", str(dataset), "--validation", str(dataset), "--out", str(folder / "sweep")]
    return ["sweep", "--space", str(folder / "space.py"), *data]


def out_of(command: list[str]) -> Path:
    return Path(command[-1])


def free_cpus() -> float:
    import ray

    return ray.available_resources().get("CPU", 0)


@pytest.mark.usefixtures("ray_cluster")
def test_a_sweep(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted after trial 0 has ended very well, it goes on with two trials; ASHA remembers trial 0."""
    out = out_of(command)

    def interrupted(*_: object, **__: object) -> None:
        first = load_trial(out, 0)
        first.status = "finished"
        first.add({"iteration": float(k), "val_miou": 0.99} for k in (2, 4, 6))
        first.save(out)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "_tune", interrupted)
        assert main(command) == 130
    kept = (out / "trials" / "trial_0000" / "trial.json").read_bytes()
    assert [trial.status for trial in load_trials(out)] == ["finished", "waiting", "waiting"]
    capsys.readouterr()

    assert main(command) == 0
    ended = time.monotonic()
    while free_cpus() < 4:
        assert time.monotonic() < ended + 30, f"{free_cpus()} of 4 CPUs are free"
        time.sleep(0.5)

    printed = capsys.readouterr().out
    assert "3 trials, 1 of them done already; a trial takes 1 worker of 1 CPU, 0 GPUs" in printed
    assert "trial 1  2/6  val_miou" in printed
    assert "trial 1  stopped after" in printed
    assert "trial 2  failed: FloatingPointError" in printed
    assert "99.0 │ finished" in printed
    assert "stopped at 2 of 6" in printed
    second, third = load_trials(out)[1:]
    assert (out / "trials" / "trial_0000" / "trial.json").read_bytes() == kept
    assert (second.status, second.iteration) == ("stopped", 2)
    assert second.seconds > 1
    assert third.status == "failed"
    assert third.error is not None
    assert "not finite" in third.error or " nan" in third.error or " inf" in third.error
    rows = pq.read_table(out / "results.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["finished", "stopped", "failed"]
    assert [row["error"] for row in rows] == [None, None, third.error]
    best = load_recipe(out / "best.toml")
    assert (best.classifier.lr, best.classifier.optimiser, best.cpm.warmup_iters) == (1e-3, "sgd", 1)
    assert (out / "trials.png").exists()
    assert list((out / "trials" / "trial_0001" / "tensorboard").glob("events*"))
    assert json.loads((out / "manifest.json").read_text())["state"] == "finished"


@pytest.mark.usefixtures("ray_cluster")
def test_a_sweep_over_epochs(dataset: Path, tmp_path: Path) -> None:
    """Each trial has as many iterations as its epochs of the 24 images stand for."""
    values = ("classifier.lr", "tune.grid_search([1e-3, 2e-3, 1e30])"), ("classifier.max_iters", "6")
    space = SPACE
    for key, value in values:
        space = space.replace(f'    "{key}": {value},\n', "")
    space = space.replace("SPACE = {", 'SPACE = {\n    "classifier.epochs": tune.grid_search([0.5, 1.25]),')
    (tmp_path / "space.py").write_text(space.replace("cpm.warmup_iters", "cpm.warmup_epochs"))
    data = ["--dataset", str(dataset), "--validation", str(dataset), "--out", str(tmp_path / "sweep")]
    command = ["sweep", "--space", str(tmp_path / "space.py"), "--scheduler", "none", *data]
    assert main(command) == 0
    trials = load_trials(tmp_path / "sweep")
    assert [(trial.status, trial.max_iters, trial.iteration) for trial in trials] == [
        ("finished", 2, 2),
        ("finished", 4, 4),
    ]
    settings = json.loads((tmp_path / "sweep" / "manifest.json").read_text())["depends_on"]
    assert settings["space.classifier.epochs"] == [0.5, 1.25]
    assert (settings["cpm.warmup_epochs"], settings["cpm.warmup_iters"]) == (1, 3)
    assert not {"classifier.epochs", "classifier.max_iters"} & settings.keys()
    assert load_recipe(tmp_path / "sweep" / "best.toml").classifier.epochs in (0.5, 1.25)
    told = (tmp_path / "sweep" / "trials" / "trial_0000" / PROGRESS_LOG).read_text()
    assert "cpm.warmup_iters is 3, and CPM never starts" in told
    assert "classifier: 2 iterations of 8 images, 0.7 epochs of 24 images" in told


def test_iterations_and_epochs_can_not_both_decide(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    varied = SPACE.replace('"cpm.warmup_iters": 1', '"cpm.warmup_iters": tune.choice([1, 2])')
    (tmp_path / "space.py").write_text(varied)
    space = ["--space", str(tmp_path / "space.py")]
    assert main([*command[:-1], str(tmp_path / "out"), *space, "--cpm.warmup-epochs", "1"]) == 1
    told = capsys.readouterr().err
    assert "cpm.warmup_iters is varied, but cpm.warmup_epochs decides it; expected one of them" in told


def test_the_same_command_again_is_the_table_at_once(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (out_of(command) / "results.parquet").read_bytes()
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "is already finished" in printed
    assert "99.0 │ finished" in printed
    assert (out_of(command) / "results.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--cpm.tau", "0.4"], ["holds a run with another cpm.tau (0.5, now 0.4)", "--overwrite"]),
        (["--scheduler", "none"], ["holds a run with another scheduler (asha, now none)"]),
        (["--classifier.validate-every", "6"], ["classifier.validate_every is 6", "at most half"]),
        (["--workers-per-trial", "0"], ["workers_per_trial is 0; expected at least 1"]),
        (["--workers-per-trial", "3"], ["classifier.batch_size is 8", "multiple of 3 (3 workers)"]),
        (["--num-samples", "0"], ["num_samples is 0; expected at least 1"]),
        (["--search", "optuna"], ["classifier.lr is a grid"]),
        (["--cpm.view", "image"], ["cpm.view is image, which needs --embeddings"]),
        (["--config", "nowhere.toml"], ["--config nowhere.toml can't be read"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_what_is_refused(
    command: list[str], flags: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *flags]) == 1
    told = capsys.readouterr().err
    assert told.startswith("ray-wsss: ")
    assert told.count("\n") == 1
    assert not [word for word in words if word not in told], told


def test_another_space_in_the_same_folder(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "space.py").write_text(SPACE.replace("2e-3, ", ""))
    assert main([*command, "--space", str(tmp_path / "space.py")]) == 1
    assert "holds a run with another space.classifier.lr ([0.001, 0.002, 1e+30]" in capsys.readouterr().err
    (tmp_path / "space.py").write_text(SPACE.replace('classifier.lr"', 'classifier.lrr"'))
    assert main([*command, "--space", str(tmp_path / "space.py")]) == 1
    assert "unknown key classifier.lrr: did you mean classifier.lr?" in capsys.readouterr().err


@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_that_never_fits_is_refused(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*command[:-1], str(tmp_path / "out"), "--cpus-per-worker", "3", "--workers-per-trial", "2"]
    assert main(command) == 1
    told = capsys.readouterr().err
    assert (
        "a trial takes 2 workers of 3 CPUs, 0 GPUs and 1 GiB of memory; the cluster has 4 CPUs, 0 GPUs"
        in told
    )
    assert "room for 1 such worker; expected room for 2" in told
