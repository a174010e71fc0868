"""The words that stand for classes and for background, and the sentences that they are put in."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray_wsss.errors import UserError, did_you_mean
from ray_wsss.storage import AnyPath

TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""The seven sentences that OpenAI chose from its eighty for ImageNet (CLIP's notebook on prompts)."""
BACKGROUND = (
    *("ground", "land", "grass", "tree", "building", "wall", "sky", "lake", "water", "river", "sea", "cloud"),
    *("house", "mountain", "ocean", "road", "rock", "street", "valley", "bridge"),
)
"""Words for what is no object: those of CLIP-ES (Lin et al., CVPR 2023) for VOC and COCO, without things that
people may have as classes (railway, helmet, keyboard, sign)."""


@dataclass(frozen=True, kw_only=True)
class ClassWords:
    """Words of each class, words of the background, and templates with {} in the place of a word."""

    of_classes: tuple[tuple[str, ...], ...]
    background: tuple[str, ...]
    templates: tuple[str, ...] = TEMPLATES

    @classmethod
    def of(cls, class_names: Sequence[str], path: AnyPath | None = None) -> "ClassWords":
        """Words of these classes: their names, unless a file has others.

        Words of the background that are also a class's are left out.

        Args:
            path: JSON file with any of ``{"classes": {name: [words]}, "background": [words], "templates":
                [sentences]}``.

        Raises:
            UserError: the file can't be read, or has something else.
        """
        content = _read(path) if path is not None else {}
        named: dict[str, Any] = content.get("classes", {})
        for name in named:
            if name not in class_names:
                hint = did_you_mean(name, class_names, f"there are {', '.join(class_names[:20])}")
                raise UserError(f"classes in {path} has {name}, which is no class of the data set; {hint}")
        words = tuple(tuple(named.get(name, [name.replace("_", " ")])) for name in class_names)
        taken = {word.lower() for entry in words for word in entry}
        background = [word for word in content.get("background", BACKGROUND) if word.lower() not in taken]
        templates = tuple(content.get("templates", TEMPLATES))
        if not background:
            raise UserError(f"background in {path} has only words of classes; expected others, such as sky")
        return cls(of_classes=words, background=tuple(background), templates=templates)


def _read(path: AnyPath) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"classifier.class_words {path} can't be read: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"classifier.class_words {path} is not readable JSON: {error}") from None
    if not isinstance(content, dict) or content.keys() - {"classes", "background", "templates"}:
        raise UserError(
            f"{path} is no object with classes, background and templates alone; see docs/text_head.md"
        )
    lists = {key: content[key] for key in ("background", "templates") if key in content}
    classes = content.get("classes", {})
    if not isinstance(classes, dict):
        raise UserError(f"classes in {path} is no object; expected lists of words by class name")
    for key, words in {**lists, **classes}.items():
        if not (isinstance(words, list) and words and all(isinstance(w, str) and w.strip() for w in words)):
            raise UserError(f"{key} in {path} is {words!r}; expected a list of one or more texts")
    for template in content.get("templates", []):
        if template.count("{}") != 1:
            raise UserError(
                f"a template in {path} is {template!r}; expected one {{}} in the place of the word"
            )
    return content
