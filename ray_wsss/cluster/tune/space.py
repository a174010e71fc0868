"""Search spaces: small Python modules that define what a sweep varies, such as ``tune_spaces/demo.py``."""

import importlib.util
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from ray.tune.search.sample import Categorical, Domain, Float, Function, Integer, LogUniform

from ray_wsss.config import Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import DEFAULT_PRESET, PRESETS
from ray_wsss.errors import UserError
from ray_wsss.storage import local_file
from ray_wsss.sweeps.trials import Mode

Scheduler = Literal["asha", "none"]
METRICS = ("val_miou", "val_miou_best_threshold")
SECTIONS = ("classifier", "cpm", "sam")
"""Sections of the recipe that a trial (the training of a classifier) depends on."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """The settings that a sweep varies, and the metric that it optimises."""

    origin: str
    """File that the space was read from."""
    domains: dict[str, Domain]
    """Keys whose values are drawn, each with its range or choice of ``ray.tune``."""
    grid: dict[str, list[Any]]
    """Keys whose values are all tried, in all combinations."""
    settings: dict[str, Any]
    """Keys that have one value for all trials."""
    metric: str
    mode: Mode
    preset: str
    num_samples: int
    """Number of trials, or of passes over a grid, unless the command sets another one."""
    scheduler: Scheduler
    grace: float
    """Share of its iterations, in (0, 1), that every trial runs before ASHA may stop it."""

    def sample(self, count: int, seed: int) -> list[dict[str, Any]]:
        """Values of the trials: ``count`` passes over the combinations of the grid.

        A larger ``count`` starts with the same trials.
        """
        random_state = np.random.RandomState(seed)
        combinations = list(itertools.product(*self.grid.values()))
        return [
            dict(zip(self.grid, combination)) | self._draw(random_state)
            for _ in range(count)
            for combination in combinations
        ]

    def _draw(self, random_state: np.random.RandomState) -> dict[str, Any]:
        return {key: plain(domain.sample(random_state=random_state)) for key, domain in self.domains.items()}

    def bounds(self) -> Iterator[tuple[str, Any]]:
        """Pairs of a key and a value: each listed value of a key, or both ends of its range."""
        for key, values in self.grid.items():
            yield from ((key, value) for value in values)
        for key, domain in self.domains.items():
            yield from ((key, value) for value in _bounds(domain))

    def describe(self) -> dict[str, Any]:
        """Possible values of each key, as data for JSON."""
        drawn = {key: _describe(domain) for key, domain in self.domains.items()}
        return {f"space.{key}": what for key, what in (drawn | self.grid).items()}

    def log_keys(self) -> set[str]:
        """Keys that are drawn uniformly on a logarithmic scale."""
        return {key for key, d in self.domains.items() if isinstance(_plain_sampler(d), LogUniform)}


def load_space(path: Path) -> Space:
    """Read a search space and check each of its keys against the recipe.

    The module must have ``SPACE``, ``METRIC`` and ``MODE``. ``SPACE`` maps dotted keys of the recipe to a
    range or grid of ``ray.tune``, such as ``tune.uniform`` or ``tune.grid_search``, or to one value for all
    trials. The module may have ``PRESET``, ``NUM_SAMPLES``, ``SCHEDULER`` and ``GRACE``.

    Raises:
        UserError: the file is missing or fails to run, a key is unknown, or a value is out of range.
    """
    module = _run_module(path)
    entries = _attribute(
        module, path, "SPACE", lambda v: isinstance(v, dict) and v, "a dict with keys of the recipe"
    )
    grid = {k: v["grid_search"] for k, v in entries.items() if isinstance(v, dict) and "grid_search" in v}
    domains = {key: value for key, value in entries.items() if isinstance(value, Domain)}
    space = Space(
        origin=str(path),
        domains=domains,
        grid={key: list(values) for key, values in grid.items()},
        settings={key: value for key, value in entries.items() if key not in grid and key not in domains},
        metric=_choice(module, path, "METRIC", METRICS),
        mode=_choice(module, path, "MODE", ("max", "min")),
        preset=_choice(module, path, "PRESET", tuple(PRESETS), DEFAULT_PRESET),
        scheduler=_choice(module, path, "SCHEDULER", ("asha", "none"), "asha"),
        num_samples=_attribute(
            module, path, "NUM_SAMPLES", lambda v: type(v) is int and v >= 1, "a number of at least 1", 1
        ),
        grace=_attribute(module, path, "GRACE", lambda v: 0 < v < 1, "a share in (0, 1)", 0.25),
    )
    check_space(space, PRESETS[space.preset])
    return space


def check_space(space: Space, recipe: Recipe) -> None:
    """Raise UserError for a key that the recipe lacks, or for a value that it does not take."""
    if not space.domains and not space.grid:
        raise UserError(f"{space.origin}: SPACE varies nothing; expected a key with several values")
    empty = [key for key, values in space.grid.items() if not values]
    if empty:
        raise UserError(f"{space.origin}: {empty[0]} has no values; expected at least one")
    tried = [*space.settings.items(), *space.bounds(), *space.sample(1, 0)[0].items()]
    try:
        for key, value in tried:
            changed = override(recipe, {key: value})
            if key.split(".")[0] not in SECTIONS:
                sections = ", ".join(SECTIONS)
                raise UserError(f"{key} has no part in training a classifier; expected keys of {sections}")
            _check_whole(recipe, changed, key, value)
        for key, domain in space.domains.items():
            if isinstance(domain, Function):
                raise UserError(f"{key} is a function; expected a range or a choice of ray.tune, or a grid")
    except UserError as error:
        raise UserError(f"{space.origin}: {error}") from None


def plain(value: Any) -> Any:
    """A drawn value as a Python number instead of a NumPy one."""
    return value.item() if isinstance(value, np.generic) else value


def _check_whole(recipe: Recipe, changed: Recipe, key: str, value: Any) -> None:
    old: Any = recipe
    for name in key.split("."):
        old = getattr(old, name)
    if type(old) is int and type(value) is not int:
        raise UserError(
            f"{key} is {value}; expected whole numbers, such as those of tune.randint or tune.choice"
        )


def _bounds(domain: Domain) -> list[Any]:
    if isinstance(domain, Categorical):
        return list(domain.categories)
    if isinstance(domain, Float | Integer):
        last = domain.upper - 1 if isinstance(domain, Integer) else domain.upper
        return [plain(v) for v in (domain.lower, last) if math.isfinite(v)]
    return []


def _plain_sampler(domain: Domain) -> Any:
    sampler = domain.get_sampler()
    return getattr(sampler, "sampler", sampler)  # a quantized sampler wraps another one


def _describe(domain: Domain) -> Any:
    if isinstance(domain, Categorical):
        return list(domain.categories)
    sampler = domain.get_sampler()
    step = f" in steps of {sampler.q:g}" if hasattr(sampler, "q") else ""
    return f"{type(domain).__name__.lower()} {_plain_sampler(domain)} {domain.domain_str}{step}"


def _run_module(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"--space {path} is not a file; expected a module such as tune_spaces/demo.py")
    with local_file(path) as file:
        return _run_file(file, path)


def _run_file(file: Path, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, file)
    if spec is None or spec.loader is None:
        raise UserError(f"--space {path} is not a Python module; expected one such as tune_spaces/demo.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's module may raise anything
        raise UserError(f"--space {path} fails with {type(error).__name__}: {error}") from error
    return module


_MISSING = object()


def _attribute(
    module: ModuleType, path: Path, name: str, ok: Any, expected: str, default: Any = _MISSING
) -> Any:
    value = getattr(module, name, default)
    if value is _MISSING:
        raise UserError(f"{path} has no {name}; expected {expected}")
    try:
        good = ok(value)
    except TypeError:
        good = False
    if not good:
        raise UserError(f"{path}: {name} is {value}; expected {expected}")
    return value


def _choice(
    module: ModuleType, path: Path, name: str, choices: tuple[str, ...], default: Any = _MISSING
) -> Any:
    return _attribute(module, path, name, choices.__contains__, f"one of {', '.join(choices)}", default)
