"""The documents that users read, and the commands in them."""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / ".github" / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
NOTEBOOK = ROOT / "examples" / "quick_look.ipynb"
SHELL = ("", "bash", "sh")
"""Languages of blocks that hold commands; a block of anything else says so, such as ```text."""
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_CODE = re.compile(r"(`+)(.+?)\1", re.S)


@dataclass(frozen=True)
class Command:
    """A command of a document."""

    document: str
    text: str
    """The command as it is written, on one line."""
    words: tuple[str, ...]
    """Words that a shell makes of it, without variables before it and without redirections."""

    def __str__(self) -> str:
        return f"{self.document}: {self.text}"


def commands_of(path: Path) -> list[Command]:
    """Commands in the shell blocks of a document."""
    found = []
    for language, block in _BLOCK.findall(path.read_text(encoding="utf-8")):
        if language in SHELL:
            for line in block.replace("\\\n", " ").splitlines():
                parts = [words for words in _split(line) if words]
                found += [Command(path.name, " ".join(line.split()), tuple(words)) for words in parts]
    return found


def commands_of_notebook() -> list[Command]:
    """Commands in the cells of the notebook, where each begins with an exclamation mark."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    found = []
    for source in ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"):
        for line in source.replace("\\\n", " ").splitlines():
            if line.startswith("!"):
                found += [Command(NOTEBOOK.name, line, tuple(words)) for words in _split(line[1:]) if words]
    return found


def all_commands() -> list[Command]:
    """Commands in the shell blocks of all documents, and in the notebook."""
    return [command for path in DOCUMENTS for command in commands_of(path)] + commands_of_notebook()


def code_spans(path: Path) -> list[str]:
    """Code within the sentences of a document."""
    text = _BLOCK.sub("", path.read_text(encoding="utf-8"))
    return [" ".join(code.split()) for _, code in _CODE.findall(text)]


def blocks_of(path: Path, language: str) -> list[str]:
    """Blocks of a document in a language."""
    text = path.read_text(encoding="utf-8")
    return [block for found, block in _BLOCK.findall(text) if found == language]


def _split(line: str) -> list[list[str]]:
    """Words of each command of a line, such as those joined by &&."""
    lexer = shlex.shlex(line.replace(" 2>&1", ""), posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    redirected = False
    for word in lexer:
        if set(word) <= set(";|&"):
            commands.append([])
        elif set(word) <= set("<>"):
            redirected = True
        elif redirected:
            redirected = False
        elif commands[-1] or not re.match(r"\w+=", word):
            commands[-1].append(word)
    return commands
