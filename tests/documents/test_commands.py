"""Every command of the documents is one that the parsers take, and every flag in their sentences exists."""

import importlib.util
import re
import sys
import tomllib
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tyro
from document_blocks import DOCUMENTS, ROOT, Command, all_commands, code_spans

from ray_wsss.cli import main
from ray_wsss.commands.registry import COMMANDS, Group

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TYRO_JOBS = {
    "ablation": "Ablation",
    "compare_recipes": "CompareRecipes",
    "benchmark": "_COMMANDS",
    "evaluate_clicks": "EvaluateClicks",
    "evaluate_everything": "EvaluateEverything",
    "results": "Results",
    "train_lite_sam": "TrainLiteSam",
    "train_tiny_sam": "TrainTinySam",
}
"""Scripts with flags of their own, and what tyro makes flags of."""
STAGE_NAMES = {"tune": "sweep"}
OTHERS = {
    "base64",
    "docker",
    "export",
    "kubectl",
    "ls",
    "mkdir",
    "mkdocs",
    "playwright",
    "pre-commit",
    "tail",
}
"""Programs of others, whose flags they check themselves."""
FOREIGN_FLAGS = {
    "--dashboard-host": "ray start",
    "--dist": "pytest",
    "--index-url": "pip",
    "--logdir": "tensorboard",
    "--object-store-memory": "ray start",
    "--tracing-startup-hook": "ray start",
    "--strict": "mkdocs build",
    "--working-dir": "ray job submit",
}
CLASSES = [
    kind
    for command in COMMANDS.values()
    for kind in (command.members.values() if isinstance(command, Group) else [command])
]
SHELL_COMMANDS = all_commands()


@pytest.fixture
def parsed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that parsing reads, where commands do nothing once their flags are parsed."""
    for kind in CLASSES:
        monkeypatch.setattr(kind, "run", lambda self: 0)
    (tmp_path / "tune_spaces").symlink_to(ROOT / "tune_spaces")
    best = tmp_path / "demo" / "sweep" / "best.toml"
    best.parent.mkdir(parents=True)
    best.write_text('preset = "demo"\n[classifier]\nlr = 0.009\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _check_ours(words: tuple[str, ...]) -> None:
    shown = words in (("--help",), ("--version",)) or words[-1:] == ("--help",)
    if shown or words[0].startswith("--tyro-print-completion"):
        return  # tests/unit/test_command_line.py
    try:
        status = main([*words])
    except SystemExit as ended:
        status = ended.code
    assert status == 0


@cache
def _load(script: Path) -> ModuleType:
    name = f"jobs_{script.stem}"
    spec = importlib.util.spec_from_file_location(name, script)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _check_script(script: str, words: tuple[str, ...]) -> None:
    path = ROOT / script
    assert path.is_file(), f"there is no {script}"
    if path.parent != ROOT / "jobs":
        return
    if path.stem in TYRO_JOBS:
        parameters: Any = getattr(_load(path), TYRO_JOBS[path.stem])
        tyro.cli(parameters, args=words)
    elif path.stem == "gpu_check":
        _load(path).parse(list(words))
    else:
        name = STAGE_NAMES.get(path.stem, path.stem.replace("_", "-"))
        _check_ours((name, *words))


def _check_pytest(words: tuple[str, ...]) -> None:
    markers = {marker.partition(":")[0] for marker in PYPROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    if "-m" in words:
        assert words[words.index("-m") + 1] in markers
    for word in words:
        if word.startswith("tests"):
            assert (ROOT / word.partition("::")[0]).exists(), f"there is no {word}"


def _check_pip(words: tuple[str, ...]) -> None:
    for extras in re.findall(r"\.\[(.*?)\]", " ".join(words)):
        for extra in extras.split(","):
            assert extra in PYPROJECT["project"]["optional-dependencies"], f"there is no extra {extra}"


def check(words: tuple[str, ...]) -> None:
    """Raise AssertionError or SystemExit for words that are no command."""
    program, rest = words[0], words[1:]
    if program == "ray-wsss":
        _check_ours(rest)
    elif words[:3] == ("python", "-m", "ray_wsss"):
        _check_ours(words[3:])
    elif program == "python":
        _check_script(rest[0], rest[1:])
    elif program == "pytest":
        _check_pytest(rest)
    elif program == "pip":
        _check_pip(rest)
    elif words[:3] == ("ray", "job", "submit"):
        check(words[words.index("--") + 1 :])
    elif program == "ray":
        assert rest[0] in {"get-auth-token", "job", "start", "stop", "up", "down", "dashboard"}
    elif program == ".ci/run":
        assert (ROOT / program).is_file()
    else:
        assert program in OTHERS, f"{program} is no program that the documents use"


def test_there_are_commands_to_check() -> None:
    assert len(SHELL_COMMANDS) > 60
    of_ours = {command.words[1] for command in SHELL_COMMANDS if command.words[0] == "ray-wsss"}
    assert of_ours >= COMMANDS.keys() - {"show", "submit"}


@pytest.mark.usefixtures("parsed_alone")
@pytest.mark.parametrize("command", SHELL_COMMANDS, ids=str)
def test_command(command: Command) -> None:
    check(command.words)


@pytest.mark.usefixtures("parsed_alone")
@pytest.mark.parametrize(
    "text",
    [
        "ray-wsss lable --dataset d",
        "ray-wsss label --dataset d --classifier c --out o --label.tua 0.4",
        "ray-wsss submit --address a -- label --dateset d",
        "ray job submit --working-dir . -- python jobs/label.py --dateset d",
        "python jobs/benchmark.py label --pictures 2000",
        "python jobs/nothing.py",
        "pytest -m slowly",
        "pip install -e .[swoop]",
        "rm -r data",
    ],
)
def test_a_wrong_command_is_noticed(text: str) -> None:
    with pytest.raises((AssertionError, SystemExit)):
        check(tuple(text.split()))


def _known_flags(capsys: pytest.CaptureFixture[str]) -> set[str]:
    names = [
        [name, *member]
        for name, command in COMMANDS.items()
        for member in ([[m] for m in command.members] if isinstance(command, Group) else [[]])
    ]
    for words in names:
        with pytest.raises(SystemExit):
            main([*words, "--help"])
    shown = capsys.readouterr().out
    files = [*(f"jobs/{name}.py" for name in TYRO_JOBS), "ray_wsss/benchmark/projection.py"]
    scripts = "".join((ROOT / name).read_text(encoding="utf-8") for name in files)
    of_scripts = {f"--{name.replace('_', '-')}" for name in re.findall(r"^    (\w+):", scripts, re.M)}
    return set(re.findall(r"(?<![\w-])--[a-z][\w.-]*", shown)) | of_scripts


def test_flags_in_sentences_exist(capsys: pytest.CaptureFixture[str]) -> None:
    known = _known_flags(capsys) | FOREIGN_FLAGS.keys() | {"--help", "--version", "--validation"}
    unknown = {
        f"{path.name}: {flag}"
        for path in DOCUMENTS
        for code in code_spans(path)
        for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*", code)
        if flag.rstrip(".") not in known
    }
    assert not unknown


def test_commands_in_sentences_exist() -> None:
    named = [code.split() for path in DOCUMENTS for code in code_spans(path) if code.startswith("ray-wsss ")]
    assert len(named) > 10
    for words in named:
        assert words[1] in COMMANDS or words[1].startswith("--") or words[1].isupper(), " ".join(words)


def test_files_in_sentences_exist() -> None:
    pattern = re.compile(r"^(?:jobs|tests|tune_spaces|docs|examples|ray_wsss|\.ci|\.github)/[\w./]+$")
    paths = {
        word
        for path in DOCUMENTS
        for code in code_spans(path)
        for word in code.split()
        if pattern.match(word)
    }
    assert len(paths) > 20
    missing = [word for word in sorted(paths) if not (ROOT / word).exists()]
    assert missing == []
