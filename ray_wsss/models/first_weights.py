"""The classifier as its training begins, and a hash of weights."""

import hashlib
from dataclasses import replace

import torch
from torch import nn

from ray_wsss.config import ClassifierConfig
from ray_wsss.models.classifier import Classifier, ClassifierSpec, build_classifier
from ray_wsss.models.clip.text import embed_dim_of, load_clip, start_from_text
from ray_wsss.models.clip.words import ClassWords
from ray_wsss.storage import parse_path


def begin_classifier(
    config: ClassifierConfig, class_names: tuple[str, ...]
) -> tuple[Classifier, ClassifierSpec]:
    """The network as its training begins: with ImageNet weights, or with CLIP's and its texts.

    Random weights follow from the seed; the global generator is seeded with it.
    """
    torch.manual_seed(config.seed)
    spec = ClassifierSpec.of(config, class_names)
    if config.text_head is None:
        pretrained, checkpoint = config.pretrained, config.backbone_checkpoint
        return build_classifier(spec, pretrained=pretrained, checkpoint=checkpoint), spec
    path = parse_path(config.class_words) if config.class_words is not None else None
    words = ClassWords.of(class_names, path)
    clip, tokenizer = load_clip(config.text_head)
    spec = replace(spec, feature_dim=embed_dim_of(clip))
    model = build_classifier(spec)
    start_from_text(model, clip, tokenizer, words)
    return model, spec


def weights_hash(network: nn.Module) -> str:
    """Hex SHA-256 of a network's weights and statistics, with their names."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
