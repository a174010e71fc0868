"""Variants of a recipe on one's own images, trained with several seeds and scored on held-out images."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.table import Table

from ray_wsss.cluster.stages.embed import run_embed
from ray_wsss.cluster.stages.evaluate import run_evaluate
from ray_wsss.cluster.stages.label import run_label
from ray_wsss.cluster.stages.train_classifier import run_train_classifier
from ray_wsss.cluster.stages.train_segmenter import run_train_segmenter
from ray_wsss.config import Recipe
from ray_wsss.config.resources import STAGE_HERE, TRAINING_HERE
from ray_wsss.config.settings_file import apply_settings
from ray_wsss.errors import UserError
from ray_wsss.storage import write_json

log = logging.getLogger(__name__)

SCORES = {
    "cam_best": "CAM, best threshold",
    "cam_fixed": "CAM, fixed threshold",
    "pseudo_label": "pseudo label",
    "segmenter": "segmenter",
}
"""Titles of the scores, by key of `evaluate`."""
_OF_CLASSIFIER = ("classifier.", "cpm.", "sam.")
_OF_LABELS = (*_OF_CLASSIFIER, "label.")


def read_variants(path: Path) -> dict[str, dict[str, Any]]:
    """Settings by dotted key of each variant of a JSON file, ``{"name": {"cpm.enabled": false}, ...}``.

    Raises:
        UserError: the file can't be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--variants {path} can't be read as JSON: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(value, dict) for value in content.values()):
        raise UserError(f'--variants {path}: expected {{"name": {{"cpm.enabled": false}}, ...}}')
    return content


def compare_recipes(
    recipe: Recipe,
    variants: Mapping[str, Mapping[str, Any]],
    *,
    dataset: Path,
    held_out: Path,
    out: Path,
    seeds: Sequence[int],
    segmenter: bool,
) -> dict[str, Any]:
    """Train and score each variant of a recipe, in this process; running it again resumes it.

    Variants whose settings differ in what comes later share the classifier, or classifier and labels.

    Args:
        variants: settings by dotted key, for each variant.
        dataset, held_out: data sets to train on, and with masks to score on.
        segmenter: whether to train a segmenter on pseudo labels of ``dataset``, too.

    Returns:
        For each variant the mIoU of each seed in [0, 1] by score, also written to ``compare_recipes.json``.

    Raises:
        UserError: a setting doesn't fit its key.
    """
    recipes = {
        name: apply_settings(recipe, settings, f'variant "{name}"') for name, settings in variants.items()
    }
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in variants}
    for seed in seeds:
        for name, varied in recipes.items():
            seeds_of = {"classifier.seed": seed, "segmenter.seed": seed}
            run = _Run(apply_settings(varied, seeds_of, "seed"), variants[name], dataset, held_out, out, seed)
            log.info("seed %d: %s", seed, name)
            for key, value in run.score(segmenter=segmenter).items():
                scores[name].setdefault(key, []).append(value)
    results = {"seeds": list(seeds), "miou": scores}
    write_json(results, out / "compare_recipes.json")
    return results


class _Run:
    """One variant with one seed."""

    def __init__(
        self, recipe: Recipe, settings: Mapping[str, Any], dataset: Path, held_out: Path, out: Path, seed: int
    ) -> None:
        self.recipe, self.settings, self.seed, self.out = recipe, settings, seed, out
        self.dataset, self.held_out = dataset, held_out

    def score(self, *, segmenter: bool) -> dict[str, float]:
        """Train what is not trained yet; mIoU by score."""
        stored = self._folder("scores", ("",)) / f"scores{'_segmenter' * segmenter}.json"
        if not stored.exists():
            stored.parent.mkdir(parents=True, exist_ok=True)
            metrics = self._measure(segmenter)
            write_json({key: metrics[key]["miou"] for key in SCORES if key in metrics}, stored)
        return json.loads(stored.read_text(encoding="utf-8"))

    def _measure(self, segmenter: bool) -> dict[str, Any]:
        classifier = self._folder("classifier", _OF_CLASSIFIER)
        stored = self._embed("train", self.dataset)
        with_cpm = stored if self.recipe.cpm.enabled and self.recipe.cpm.view == "image" else None
        run_train_classifier(
            self.recipe, dataset=self.dataset, out=classifier, embeddings=with_cpm, **TRAINING_HERE
        )
        labels = self._label("held_out", self.held_out, classifier)
        trained = self._train_segmenter(classifier) if segmenter else None
        inputs: Any = {"classifier": classifier, "labels": labels, "segmenter": trained}
        return run_evaluate(self.recipe, dataset=self.held_out, **inputs, **STAGE_HERE)

    def _train_segmenter(self, classifier: Path) -> Path:
        out, labels = self._folder("segmenter", ("",)), self._label("train", self.dataset, classifier)
        run_train_segmenter(self.recipe, dataset=self.dataset, labels=labels, out=out, **TRAINING_HERE)
        return out

    def _label(self, split: str, dataset: Path, classifier: Path) -> Path:
        out, embeddings = self._folder(f"labels_{split}", _OF_LABELS), self._embed(split, dataset)
        run_label(
            self.recipe, dataset=dataset, classifier=classifier, out=out, embeddings=embeddings, **STAGE_HERE
        )
        return out

    def _embed(self, split: str, dataset: Path) -> Path:
        out = self._folder(f"embeddings_{split}", ("sam.",), seed=False)
        run_embed(self.recipe, dataset=dataset, out=out, **STAGE_HERE)
        return out

    def _folder(self, what: str, prefixes: tuple[str, ...], *, seed: bool = True) -> Path:
        """Folder of an output, which all variants share whose settings of these prefixes are the same."""
        own = {key: value for key, value in self.settings.items() if key.startswith(prefixes)}
        name = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:8]
        return self.out / (f"seed_{self.seed}" if seed else "all_seeds") / f"{what}_{name}"


def recipes_table(results: Mapping[str, Any]) -> Table:
    """Table of mean mIoUs in %, with the standard deviation over the seeds."""
    table = Table(title=f"mIoU in % on held-out images, {len(results['seeds'])} seeds")
    table.add_column("variant")
    found = {key for values in results["miou"].values() for key in values}
    keys = [key for key in SCORES if key in found]
    for key in keys:
        table.add_column(SCORES[key], justify="right")
    for name, values in results["miou"].items():
        table.add_row(name, *(mean_and_spread(values.get(key, [])) for key in keys))
    return table


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean of shares in %, and their standard deviation if there are several; "-" without any."""
    if not values:
        return "-"
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread}"
