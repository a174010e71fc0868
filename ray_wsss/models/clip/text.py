"""Class maps from CLIP's texts: what a class's cells look like, before any training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from ray_wsss.errors import UserError
from ray_wsss.models.backbone_weights import load_weights
from ray_wsss.models.classifier import Classifier
from ray_wsss.models.clip.dense import transformer_of
from ray_wsss.models.clip.words import ClassWords

_AT_ONCE = 256


def load_clip(name: str) -> tuple[Any, Any]:
    """CLIP and its tokenizer, on the CPU, in eval mode, by open_clip; pickled code is never run.

    Args:
        name: ``MODEL/WEIGHTS`` of open_clip (``open_clip.list_pretrained()``), ``hf-hub:OWNER/NAME``, or a
            folder with ``open_clip_config.json`` and the weights.

    Raises:
        UserError: open_clip isn't installed, doesn't know the name, or can't load the weights.
    """
    try:
        import open_clip
    except ImportError:
        raise UserError(
            "classifier.text_head needs open_clip, which is not installed: pip install -e '.[clip]'"
        ) from None
    model, weights = name, None
    if Path(name).is_dir():
        model = f"local-dir:{Path(name).absolute()}"
        if not [path for path in Path(name).iterdir() if path.suffix in (".safetensors", ".bin", ".pth")]:
            raise UserError(
                f"classifier.text_head {name} holds no weights; expected a .safetensors file in it"
            )
    elif not name.startswith("hf-hub:"):
        model, _, weights = name.partition("/")
        if (model, weights) not in open_clip.list_pretrained():
            raise UserError(
                f"classifier.text_head is {name}; expected a folder, hf-hub:OWNER/NAME, or MODEL/WEIGHTS of "
                "open_clip, such as ViT-B-16-quickgelu/openai"
            )
    try:
        clip = open_clip.create_model(model, pretrained=weights)
        return clip.eval(), open_clip.get_tokenizer(model)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"classifier.text_head {name} can't be loaded: {reason}") from error


@torch.no_grad()
def embed_words(
    clip: Any, tokenizer: Any, words: Sequence[str], templates: Sequence[str]
) -> Float[Tensor, "N E"]:
    """Unit vectors of words: the mean of the unit vectors of all templates, normalised (CLIP's own way)."""
    texts = [template.format(word) for word in words for template in templates]
    parts = [
        F.normalize(clip.encode_text(tokenizer(texts[at : at + _AT_ONCE])), dim=-1)
        for at in range(0, len(texts), _AT_ONCE)
    ]
    means = torch.cat(parts).unflatten(0, (len(words), len(templates))).mean(1)
    return F.normalize(means, dim=-1)


def embed_classes(clip: Any, tokenizer: Any, words: ClassWords) -> Float[Tensor, "C E"]:
    """Unit vectors of classes: the mean of the unit vectors of a class's words, normalised."""
    rows = [embed_words(clip, tokenizer, entry, words.templates).mean(0) for entry in words.of_classes]
    return F.normalize(torch.stack(rows), dim=-1)


def class_weights(
    classes: Float[Tensor, "C E"], background: Float[Tensor, "N E"], scale: float
) -> Float[Tensor, "C E"]:
    """Weights of the class maps: CLIP's scale times the class's vector minus the background's mean vector.

    A cell's class map is then how much more similar the cell is to the class than to the background's words
    on average, and 0 and below is no activation. Cosines alone are all above 0 and hardly differ. CLIP-ES
    sets the background's words against the classes in a softmax; a difference is linear, as S2C's class maps
    are.
    """
    return scale * (classes - background.mean(0))


def embed_dim_of(clip: Any) -> int:
    """Length of CLIP's vectors."""
    return clip.visual.output_dim


def start_from_text(model: Classifier, clip: Any, tokenizer: Any, words: ClassWords) -> None:
    """Copy CLIP into a classifier: image transformer, visual projection, and texts as class maps.

    Raises:
        UserError: CLIP's image transformer is another than the classifier's backbone.
    """
    from timm.models.vision_transformer import checkpoint_filter_fn

    visual, transformer = clip.visual, transformer_of(model.backbone)
    if not hasattr(visual, "conv1") or not isinstance(getattr(visual, "proj", None), Tensor):
        raise UserError("the image side of classifier.text_head is no CLIP transformer of open_clip")
    _check_activation(visual, transformer)
    state: dict[str, Tensor] = checkpoint_filter_fn(
        {f"visual.{name}": value for name, value in visual.state_dict().items()}, transformer
    )
    load_weights(transformer, state, "the image side of classifier.text_head")
    background = embed_words(clip, tokenizer, words.background, words.templates)
    rows = class_weights(embed_classes(clip, tokenizer, words), background, clip.logit_scale.exp().item())
    with torch.no_grad():
        model.to_features.weight.copy_(visual.proj.T[:, :, None, None])
        model.to_class_maps.weight.copy_(rows[:, :, None, None])


def _check_activation(visual: Any, transformer: VisionTransformer) -> None:
    """Raise UserError if only one of the networks has CLIP's quick approximation of GELU."""
    blocks: Any = transformer.blocks
    if len(blocks) == 1:
        return
    theirs = type(visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    ours = type(blocks[0].mlp.act).__name__ == "QuickGELU"
    if ours != theirs:
        hint = "with" if theirs else "without"
        raise UserError(
            f"classifier.text_head's network has {'Quick' if theirs else ''}GELU and classifier.backbone has "
            f"{'Quick' if ours else ''}GELU; expected a backbone {hint} quickgelu in its name"
        )
