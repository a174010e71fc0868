"""Measurements of the check that need no more than torch and this package."""

import platform
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from ray_wsss.benchmark.matmul import MatmulPeak, wait
from ray_wsss.config import EncoderPrecision, SamName
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS


def describe_device(device: str, *, small: bool) -> dict[str, Any]:
    """Name, memory and versions, and the rate of a product of large matrices in TFLOP/s by precision."""
    there = torch.device(device)
    found: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version()}
    precisions: list[EncoderPrecision] = ["fp32"]
    if device == "cuda":
        properties = torch.cuda.get_device_properties(there)
        found |= {
            "name": properties.name,
            "count": torch.cuda.device_count(),
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": properties.total_memory / 2**30,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
        fast: tuple[EncoderPrecision, ...] = ("tf32", "fp16", "bf16")
        precisions += fast if properties.major >= 8 else fast[:2]
    else:
        found |= {"name": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    times = 1 if small else 20
    rates = {precision: MatmulPeak(there, precision).rate(times) / 1e12 for precision in precisions}
    return found | {"matmul_tflops": rates}


def time_encoder(name: SamName, device: Any, work: Path, *, small: bool) -> dict[str, Any]:
    """Figures of `benchmark.sam.SamBenchmark` for a model with random weights, profile included."""
    from ray_wsss.benchmark.inputs import make_random_sam
    from ray_wsss.benchmark.sam import SamBenchmark
    from ray_wsss.config import SamConfig

    batch = 2 if small else {"vit_h": 8, "vit_l": 8}.get(name, 16)
    sam = SamConfig(name="tiny")
    if name != "tiny":
        sam = make_random_sam(name, work / f"random_{name}_positions.safetensors")
    sam = replace(sam, precision="fp32" if small else "auto", encode_batch_size=batch)
    return SamBenchmark(
        recipe=replace(PRESETS["demo"], sam=sam),
        device=device,
        images=2 * batch,
        repeats=1 if small else 3,
        work=work,
        compile=not small,
        ray=False,
        profile=True,
    ).run()


def time_predictor(name: SamName, device: Any, work: Path, *, small: bool) -> dict[str, Any]:
    """Figures of `benchmark.predictor.PredictorBenchmark` for a model with random weights."""
    from ray_wsss.benchmark.predictor import PredictorBenchmark
    from ray_wsss.config import SamConfig

    batch = 1 if small else 8
    sam = SamConfig(name=name, precision="fp32" if small else "auto", encode_batch_size=batch)
    return PredictorBenchmark(
        sam=sam, device=device, images=2 * batch, repeats=1 if small else 3, work=work
    ).run()


def time_labelling(device: Any, work: Path, *, small: bool) -> dict[str, Any]:
    """Figures of `benchmark.label.LabelBenchmark` for the tiny SAM, whose encoder hides nothing."""
    from ray_wsss.benchmark.inputs import make_classifier, make_dataset
    from ray_wsss.benchmark.label import LabelBenchmark

    images = 16 if small else 512
    recipe = replace(PRESETS["demo"], sam=replace(PRESETS["demo"].sam, precision="fp32"))
    dataset = make_dataset(work / f"dataset_{images}", images)
    return LabelBenchmark(
        recipe=recipe,
        dataset=dataset,
        classifier=make_classifier(recipe, dataset, work / f"classifier_{images}", 20 if small else 200),
        work=work / "labels",
        device=device,
        actors=1,
    ).run()


def time_training(device: Any, work: Path, *, small: bool) -> dict[str, Any]:
    """Figures of `benchmark.train.TrainBenchmark`: ViT-H with random weights, on crops and on embeddings."""
    from ray_wsss.benchmark.inputs import make_classifier, make_dataset, make_embeddings, make_random_sam
    from ray_wsss.benchmark.train import TrainBenchmark

    batch, images = (2, 16) if small else (8, 512)
    sam = PRESETS["demo"].sam
    if not small:
        sam = make_random_sam("vit_h", work / "random_vit_h_positions.safetensors")
    recipe = replace(PRESETS["demo"], sam=replace(sam, precision="fp32" if small else "auto"))
    recipe = override(recipe, {"classifier.batch_size": batch})
    dataset = make_dataset(work / f"dataset_{images}", images)
    few = make_dataset(work / f"dataset_{batch}", batch)
    return TrainBenchmark(
        recipe=recipe,
        dataset=few,
        classifier=make_classifier(recipe, dataset, work / f"classifier_{images}", 20 if small else 200),
        embeddings=make_embeddings(recipe, few, work / f"embeddings_{batch}", device),
        device=device,
        steps=1 if small else 5,
    ).run()


def time_peaks(device: str, *, small: bool) -> dict[str, Any]:
    """Peaks of CAMs on the device against scikit-image, map by map; ``equal`` compares the peaks."""
    from skimage.feature import peak_local_max

    from ray_wsss.ops.peaks import find_peaks

    count, side = (8, 128) if small else (256, 512)
    coarse = torch.rand(1, count, side // 32, side // 32, generator=torch.Generator().manual_seed(0))
    cams = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")[0].clamp(0, 1)
    border: Any = 10  # scikit-image declares a flag, but also takes a width in pixels
    began = perf_counter()
    theirs = [
        peak_local_max(cam, min_distance=10, threshold_abs=0.5, exclude_border=border) for cam in cams.numpy()
    ]
    theirs_s = perf_counter() - began
    there, seconds = cams.to(device), []
    peaks = find_peaks(there, tau=0.5, min_distance_px=10)
    for _ in range(3 if small else 10):
        wait(there.device)
        began = perf_counter()
        peaks = find_peaks(there, tau=0.5, min_distance_px=10)
        wait(there.device)
        seconds.append(perf_counter() - began)
    ours = [np.argwhere(mask) for mask in peaks.cpu().numpy()]
    equal = all({*map(tuple, a.tolist())} == {*map(tuple, b.tolist())} for a, b in zip(ours, theirs))
    return {
        "maps": count,
        "side_px": side,
        "peaks": sum(map(len, theirs)),
        "equal": equal,
        "over_skimage": theirs_s / median(seconds),
    }
