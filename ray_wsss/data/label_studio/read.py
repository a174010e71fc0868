"""Label Studio's JSON export: tasks with annotations, or with predictions such as our own export's."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ray_wsss.data.coco.values import read_json
from ray_wsss.data.label_studio.addresses import ImageFinder, image_address
from ray_wsss.data.label_studio.json_min import is_json_min, to_tasks
from ray_wsss.data.label_studio.results import Results, read_results
from ray_wsss.data.schema import SourceRow, check_class_names
from ray_wsss.data.source import Source
from ray_wsss.data.sources.named_objects import with_indices
from ray_wsss.data.sources.rows import SourceRows
from ray_wsss.errors import UserError

FROM_PREDICTION = "labels from predictions"
SKIPPED = "labels unknown, since the image was skipped"
NOTHING_READ = "labels unknown, since no result tells a class"
_EXPECTED = "expected the tasks of Label Studio's export 'JSON'"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    image_id: str
    path: str
    error: str | None = None
    results: Results | None = None
    """None: nobody has annotated the image."""
    remarks: Sequence[tuple[str, str]] = ()


def read_label_studio(
    tasks: Path,
    images: Path | None = None,
    unannotated: Literal["none", "unknown"] = "none",
    *,
    image_key: str | None = None,
    controls: Collection[str] = (),
    classes: Sequence[str] | None = None,
) -> Source:
    """Read the sorted class names and one row per task from ``tasks``, an export JSON or JSON-MIN.

    Labels are those of a task's newest annotation that wasn't cancelled. A task without annotations has those
    of its newest prediction, and a remark; one without predictions, or whose annotations were all cancelled,
    has unknown labels. An image gets a mask from brush regions, polygons and ellipses as from COCO's
    outlines (`data.coco.rasterise`). Images are named by ``ray_wsss_id``, which our export writes, else by
    their path in the folder or their URI. A malformed task is an error row, and so are tasks of one image.

    Args:
        images: folder of the images. Without it, it is that of ``tasks``, and URIs are not looked up in it.
        unannotated: what an image has whose annotation has no results: none of the classes, or unknown
            labels.
        image_key: field of ``data`` that names the image (`image_address`).
        controls: names of the controls of the labelling interface that are read; empty: all, which JSON-MIN
            doesn't tell from data.
        classes: class names if no task has any.

    Raises:
        UserError: a file is missing or malformed, or there are no class names.
    """
    content = _load(tasks, controls)
    finder = ImageFinder(tasks.parent if images is None else images, uris_too=images is not None)
    read = [_read_task(index, task, finder, image_key, controls) for index, task in enumerate(content)]
    found = [task.results for task in read if task.results is not None]
    class_names = sorted(set().union(*(results.classes for results in found))) or list(classes or ())
    if not class_names:
        raise UserError(
            f"{tasks} has no class in any task; expected results, or a file of class names (--classes)"
        )
    check_class_names(class_names, tasks)
    class_of = {name: index for index, name in enumerate(class_names)}
    any_mask = any(o["segmentation"] or "brush" in o for results in found for o in results.objects)
    rows = SourceRows.of(_row(task, class_of, unannotated, any_mask) for task in _without_repeats(read))
    return Source(kind="label-studio", class_names=class_names, rows=rows)


def _load(tasks: Path, controls: Collection[str]) -> list[Any]:
    content = read_json(tasks, _EXPECTED)
    if not isinstance(content, list):
        raise UserError(f"{tasks} holds a JSON {type(content).__name__}; {_EXPECTED}, a list")
    if is_json_min(content):
        if not controls:
            raise UserError(
                f"{tasks} is JSON-MIN, which doesn't tell labels from other text; expected the names of the "
                "controls of the labelling interface (--controls), or Label Studio's export 'JSON'"
            )
        return to_tasks(content, controls)
    if not any(isinstance(task, dict) and isinstance(task.get("data"), dict) for task in content):
        raise UserError(f"{tasks} has no task with 'data'; {_EXPECTED}")
    return content


def _read_task(
    index: int, task: Any, finder: ImageFinder, image_key: str | None, controls: Collection[str]
) -> _Task:
    image_id, path = f"tasks[{index}]", ""
    try:
        if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
            raise ValueError(f"the task is {task!r:.40}; expected an object with 'data'")
        data = task["data"]
        path = image_address(data, image_key)
        image_id, path, error = finder.find(path)
        if isinstance(data.get("ray_wsss_id"), str) and data["ray_wsss_id"]:
            image_id = data["ray_wsss_id"]
        if error is not None:
            raise ValueError(error)
        given, remarks = _choose(task)
        results = read_results(given, controls) if given is not None else None
        if results is not None and len(results.sizes_hw) > 1:
            sizes = " and ".join(f"{width}x{height}" for height, width in sorted(results.sizes_hw)[:2])
            raise ValueError(f"its results are of images of {sizes} pixels; expected one size")
    except ValueError as error:
        return _Task(image_id=image_id, path=path, error=str(error))
    return _Task(image_id=image_id, path=path, results=results, remarks=remarks)


def _without_repeats(tasks: Sequence[_Task]) -> Iterator[_Task]:
    """The tasks; those that share an image, or its name, have an error."""
    good = [task for task in tasks if task.error is None]
    ids, paths = Counter(task.image_id for task in good), Counter(task.path for task in good)
    for task in tasks:
        repeated = task.error is None and max(ids[task.image_id], paths[task.path]) > 1
        yield replace(task, error="several tasks are of this image; expected one") if repeated else task


def _choose(task: Mapping[str, Any]) -> tuple[list[Any] | None, list[tuple[str, str]]]:
    """The results that count, or None if nobody knows the labels, and remarks.

    Raises:
        ValueError: the task's annotations or predictions are malformed; the message is the reason.
    """
    annotations = _objects(task, "annotations")
    kept = [annotation for annotation in annotations if not annotation.get("was_cancelled")]
    if kept:
        return _results(_newest(kept), "annotation"), []
    if annotations:
        return None, [(SKIPPED, f"{len(annotations)} annotations were cancelled")]
    predictions = _objects(task, "predictions")
    if not predictions:
        return None, []
    newest = _newest(predictions)
    return _results(newest, "prediction"), [(FROM_PREDICTION, f"of {newest.get('model_version')!s:.80}")]


def _objects(task: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    given = task.get(name) or []
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise ValueError(f"its '{name}' are {given!r:.40}; expected a list of objects")
    return given


def _newest(annotations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The annotation that was changed last; of equals, the last."""

    def changed(annotation: dict[str, Any]) -> str:
        times = [annotation.get(name) for name in ("updated_at", "created_at")]
        return next((time for time in times if isinstance(time, str)), "")

    return max(reversed(annotations), key=changed)


def _results(annotation: Mapping[str, Any], kind: str) -> list[Any]:
    results = annotation.get("result")
    if not isinstance(results, list):
        raise ValueError(f"the 'result' of its {kind} is {results!r:.40}; expected a list")
    return results


def _row(task: _Task, class_of: Mapping[str, int], unannotated: str, any_mask: bool) -> SourceRow:
    results, remarks = task.results, [*task.remarks]
    if task.error is not None or results is None:
        return SourceRow(image_id=task.image_id, path=task.path, error=task.error, remarks=tuple(remarks))
    remarks += results.remarks
    if not results.known:
        remarks.append((NOTHING_READ, f"{len(results.remarks)} results were left out"))
    unknown = not results.classes and (unannotated == "unknown" or not results.known)
    objects = with_indices(results.objects, class_of)
    empty = any_mask and not results.classes and not unknown
    return SourceRow(
        image_id=task.image_id,
        path=task.path,
        image_labels=None if unknown else tuple(sorted(class_of[name] for name in results.classes)),
        stated_hw=next(iter(results.sizes_hw), None),
        annotations=objects if objects or empty else None,
        remarks=tuple(remarks),
    )
