"""Labelling three ways on the same images: a naive loop, the engine in a bare loop, the engine on Ray."""

import importlib.util
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from ray_wsss.benchmark.naive import NaiveLabeller
from ray_wsss.config import Recipe
from ray_wsss.data.images import decode_mask
from ray_wsss.data.reader import ShardReader
from ray_wsss.models.promptable.build import input_frame
from ray_wsss.runs.parts import Parts
from ray_wsss.runs.prepared_images import PrepareImages
from ray_wsss.runs.read_chunks import Chunk, plan_chunks
from ray_wsss.runs.tally import Tally
from ray_wsss.stages.label import SamLabeller

Work = Callable[[Chunk], tuple[pa.Table, Tally]]


@dataclass(frozen=True, kw_only=True)
class LabelBenchmark:
    """Labels the same images in three ways, and compares their speed and their labels."""

    recipe: Recipe
    dataset: Path
    classifier: Path
    work: Path
    """Folder for results."""
    device: Literal["cpu", "cuda"]
    actors: int
    """Number of actors on Ray; the loops use at least as many threads."""

    def run(self) -> dict[str, Any]:
        """Measure; returns the figures. Those of Ray are None if Ray is not installed.

        ``prompting_speedup`` compares the phase ``prompt``: peaks, SAM's decoder and aggregation.
        """
        chunks = plan_chunks(self.dataset)
        images = sum(chunk.rows for chunk in chunks)
        arguments = (self.recipe.label, self.recipe.sam, self.classifier, self.device)
        torch.set_num_threads(max(torch.get_num_threads(), self.actors))
        naive_s, naive = _loop(NaiveLabeller(*arguments), chunks, Parts(self.work / "naive", ""))
        engine_s, engine = _loop(_engine(*arguments), chunks, Parts(self.work / "engine", ""))
        figures: dict[str, Any] = {
            "images": images,
            "naive_images_per_s": images / naive_s,
            "engine_images_per_s": images / engine_s,
            "ray_images_per_s": None,
            "ray_startup_s": None,
            "engine_over_naive": naive_s / engine_s,
            "prompting_speedup": naive.seconds["prompt"] / engine.seconds["prompt"],
            "phase_seconds": {"naive": naive.seconds, "engine": engine.seconds},
        }
        outputs = ["naive", "engine"]
        if importlib.util.find_spec("ray") is not None:
            report = self._on_ray()
            figures["ray_images_per_s"] = report.images_per_s
            figures["ray_startup_s"] = report.startup_s
            figures["ray_over_engine"] = report.images_per_s / figures["engine_images_per_s"]
            figures["phase_seconds"]["ray"] = report.total.seconds
            outputs.append("ray")
        return figures | self._compare(outputs)

    def _on_ray(self) -> Any:
        from ray_wsss.cluster.stages.label import run_label
        from ray_wsss.config.resources import Cluster, Resources

        # Ray 2.60 gives its workers a low priority. Other programs on this machine would slow them down, and
        # the measurement with them.
        os.environ.setdefault("RAY_worker_niceness", "0")
        return run_label(
            self.recipe,
            dataset=self.dataset,
            classifier=self.classifier,
            out=self.work / "ray",
            resources=Resources(actors=self.actors, gpus_per_actor=float(self.device == "cuda")),
            cluster=Cluster(),
            overwrite=True,
        )

    def _compare(self, outputs: Sequence[str]) -> dict[str, Any]:
        """Compare label maps: equality, and the numbers of pixels and images that differ."""
        readers = [ShardReader(self.work / name) for name in outputs]
        differing_images = differing = pixels = 0
        for i, image_id in enumerate(readers[0].image_ids):
            maps = []
            for reader in readers:
                row = reader.read(i, ["image_id", "pseudo_label"])
                assert row["image_id"] == image_id
                maps.append(decode_mask(row["pseudo_label"]))
            unequal = np.any([label_map != maps[0] for label_map in maps], axis=0)
            pixels += unequal.size
            differing += int(unequal.sum())
            differing_images += bool(unequal.any())
        return {
            "labels_identical": not differing,
            "pixels": pixels,
            "differing_pixels": differing,
            "differing_images": differing_images,
        }


def _engine(label: Any, sam: Any, classifier: Path, device: str) -> Work:
    prepare = PrepareImages(max_side_px=label.max_side_px, frame=input_frame(sam), tile_px=label.tile_px)
    labeller = SamLabeller(label, sam, classifier, device)

    def work(chunk: Chunk) -> tuple[pa.Table, Tally]:
        own = Tally()
        with own.phase("decode"):
            images = prepare(chunk)
        table, tally = labeller(images)
        tally.add(own)
        return table, tally

    return work


def _loop(work: Work, chunks: Sequence[Chunk], parts: Parts) -> tuple[float, Tally]:
    """The seconds to label and write all chunks, and their tally; loading the networks is not counted."""
    shutil.rmtree(parts.out, ignore_errors=True)  # results of an earlier benchmark
    total = Tally()
    began = time.perf_counter()
    for chunk in chunks:
        table, tally = work(chunk)
        with tally.phase("write"):
            parts.write(chunk, table, tally)
        total.add(tally)
    return time.perf_counter() - began, total
