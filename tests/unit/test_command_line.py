"""The command line itself: quick to answer, listed in the pipeline's order, quiet when its reader leaves."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from ray_wsss.cli import main
from ray_wsss.commands.registry import COMMANDS, Group, summary_of
from ray_wsss.version import __version__

HEAVY = ("torch", "ray", "pyarrow", "matplotlib", "timm")
NAMES = [
    [name, *([member] if member else [])]
    for name, command in COMMANDS.items()
    for member in (command.members if isinstance(command, Group) else [""])
]
RAY_WSSS = [sys.executable, "-m", "ray_wsss"]

_PARSE = """
import contextlib, io, sys
from ray_wsss.cli import main
for line in sys.stdin:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(line.split())
print(*[name for name in sys.argv[1:] if name in sys.modules])
"""


def _shown(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 0
    return capsys.readouterr().out


def _seconds(command: list[str]) -> float:
    """The best of several runs: other processes can only make one slower."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    return min(times)


def test_help_imports_nothing_heavy():
    """Of every command, of the groups, and of a command whose flags are all parsed before it fails."""
    parsed = [[*words, "--help"] for words in ([], ["ingest"], ["export"], *NAMES)]
    parsed.append(["label", "--dataset", "d", "--classifier", "c", "--out", "o", "--label.tau", "x"])
    lines = "\n".join(" ".join(words) for words in parsed)
    command = [sys.executable, "-c", _PARSE, *HEAVY]
    result = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_help_is_quick():
    """As ratios to importing tyro: below 4 and 8 when measured alone, with half as much again as slack."""
    tyro = _seconds([sys.executable, "-c", "import tyro"])
    overview, label = _seconds([*RAY_WSSS, "--help"]) / tyro, _seconds([*RAY_WSSS, "label", "--help"]) / tyro
    print(f"ray-wsss --help {overview:.1f}, ray-wsss label --help {label:.1f} times 'import tyro'")
    assert overview < 4 * 1.5
    assert label < 8 * 1.5


def test_overview_lists_every_command_in_order(capsys):
    shown = " ".join(_shown(["--help"], capsys).replace("│", " ").split())
    places = [shown.index(f"• {name} {summary_of(command)}") for name, command in COMMANDS.items()]
    assert places == sorted(places)
    steps = [summary_of(command) for command in COMMANDS.values() if summary_of(command).startswith("Step")]
    assert [text.split()[1].strip(":,") for text in steps] == [str(k) for k in range(1, 9)]
    assert "--version" in shown


@pytest.mark.parametrize("words", [["ingest"], ["export"], *NAMES], ids=" ".join)
def test_help_of_a_command(words, capsys):
    shown = _shown([*words, "--help"], capsys)
    assert f"usage: ray-wsss {' '.join(words)} [-h]" in shown
    assert "Annotated" not in shown
    assert "Union" not in shown
    assert "{None" not in shown


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ray-wsss {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["lable"], "no command 'lable'; did you mean label?"),
        (["ingest", "cocoo"], "no command 'ingest cocoo'; did you mean coco?"),
        (["zzz"], "expected one of ingest, split"),
    ],
)
def test_unknown_command(argv, told, capsys):
    assert main(argv) == 1
    assert told in capsys.readouterr().err


def test_no_command(capsys):
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "Missing subcommand" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], ["train-classifier", "--help"], ["--version"]], ids=" ".join)
def test_a_reader_that_leaves_is_no_error(argv):
    with subprocess.Popen(
        [*RAY_WSSS, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_completion_knows_commands_and_flags(tmp_path: Path):
    script = tmp_path / "completion.bash"
    shown = subprocess.run(
        [*RAY_WSSS, "--tyro-print-completion", "bash"], check=True, capture_output=True, text=True
    )
    script.write_text(shown.stdout)
    ask = f"""
        source {script}
        complete_words() {{
            COMP_WORDS=(ray-wsss "$@"); COMP_CWORD=$#; COMP_LINE="ray-wsss $*"; COMP_POINT=${{#COMP_LINE}}
            COMPREPLY=(); "$(complete -p ray-wsss | sed 's/.*-F \\([^ ]*\\).*/\\1/')"
            printf '%s\\n' "${{COMPREPLY[@]}}"
        }}
        complete_words train-c; complete_words label --label.ta; complete_words label --label.pro
    """
    told = subprocess.run(["bash", "-c", ask], capture_output=True, text=True)
    assert told.stdout.split() == ["train-classifier", "--label.tau", "--label.prompts"], told.stderr
