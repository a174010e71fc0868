"""Label and train on two spot nodes that are lost again and again, or drained: DATASET CLASSIFIER OUT.

A script of its own, since its cluster can't share a process with that of the tests. Leaves labels in OUT/here
(undisturbed), OUT/lost and OUT/drained, and classifiers in OUT/trained (undisturbed) and OUT/trained_lost.
Prints, as JSON, by folder how many nodes it lost, and how many images were labelled, or steps trained, more
than once.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import pyarrow as pa
import ray
import torch
from ray.cluster_utils import Cluster as LocalCluster

from ray_wsss.cluster.names import training_name
from ray_wsss.cluster.stages import label as label_stage
from ray_wsss.cluster.stages.label import run_label
from ray_wsss.cluster.stages.train_classifier import run_train_classifier
from ray_wsss.cluster.workers import PROGRESS_LOG
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.config.resources import STAGE_HERE, Cluster, Resources, Workers
from ray_wsss.runs.prepared_images import PreparedImage
from ray_wsss.runs.tally import Tally
from ray_wsss.stages.label import SamLabeller

PATIENCE_S = 900
NODE_CPUS = 3
SECONDS_PER_CHUNK = 1.0
LOSSES_AT_PARTS = (3, 8, 13, 18)
DRAIN_AT_PARTS = 5
LOSSES_AT_CHECKPOINTS = (2, 6)
RECIPE = override(
    PRESETS["demo"],
    {
        "label.scales": (1.0,),
        "label.flip": False,
        "classifier.batch_size": 8,
        "classifier.max_iters": 24,
        "classifier.checkpoint_every": 2,
        "classifier.log_every": 1,
        "classifier.lr_warmup_iters": 0,
        "cpm.warmup_iters": 4,
    },
)


class SlowLabeller(SamLabeller):
    """A labeller that takes its time, as a large SAM does, and notes where it begins which images."""

    begun = ""
    """Folder of the notes; a class of this script travels to the actors with it."""

    def __call__(self, images: Sequence[PreparedImage]) -> tuple[pa.Table, Tally]:
        node = ray.get_runtime_context().get_node_id()
        note = {"node": node, "images": [image.image_id for image in images]}
        (Path(self.begun) / uuid4().hex).write_text(json.dumps(note))
        time.sleep(SECONDS_PER_CHUNK)
        return super().__call__(images)


class SpotNodes:
    """A head with one CPU, for the driver and for decoding, and two nodes for an actor or a worker each."""

    def __init__(self) -> None:
        os.environ |= {
            "RAY_AUTH_MODE": "disabled",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
            "RAY_worker_niceness": "0",  # the default, 15, has workers starve beside other programs
        }
        self.cluster = LocalCluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
        )
        self.nodes = [self.cluster.add_node(num_cpus=NODE_CPUS) for _ in range(2)]
        ray.init(address=self.cluster.address)
        self.lost = 0

    def lose(self) -> None:
        """Kill the older node without a warning, and bring another, as an autoscaler would."""
        self.cluster.remove_node(self.nodes.pop(0), allow_graceful=False)
        self.lost += 1
        self.nodes.append(self.cluster.add_node(num_cpus=NODE_CPUS))

    def drain(self) -> str:
        """Announce the end of the older node, as a provider does; returns its id."""
        node = self.nodes[0].node_id
        command = [str(Path(sys.executable).parent / "ray"), "drain-node", "--address", self.cluster.address]
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        deadline = ["--deadline-remaining-seconds", str(PATIENCE_S)]
        subprocess.run([*command, "--node-id", node, *reason, *deadline], check=True)
        return node


class Run:
    """Some work in a thread."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.failures: list[BaseException] = []
        self.thread = Thread(target=self._run, args=(work,))
        self.thread.start()

    def _run(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            self.failures.append(error)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.thread.is_alive(), (what, self.failures)
            assert time.monotonic() < deadline, f"waited {PATIENCE_S} s for {what}"
            time.sleep(0.02)
        assert self.thread.is_alive(), f"too late for {what}"

    def end(self) -> None:
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive(), "the work does not end"
        if self.failures:
            raise self.failures[0]


def notes(out: Path) -> list[dict]:
    """What the labellers have noted, but for notes that are being written."""
    texts = (path.read_text() for path in (out.parent / f"begun_{out.name}").iterdir())
    return [json.loads(text) for text in texts if text]


def label(dataset: Path, classifier: Path, out: Path) -> Run:
    SlowLabeller.begun = str(out.parent / f"begun_{out.name}")
    Path(SlowLabeller.begun).mkdir(parents=True)
    inputs: Any = {"dataset": dataset, "classifier": classifier, "out": out}
    # More than half a node, so that each has an actor; one thread, as in the undisturbed run.
    resources = Resources(actors=2, cpus_per_actor=1.75)
    return Run(lambda: run_label(RECIPE, **inputs, resources=resources, cluster=Cluster(verbose=True)))


def parts(out: Path) -> int:
    return len(list((out / "shards").glob("part-*.parquet")))


def twice(out: Path) -> int:
    """Number of times that an image was labelled, beyond the first."""
    times = Counter(image for note in notes(out) for image in note["images"])
    return sum(times.values()) - len(times)


def label_while_nodes_are_lost(spot: SpotNodes, dataset: Path, classifier: Path, out: Path) -> None:
    run = label(dataset, classifier, out)
    for count in LOSSES_AT_PARTS:
        run.wait_for(lambda count=count: parts(out) >= count, f"{count} parts")
        spot.lose()
    run.end()


def label_while_a_node_is_drained(spot: SpotNodes, dataset: Path, classifier: Path, out: Path) -> None:
    run = label(dataset, classifier, out)
    run.wait_for(lambda: parts(out) >= DRAIN_AT_PARTS, f"{DRAIN_AT_PARTS} parts")
    run.wait_for(lambda: {note["node"] for note in notes(out)} >= {n.node_id for n in spot.nodes}, "actors")
    node = spot.drain()

    def begun_there() -> int:
        return sum(note["node"] == node for note in notes(out))

    # What the actor had in its queue is worked off; then it gets nothing more, and the node may go.
    before, since = begun_there(), time.monotonic()
    while time.monotonic() - since < 4 * SECONDS_PER_CHUNK and run.thread.is_alive():
        if (now := begun_there()) != before:
            before, since = now, time.monotonic()
        time.sleep(0.1)
    assert run.thread.is_alive(), "the drained node was given work to the end"
    spot.lose()
    run.end()


def train(dataset: Path, out: Path) -> None:
    # Losses without a warning count as failures.
    workers = Workers(workers=2, cpus_per_worker=1.75, max_failures=10)
    run_train_classifier(RECIPE, dataset=dataset, out=out, workers=workers, cluster=Cluster(verbose=True))


def train_while_nodes_are_lost(spot: SpotNodes, dataset: Path, out: Path) -> None:
    run = Run(lambda: train(dataset, out))
    seen: set[str] = set()

    def made(count: int) -> bool:
        checkpoints = (out / training_name(out)).glob("checkpoint_*/progress.json")
        seen.update(path.parent.name for path in checkpoints)  # only the last ones are kept
        return len(seen) >= count

    for count in LOSSES_AT_CHECKPOINTS:
        run.wait_for(lambda count=count: made(count), f"{count} checkpoints")
        spot.lose()
    run.end()


def steps_twice(out: Path) -> int:
    """Number of times that a step was trained, beyond the first."""
    steps = re.findall(r"^classifier (\d+)/", (out / PROGRESS_LOG).read_text(), re.MULTILINE)
    assert len(set(steps)) == RECIPE.classifier.max_iters
    return len(steps) - len(set(steps))


def main(dataset: Path, classifier: Path, out: Path) -> None:
    torch.set_num_threads(1)
    run_label(RECIPE, dataset=dataset, classifier=classifier, out=out / "here", **STAGE_HERE)
    label_stage._STAGES["cams"] = SlowLabeller  # pyright: ignore[reportPrivateUsage]
    spot = SpotNodes()
    told: dict[str, dict[str, int]] = {}
    for name, work in (("lost", label_while_nodes_are_lost), ("drained", label_while_a_node_is_drained)):
        before = spot.lost
        work(spot, dataset, classifier, out / name)
        told[name] = {"nodes": spot.lost - before, "twice": twice(out / name)}
        print(told, flush=True)
    train(dataset, out / "trained")
    assert steps_twice(out / "trained") == 0
    before = spot.lost
    train_while_nodes_are_lost(spot, dataset, out / "trained_lost")
    told["trained_lost"] = {"nodes": spot.lost - before, "twice": steps_twice(out / "trained_lost")}
    ray.shutdown()
    spot.cluster.shutdown()
    print(json.dumps(told))


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
