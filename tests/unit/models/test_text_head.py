"""CLIP's texts as class maps: dense features, words, and training from there, with random weights."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from narrow_clip import BACKBONE, NARROW, write_clip
from torch.nn import functional as F
from torch.testing import assert_close

from ray_wsss.cluster.stages.label import run_label
from ray_wsss.cluster.stages.train_classifier import run_train_classifier
from ray_wsss.config import ClassifierConfig
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.config.resources import Cluster, Resources, Workers
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.errors import UserError
from ray_wsss.models import backbone as backbone_module
from ray_wsss.models.backbone import Backbone
from ray_wsss.models.classifier import Classifier, ClassifierSpec, build_classifier
from ray_wsss.models.clip.text import (
    class_weights,
    embed_classes,
    embed_words,
    load_clip,
    start_from_text,
)
from ray_wsss.models.clip.words import BACKGROUND, ClassWords
from ray_wsss.models.store import load_classifier
from ray_wsss.stages.cams import find_cams

NAMES = ("cat", "potted_plant", "dog")


@pytest.fixture(autouse=True, scope="module")
def narrow_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backbone_module._SMALL, "clip", BACKBONE)
        patch.setitem(backbone_module._SMALL, "gelu", ("vit_base_patch16_clip_224", NARROW))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("clip")
    write_clip(out)
    return out


def build(folder: Path, words: ClassWords | None = None) -> tuple[Classifier, Any, Any]:
    clip, tokenizer = load_clip(str(folder))
    spec = ClassifierSpec(class_names=NAMES, backbone="clip", output_stride=16, feature_dim=24, clip=True)
    model = build_classifier(spec).eval()
    start_from_text(model, clip, tokenizer, words or ClassWords.of(NAMES))
    return model, clip, tokenizer


def values_of(visual: Any, images: torch.Tensor) -> torch.Tensor:
    """Projected values (B, N, E) of the cells by open_clip's own modules: attention of one token alone."""
    tokens = visual._embeds(images)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        tokens = block(tokens)
    alone = last.ln_1(tokens).flatten(0, 1)[:, None]  # attends to itself, so its value is the mixture
    values = last.attn(alone, alone, alone, need_weights=False)[0][:, 0].unflatten(0, tokens.shape[:2])
    return visual.ln_post(values)[:, 1:] @ visual.proj


def normalised(images: torch.Tensor, model: Classifier) -> torch.Tensor:
    backbone = model.backbone
    assert isinstance(backbone, Backbone)
    return (images - backbone.mean) / backbone.std


@torch.no_grad()
def test_cells_have_the_features_of_clip(folder):
    model, clip, _ = build(folder)
    images = torch.rand(2, 3, 48, 48)
    found = model(images).features.flatten(2).transpose(1, 2)
    expected = F.normalize(values_of(clip.visual, normalised(images, model)), dim=-1)
    assert found.std() > 0.05
    assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_words_and_templates_are_averaged(folder):
    """A slow reference, one text at a time; row k belongs to class k."""
    words = ClassWords(
        of_classes=(("cat", "kitten"), ("plant",), ("dog", "puppy", "hound")),
        background=("sky", "road"),
        templates=("a photo of a {}.", "the {} here"),
    )
    model, clip, tokenizer = build(folder, words)

    def of_text(text: str) -> torch.Tensor:
        return F.normalize(clip.encode_text(tokenizer([text]))[0], dim=0)

    def of_word(word: str) -> torch.Tensor:
        return F.normalize(sum(of_text(t.format(word)) for t in words.templates) / 2, dim=0)  # type: ignore

    background = (of_word("sky") + of_word("road")) / 2
    for k, entry in enumerate(words.of_classes):
        row = F.normalize(torch.stack([of_word(word) for word in entry]).sum(0), dim=0)
        expected = clip.logit_scale.exp() * (row - background)
        assert_close(model.to_class_maps.weight[k, :, 0, 0], expected, rtol=1e-4, atol=1e-4)
    one_by_one = open_clip.build_zero_shot_classifier(clip, tokenizer, ["sky", "road"], words.templates)
    assert_close(embed_words(clip, tokenizer, ["sky", "road"], words.templates), one_by_one.T)
    assert_close(embed_classes(clip, tokenizer, words).norm(dim=1), torch.ones(3))


@torch.no_grad()
@pytest.mark.parametrize("cell", [(0, 2), (2, 1), (1, 3)])
def test_the_cam_peaks_where_the_class_is(folder, cell):
    """The class's vector is that of the cell's feature, which is like no other cell's."""
    model, _, _ = build(folder)
    torch.manual_seed(6)
    images = torch.rand(1, 3, 48, 64)
    features = model(images).features[0]
    nothing = torch.zeros(1, 24)  # a background to which every cell is as similar
    model.to_class_maps.weight[1, :, 0, 0] = class_weights(features[None, :, *cell], nothing, 100.0)[0]
    cams = find_cams(model, images, torch.tensor([[0.0, 1.0, 0.0]]), scales=(1.0,), flip=False)
    peak = divmod(int(cams.cam[0].argmax()), 64)
    assert (peak[0] // 16, peak[1] // 16) == cell


def test_training_goes_on_from_there(folder):
    """Every weight that is not frozen has a gradient."""
    model, _, _ = build(folder)
    output = model(torch.rand(2, 3, 48, 48), torch.tensor([[0, 2], [1, 2]]))
    assert output.class_maps is not None
    (output.logits.square().sum() + output.class_maps.square().sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_words_of_a_file(tmp_path):
    path = tmp_path / "words.json"
    path.write_text(json.dumps({"classes": {"cat": ["cat", "kitten"]}, "background": ["sky", "Kitten"]}))
    words = ClassWords.of(NAMES, path)
    assert words.of_classes == (("cat", "kitten"), ("potted plant",), ("dog",))
    assert words.background == ("sky",)
    plain = ClassWords.of(("tree", "cat"))
    assert plain.background == tuple(word for word in BACKGROUND if word != "tree")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable JSON"),
        ('{"words": {}}', "no object with classes, background and templates alone"),
        ('{"classes": {"cta": ["cat"]}}', "has cta, which is no class of the data set; did you mean cat"),
        ('{"classes": {"cat": "cat"}}', "cat in .* is 'cat'; expected a list of one or more texts"),
        ('{"templates": ["a photo"]}', "a template in .* is 'a photo'; expected one {}"),
        ('{"background": ["dog"]}', "has only words of classes"),
    ],
)
def test_wrong_words_are_refused(tmp_path, content, message):
    path = tmp_path / "words.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        ClassWords.of(NAMES, path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-16/nobodys", "is ViT-B-16/nobodys; expected a folder, hf-hub:OWNER/NAME, or MODEL/WEIGHTS"),
        ("EMPTY", "holds no weights; expected a .safetensors file"),
    ],
)
def test_models_that_are_not_there(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        load_clip(str(tmp_path) if name == "EMPTY" else name)


def test_networks_that_do_not_fit(folder):
    clip, tokenizer = load_clip(str(folder))
    spec = ClassifierSpec(class_names=NAMES, backbone="gelu", output_stride=16, feature_dim=24, clip=True)
    with pytest.raises(UserError, match="expected a backbone with quickgelu in its name"):
        start_from_text(build_classifier(spec), clip, tokenizer, ClassWords.of(NAMES))
    spec = ClassifierSpec(
        class_names=NAMES, backbone="resnet_small", output_stride=8, feature_dim=24, clip=True
    )
    with pytest.raises(UserError, match="is resnet_small; expected one of CLIP's image transformers"):
        build_classifier(spec)


def test_no_iterations_need_a_text_head():
    assert ClassifierConfig(max_iters=0, text_head="folder").max_iters == 0
    with pytest.raises(UserError, match=r"max_iters is 0; expected at least 1 without classifier\.text_head"):
        ClassifierConfig(max_iters=0)
    with pytest.raises(UserError, match=r"class_words is words\.json; expected None without"):
        ClassifierConfig(class_words="words.json")


def test_labels_without_training_and_training_after_that(folder, scene_dataset, tmp_path):
    """From class names to label maps; then a training from the texts."""
    changes = {
        "classifier.backbone": "clip",
        "classifier.output_stride": 16,
        "classifier.text_head": str(folder),
        "classifier.batch_size": 4,
        "classifier.lr_warmup_iters": 0,
        "classifier.checkpoint_every": 1,
    }
    recipe = override(PRESETS["demo"], changes)
    names = DatasetMetadata.load(scene_dataset).class_names

    def train(out: Path, iterations: int) -> Classifier:
        settings = {"classifier.max_iters": iterations, "cpm.enabled": False}
        run_train_classifier(
            override(recipe, settings if iterations else {"classifier.max_iters": 0}),
            dataset=scene_dataset,
            out=out,
            workers=Workers(workers=0),
            cluster=Cluster(),
        )
        return load_classifier(out)[0]

    untrained = train(tmp_path / "untrained", 0)
    clip, tokenizer = load_clip(str(folder))
    words = ClassWords.of(names)
    background = embed_words(clip, tokenizer, words.background, words.templates)
    scale = clip.logit_scale.exp().item()
    expected = class_weights(embed_classes(clip, tokenizer, words), background, scale)
    assert_close(untrained.to_class_maps.weight[..., 0, 0], expected)
    report = run_label(
        recipe,
        dataset=scene_dataset,
        classifier=tmp_path / "untrained",
        out=tmp_path / "labels",
        resources=Resources(actors=0),
        cluster=Cluster(),
    )
    assert (report.total.images, report.total.errors) == (14, 0)
    trained = train(tmp_path / "trained", 2)
    assert (trained.to_class_maps.weight - untrained.to_class_maps.weight).abs().max() > 1e-4
