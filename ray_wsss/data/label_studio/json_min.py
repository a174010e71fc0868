"""Label Studio's export JSON-MIN: a flat object for each annotation, with a field for each control."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ray_wsss.data.coco.values import as_id
from ray_wsss.data.label_studio.results import REGIONS

_OF_ANNOTATION = ("annotator", "annotation_id", "created_at", "updated_at", "lead_time")


def is_json_min(content: Sequence[Any]) -> bool:
    """Tell whether a list of tasks is JSON-MIN: objects without 'data', annotations by their own fields."""
    records = [record for record in content if isinstance(record, dict)]
    return any("annotation_id" in r for r in records) and not any("data" in r for r in records)


def to_tasks(records: Sequence[Any], controls: Collection[str]) -> list[Any]:
    """Tasks as the export JSON has them; the annotations of an ``id`` become those of one task.

    Args:
        controls: names of the controls; all other fields are data of the task. The file doesn't tell them:
            a single choice is a bare word, as text in the data is.
    """
    tasks: dict[Any, Any] = {}
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            tasks[None, index] = record
            continue
        own = as_id(record.get("id"))
        others = {*controls, *_OF_ANNOTATION, "id"}
        data = {name: value for name, value in record.items() if name not in others}
        task = tasks.setdefault((own, index if own is None else None), {"data": data, "annotations": []})
        results = [r for name in controls for r in _results(name, record.get(name))]
        times = {name: record.get(name) for name in ("created_at", "updated_at")}
        task["annotations"].append({"result": results} | times)
    return list(tasks.values())


def _results(control: str, value: Any) -> list[dict[str, Any]]:
    """Results of a control, of which its field holds the values: one alone or a list."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [{"from_name": control, **_result(each)} for each in values]


def _result(value: Any) -> Mapping[str, Any]:
    if isinstance(value, str):
        return {"type": "choices", "value": {"choices": [value]}}
    if not isinstance(value, dict):
        return {"type": None, "value": value}
    sizes = {name: value.get(name) for name in ("original_width", "original_height")}
    return {
        "type": next((kind for kind in ("choices", *REGIONS) if kind in value), None),
        "value": value,
    } | sizes
