"""Which nodes may have a process: label selectors, and room counted on those nodes alone."""

from collections.abc import Mapping
from typing import Any

import pytest

from ray_wsss.cluster import capacity
from ray_wsss.cluster.capacity import check_resources, live_nodes, room_for_processes
from ray_wsss.config.resources import Resources, Share, Workers, parse_selector
from ray_wsss.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, {}),
        ("market=spot", {"market": "spot"}),
        ("ray.io/accelerator-type=H100,market=!spot", {"ray.io/accelerator-type": "H100", "market": "!spot"}),
        ("zone=in(a,b), market=!in(spot)", {"zone": "in(a,b)", "market": "!in(spot)"}),
    ],
)
def test_selectors_are_in_rays_notation(text: str | None, expected: dict[str, str]) -> None:
    assert parse_selector(text, "--label-selector") == expected
    if text:
        from ray._private.label_utils import validate_label_selector

        assert validate_label_selector(expected) is None  # Ray takes them as they are


@pytest.mark.parametrize("text", ["spot", "market=", "market=in()", "=spot", "a=b,", "a=b c=d"])
def test_what_is_no_selector_is_refused_with_its_flag(text: str) -> None:
    with pytest.raises(UserError, match=r"--decode-label-selector has '.*'; expected KEY=VALUE"):
        Resources(decode_label_selector=text)
    with pytest.raises(UserError, match=r"--worker-label-selector has "):
        Workers(worker_label_selector=text)


def node(cpus: float, **labels: str) -> dict[str, Any]:
    return {"Alive": True, "Resources": {"CPU": cpus, "memory": 64 * 2**30}, "Labels": labels}


SPOT, KEPT, BARE = node(4, market="spot", zone="a"), node(8, market="kept", zone="b"), node(2)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("market=spot", [SPOT]),
        ("market=!spot", [KEPT, BARE]),  # as Ray has it, a node without the label meets this
        ("zone=in(a,b)", [SPOT, KEPT]),
        ("zone=!in(a,c)", [KEPT, BARE]),
        ("zone=a,market=kept", []),
    ],
)
def test_nodes_that_meet_conditions(
    monkeypatch: pytest.MonkeyPatch, condition: str, expected: list[Mapping[str, Any]]
) -> None:
    monkeypatch.setattr(capacity.ray, "nodes", lambda: [SPOT, KEPT, BARE])
    found = live_nodes(parse_selector(condition, "--label-selector"))
    assert found == [node["Resources"] for node in expected]


@pytest.mark.parametrize(
    ("asked", "decode", "room"),
    [
        (None, None, 13),  # 14 CPUs, one of which decodes
        ("market=spot", None, 4),  # others decode
        ("market=spot", "market=spot", 3),
        ("market=!spot", "market=kept", 9),  # eight and two, and one of the eight decodes
        ("market=spot", "zone=c", 0),  # nobody may decode
    ],
)
def test_room_is_counted_where_processes_may_be(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, decode: str | None, room: int
) -> None:
    monkeypatch.setattr(capacity.ray, "nodes", lambda: [SPOT, KEPT, BARE])
    resources = Resources(actors=20, actor_label_selector=asked, decode_label_selector=decode)
    assert room_for_processes(20, resources.share, resources.decode_share) == room


def test_the_refusal_names_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity.ray, "nodes", lambda: [KEPT])
    share = Share(cpus=1, labels={"market": "spot"})
    with pytest.raises(UserError, match=r"a pool: 2 x 1 CPU, .* on nodes with market=spot are asked for"):
        check_resources(count=2, share=share, what="a pool")


@pytest.mark.parametrize(("gpus", "advised"), [(1, False), (0, True)])
def test_the_refusal_says_what_to_do_without_gpus(
    monkeypatch: pytest.MonkeyPatch, gpus: int, advised: bool
) -> None:
    one = {"Alive": True, "Resources": {"CPU": 8, "GPU": gpus, "memory": 64 * 2**30}, "Labels": {}}
    monkeypatch.setattr(capacity.ray, "nodes", lambda: [one])
    with pytest.raises(UserError) as refusal:
        check_resources(count=2, share=Share(cpus=1, gpus=1), what="a pool")
    advice = "leave out the flag that asks for GPUs, and CPUs do the work"
    assert str(refusal.value).endswith(advice) == advised
