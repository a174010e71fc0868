"""Speed of SAM's image encoder: segment_anything's own, ours step by step, and ours on Ray."""

import importlib.util
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ray_wsss.benchmark.inputs import make_dataset
from ray_wsss.benchmark.matmul import MatmulPeak, encoder_flops, wait
from ray_wsss.config import Recipe, SamConfig
from ray_wsss.data.scenes import make_scene
from ray_wsss.errors import UserError
from ray_wsss.models.promptable.encoder import SamEncoder, load_encoder
from ray_wsss.models.promptable.precision import precision_on
from ray_wsss.models.promptable.prepare import prepare_images
from ray_wsss.models.sam.build import build_sam
from ray_wsss.models.sam.decoder import decode_prompts
from ray_wsss.models.sam.fast_vit import compile_block

Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class SamBenchmark:
    """Times several ways to encode the same images.

    The inputs lie on the device, resized and normalised, with two exceptions. ``from_host`` starts with
    images in the host's memory. On Ray, images are also read and decoded, and embeddings written, as the
    embed command does.
    """

    recipe: Recipe
    """Recipe whose section ``sam`` is used, and on Ray its section ``embed``."""
    device: Literal["cpu", "cuda"]
    images: int
    """Number of generated scenes, a multiple of ``sam.encode_batch_size``."""
    repeats: int
    """Number of rounds. In each round every way encodes all images once."""
    work: Path
    """Folder for inputs and results."""
    compile: bool
    """Measure our encoder compiled as well."""
    ray: bool
    """Measure the embed command on Ray as well."""
    profile: bool
    """List the operations that take the most time."""

    @torch.no_grad()
    def run(self) -> dict[str, Any]:
        """Measure; returns the figures.

        Rates are medians over the rounds. A rate that was not measured is None, with the reason in
        ``not_measured``. ``steps`` lists all ways, each building on the one before, with its gain over that
        one.

        "Ours" below is the faster of eager and compiled. ``ours_over_stock`` compares ours with the faster of
        segment_anything's two ways. ``matmul_share`` is the rate of ours relative to the device's rate in a
        product of large matrices of the same type; it counts the operations that segment_anything's formulas
        need.

        ``mask_iou`` (a mean) and ``max_logit_diff`` compare eager and compiled with segment_anything in
        float32, for one point in each image; they are those of the worse one. ``trained`` has both for the
        tiny SAM, since masks made with random weights mean little.
        """
        device, missing = torch.device(self.device), self._missing()
        config = replace(self.recipe.sam, precision=precision_on(self.recipe.sam, self.device))
        stock = build_sam(config).to(device)
        images = [make_scene(seed).image for seed in range(self.images)]
        inputs = prepare_images(stock, images)
        encoders = self._encoders(config, missing)
        ways = self._ways(stock, encoders, images)
        seconds, peaks, memory = self._time(ways, inputs, encoders["eager"])
        per_s = {name: self.images / median(values) for name, values in seconds.items()}
        ours, flops = max(per_s.get("compiled", 0.0), per_s["eager"]), encoder_flops(stock.image_encoder)
        keys = ("stock", "stock_batched", "eager", "compiled")
        figures = {
            "sam": config.name,
            "device": self.device,
            "device_name": torch.cuda.get_device_name() if self.device == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "precision": config.precision,
            "images": self.images,
            "batch_size": config.encode_batch_size,
            "repeats": self.repeats,
            "images_per_s": {
                **{key: per_s.get(key) for key in keys},
                "ray": None if "ray" in missing else self._on_ray(),
            },
            "not_measured": missing,
            "steps": _gains(ways, per_s),
            "ours_over_stock": ours / max(per_s["stock"], per_s["stock_batched"]),
            "gflop_per_image": flops / 1e9,
            "matmul_peak_gflops": median(peaks) / 1e9,
            "matmul_share": ours * flops / median(peaks),
            "peak_memory_mib": memory,
            **compare_all(stock, encoders, inputs[: config.encode_batch_size]),
            "trained": self._compare_tiny(config, missing),
        }
        if not self.profile:
            return figures
        return figures | {
            "profile": _profile(encode_with(encoders.get("compiled", encoders["eager"])), inputs)
        }

    def _missing(self) -> dict[str, str]:
        """Reasons why ways are not measured, by key of ``images_per_s``."""
        missing = {}
        if not self.compile:
            missing["compiled"] = "--no-compile"
        else:
            missing |= self._why_not_compiled()
        if not self.ray:
            missing["ray"] = "--no-ray"
        elif importlib.util.find_spec("ray") is None:
            missing["ray"] = "Ray is not installed"
        return missing

    def _why_not_compiled(self) -> dict[str, str]:
        tiny = load_encoder(SamConfig(name="tiny", compile="on"), torch.device(self.device))
        try:
            tiny([make_scene(0).image])
        except UserError as error:
            return {"compiled": str(error)}
        return {}

    def _encoders(self, config: SamConfig, missing: Mapping[str, str]) -> dict[str, SamEncoder]:
        """Our encoders, each building on the one before."""
        device, size, precision = torch.device(self.device), config.encode_batch_size, config.precision
        assert precision != "auto"
        encoders: dict[str, SamEncoder] = {}
        if precision != "fp32":
            full = build_sam(config).to(device)
            encoders["fp32"] = SamEncoder(full, "fp32", size)
            if self.device == "cuda" and precision != "tf32":
                encoders["tf32"] = SamEncoder(full, "tf32", size)
        sam = build_sam(config).to(device)
        encoders["eager"] = SamEncoder(sam, precision, size)
        if "compiled" not in missing:
            if self.device == "cuda":
                encoders["compiled_folded"] = SamEncoder(sam, precision, size, compile_block(flex=False))
            block = compile_block(flex=self.device == "cuda")
            encoders["compiled"] = SamEncoder(sam, precision, size, block)
        return encoders

    def _ways(
        self, stock: Sam, encoders: Mapping[str, SamEncoder], images: Sequence[NDArray]
    ) -> dict[str, Encode]:
        """The functions from inputs to embeddings, in the order of the steps."""
        size = self.recipe.sam.encode_batch_size
        ways: dict[str, Encode] = {
            "stock": _in_batches(stock.image_encoder, 1),
            "stock_batched": _in_batches(stock.image_encoder, size),
            **{name: encode_with(encoder) for name, encoder in encoders.items()},
        }
        last = encoders.get("compiled", encoders["eager"])
        if self.device == "cuda":
            ways["cuda_graph"] = _in_batches(CudaGraph(encode_with(last)), size)
        ways["from_host"] = lambda inputs: last(images[: len(inputs)]).maps[0]
        return ways

    def _time(
        self, ways: Mapping[str, Encode], inputs: Tensor, ours: SamEncoder
    ) -> tuple[dict[str, list[float]], list[float], dict[str, float]]:
        """Time the ways in turn, after one batch each to warm up.

        Returns:
            Seconds of each way by round; the device's rates in matrix products, measured in between; peak
            memory in MiB by way (on CPUs: of the process).
        """
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        memory, peaks = {}, []
        peak = MatmulPeak(inputs.device, ours.precision)
        for turn in range(self.repeats + 1):
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

    def _compare_tiny(self, config: SamConfig, missing: Mapping[str, str]) -> dict[str, float]:
        tiny = SamConfig(name="tiny", precision=config.precision)
        stock = build_sam(tiny).to(self.device)
        inputs = prepare_images(stock, [make_scene(seed).image for seed in range(32)])
        return compare_all(stock, self._encoders(tiny, missing), inputs)

    def _on_ray(self) -> float:
        from ray_wsss.cluster.stages.embed import run_embed
        from ray_wsss.config.resources import Cluster, Resources

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


def encode_with(encoder: SamEncoder) -> Encode:
    """The first map of an encoder's embeddings, as a function of inputs."""
    return lambda inputs: encoder.encode(inputs).maps[0]


class CudaGraph:
    """A function of one tensor of fixed shape as a CUDA graph: one call replays all of its kernels."""

    def __init__(self, function: Encode) -> None:
        self.function = function
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.graph is None:
            self._capture(x)
        self.given.copy_(x)
        assert self.graph is not None
        self.graph.replay()
        return self.made.clone()

    def _capture(self, x: Tensor) -> None:
        self.given = x.clone()
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):  # first calls allocate and choose kernels, outside of the graph
            for _ in range(3):
                self.function(self.given)
        torch.cuda.current_stream().wait_stream(beside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.made = self.function(self.given)


def compare_all(stock: Sam, encoders: Mapping[str, SamEncoder], inputs: Tensor) -> dict[str, float]:
    """The figures of `compare` for the worse of eager and compiled."""
    found = [compare(stock, encoders[name], inputs) for name in ("eager", "compiled") if name in encoders]
    return {
        "mask_iou": min(each["mask_iou"] for each in found),
        "max_logit_diff": max(each["max_logit_diff"] for each in found),
    }


@torch.no_grad()
def compare(stock: Sam, encoder: SamEncoder, inputs: Tensor) -> dict[str, float]:
    """Mean IoU of the masks, and the largest difference of their logits, for a random point in each image."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(len(inputs), 1, 2, generator=generator).to(inputs.device)
    points, labels = points * (stock.image_encoder.img_size - 1), points.new_ones(len(inputs), 1)
    theirs, ours = (
        decode_prompts(stock, embeddings, points, labels)[0]
        for embeddings in (_in_batches(stock.image_encoder, 1)(inputs), encoder.encode(inputs).maps[0])
    )
    return agreement(theirs, ours)


def agreement(theirs: Tensor, ours: Tensor) -> dict[str, float]:
    """Mean IoU of masks, and the largest difference of their logits (N, K, a, b)."""
    union = ((theirs > 0) | (ours > 0)).sum((2, 3))
    iou = torch.where(union > 0, ((theirs > 0) & (ours > 0)).sum((2, 3)) / union, 1.0)
    return {"mask_iou": iou.mean().item(), "max_logit_diff": (theirs - ours).abs().max().item()}


_STEPS = {
    "stock": "segment_anything, fp32, an image at a time",
    "stock_batched": "segment_anything, fp32, batches",
    "fp32": "ours, fp32: positions folded into queries and keys",
    "tf32": "ours, tf32",
    "eager": "ours, in the precision asked for",
    "compiled_folded": "blocks compiled",
    "compiled": "blocks compiled; on CUDA with flex_attention",
    "cuda_graph": "as a CUDA graph",
    "from_host": "from images in the host's memory: copied, resized, normalised",
}


def _gains(ways: Mapping[str, Encode], per_s: Mapping[str, float]) -> list[dict[str, Any]]:
    """Every way with its description, its rate, and its gain over the one before."""
    before = dict(zip(list(ways)[1:], ways))
    return [
        {
            "way": name,
            "what": _STEPS[name],
            "images_per_s": per_s[name],
            "gain": per_s[name] / per_s[before[name]] if name in before else None,
        }
        for name in ways
    ]


def _in_batches(encode: Encode, size: int) -> Encode:
    return lambda inputs: torch.cat([encode(part) for part in inputs.split(size)])


def _profile(encode: Encode, inputs: Tensor) -> list[dict[str, Any]]:
    """The 12 operations that take the most time: name, calls and share of the time."""
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
