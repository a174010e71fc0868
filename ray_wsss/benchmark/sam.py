"""SAM's image encoder: segment_anything's own, ours, ours compiled, and ours in the pipeline on Ray."""

import importlib.util
import os
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from segment_anything.modeling import Sam
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ray_wsss.benchmark.inputs import make_dataset
from ray_wsss.benchmark.matmul import MatmulPeak, encoder_flops, wait
from ray_wsss.config import Recipe, SamConfig
from ray_wsss.data.scenes import make_scene
from ray_wsss.models.sam.build import build_sam
from ray_wsss.models.sam.decoder import decode_prompts
from ray_wsss.models.sam.encoder import encode_inputs, load_sam, matmul_precision, prepare_images
from ray_wsss.models.sam.fast_vit import fast_forward, make_tables

Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class SamBenchmark:
    """What is compared, and on what.

    Inputs are on the device, resized and normalised; only on Ray images are read, decoded and resized, and
    embeddings written, as the embed command does.
    """

    recipe: Recipe
    """``sam`` and, on Ray, ``embed``."""
    device: Literal["cpu", "cuda"]
    images: int
    """Generated scenes, a multiple of ``sam.encode_batch_size``."""
    repeats: int
    """Rounds, in each of which every way encodes all images."""
    work: Path
    compile: bool
    ray: bool
    profile: bool

    @torch.no_grad()
    def run(self) -> dict[str, Any]:
        """The figures. Rates are medians over the rounds; what was not measured is None, with a reason.

        ``matmul_share`` is that of the faster of ours: the operations that segment_anything's formulas need
        over what the device does in a product of large matrices of the same type. ``mask_iou``, a mean, and
        ``max_logit_diff`` compare ours with segment_anything in float32, for a point in each image;
        ``trained`` has the same of the tiny SAM, whose masks are none of random weights.
        """
        device, config = torch.device(self.device), self.recipe.sam
        precision = config.precision_on(self.device)
        stock, sam = build_sam(config).to(device), load_sam(config, device)
        inputs = prepare_images(stock, [make_scene(seed).image for seed in range(self.images)])
        ways, missing = self._ways(stock, sam)
        seconds, peaks, memory = self._time(ways, inputs, sam)
        rates: dict[str, float | None] = dict.fromkeys(("stock", "stock_batched", "eager", "compiled", "ray"))
        rates |= {name: self.images / median(values) for name, values in seconds.items()}
        rates["ray"] = None if "ray" in missing else self._on_ray()
        ours = max(rates["eager"] or 0, rates["compiled"] or 0)
        figures = {
            "sam": config.name,
            "device": self.device,
            "device_name": torch.cuda.get_device_name() if self.device == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "precision": precision,
            "images": self.images,
            "batch_size": config.encode_batch_size,
            "repeats": self.repeats,
            "images_per_s": rates,
            "not_measured": missing,
            "eager_over_stock": (rates["eager"] or 0) / (rates["stock"] or 1),
            "gflop_per_image": encoder_flops(stock.image_encoder) / 1e9,
            "matmul_peak_gflops": median(peaks) / 1e9,
            "matmul_share": ours * encoder_flops(stock.image_encoder) / median(peaks),
            "peak_memory_mib": memory,
            **compare(stock, sam, inputs[: config.encode_batch_size]),
            "trained": compare_tiny(config, device),
        }
        return figures | ({"profile": _profile(ways["eager"], inputs)} if self.profile else {})

    def _ways(self, stock: Sam, sam: Sam) -> tuple[dict[str, Encode], dict[str, str]]:
        """How inputs become embeddings, and why ways are missing."""
        size = self.recipe.sam.encode_batch_size
        ways = {
            "stock": _in_batches(stock.image_encoder, 1),
            "stock_batched": _in_batches(stock.image_encoder, size),
            "eager": _in_batches(lambda x: encode_inputs(sam, x), size),
        }
        missing = {}
        if not self.compile:
            missing["compiled"] = "--no-compile"
        elif not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
            missing["compiled"] = "torch.compile needs a C++ compiler, and there is none"
        else:
            make_tables(sam.image_encoder)
            forward: Any = torch.compile(fast_forward, dynamic=False)

            def compiled(x: Tensor) -> Tensor:
                with matmul_precision(sam):
                    return forward(sam.image_encoder, x).float()

            ways["compiled"] = _in_batches(compiled, size)
        if not self.ray:
            missing["ray"] = "--no-ray"
        elif importlib.util.find_spec("ray") is None:
            missing["ray"] = "Ray is not installed"
        return ways, missing

    def _time(
        self, ways: dict[str, Encode], inputs: Tensor, sam: Sam
    ) -> tuple[dict[str, list[float]], list[float], dict[str, float]]:
        """Seconds of each way in turn, the device's rate in between, and memory; a first batch warms up."""
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        memory, peaks = {}, []
        peak = MatmulPeak(inputs.device, next(sam.image_encoder.parameters()).dtype)
        for turn in range(self.repeats + 1):
            with matmul_precision(sam):
                peaks.append(peak.rate())
            for name, encode in ways.items():
                if inputs.is_cuda:
                    torch.cuda.reset_peak_memory_stats()
                wait(inputs.device)
                began = time.perf_counter()
                encode(inputs if turn else inputs[: self.recipe.sam.encode_batch_size])
                wait(inputs.device)
                if turn:
                    seconds[name].append(time.perf_counter() - began)
                if inputs.is_cuda:
                    memory[name] = torch.cuda.max_memory_allocated() / 2**20
        if not inputs.is_cuda:
            memory["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        return seconds, peaks, memory

    def _on_ray(self) -> float:
        from ray_wsss.cluster.labelling import run_embed
        from ray_wsss.cluster.map import Resources
        from ray_wsss.cluster.session import Cluster

        os.environ.setdefault("RAY_worker_niceness", "0")
        threads, gpus = torch.get_num_threads(), float(self.device == "cuda")
        return run_embed(
            self.recipe,
            dataset=make_dataset(self.work / f"dataset_{self.images}", self.images),
            out=self.work / f"sam_{self.recipe.sam.name}",
            resources=Resources(actors=1, cpus_per_actor=threads, gpus_per_actor=gpus),
            cluster=Cluster(),
            overwrite=True,
        ).images_per_s


@torch.no_grad()
def compare(stock: Sam, sam: Sam, inputs: Tensor) -> dict[str, float]:
    """Mean IoU of the masks, and the largest difference of their logits, a point in each image."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(len(inputs), 1, 2, generator=generator).to(inputs.device)
    points, labels = points * (stock.image_encoder.img_size - 1), points.new_ones(len(inputs), 1)
    theirs, ours = (
        decode_prompts(stock, embeddings, points, labels)[0]
        for embeddings in (stock.image_encoder(inputs), encode_inputs(sam, inputs))
    )
    union = ((theirs > 0) | (ours > 0)).sum((2, 3))
    iou = torch.where(union > 0, ((theirs > 0) & (ours > 0)).sum((2, 3)) / union, 1.0)
    return {"mask_iou": iou.mean().item(), "max_logit_diff": (theirs - ours).abs().max().item()}


def compare_tiny(config: SamConfig, device: torch.device) -> dict[str, float]:
    """`compare` for the tiny SAM, its trained weights and 32 scenes, in the precision of ``config``."""
    tiny = SamConfig(name="tiny", precision=config.precision)
    stock = build_sam(tiny).to(device)
    inputs = prepare_images(stock, [make_scene(seed).image for seed in range(32)])
    return compare(stock, load_sam(tiny, device), inputs)


def _in_batches(encode: Encode, size: int) -> Encode:
    return lambda inputs: torch.cat([encode(part) for part in inputs.split(size)])


def _profile(encode: Encode, inputs: Tensor) -> list[dict[str, Any]]:
    """What takes the most time: an operation's name, calls and share."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * inputs.is_cuda
    with profile(activities=activities) as profiler:
        encode(inputs)
        wait(inputs.device)
    timed = [
        (event.self_device_time_total if inputs.is_cuda else event.self_cpu_time_total, event)
        for event in profiler.key_averages()
    ]
    total = sum(time_us for time_us, _ in timed)
    timed.sort(key=lambda pair: -pair[0])
    return [{"op": e.key, "calls": e.count, "share": time_us / total} for time_us, e in timed[:12]]
