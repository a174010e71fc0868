"""Features of CLIP's image cells in the space of its texts, after MaskCLIP.

Zhou et al., "Extract Free Dense Labels from CLIP" (ECCV 2022): the last layer's attention mixes all cells for
the class token; a cell keeps what lies in it if its own value takes the place of the mixture.
"""

from typing import Any, cast

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from ray_wsss.errors import UserError
from ray_wsss.models.joined_backbone import AnyBackbone
from ray_wsss.models.timm_networks import LayerFeatures


class ValueBlock(nn.Module):
    """The last block of CLIP's image transformer without attention: each token becomes its projected value.

    That is, the value projection and the output projection of the normalised token. Neither the token itself
    nor the block's MLP is added; the released code of MaskCLIP adds both, and ClearCLIP (Lan et al., ECCV
    2024) names the added token, the residual, as the main source of noise.
    """

    def __init__(self, block: Any) -> None:  # timm's Block
        super().__init__()
        self.norm1, self.attn = block.norm1, block.attn

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, D) to projected values (B, N, D)."""
        qkv = self.attn.qkv
        value = slice(2 * qkv.in_features, None)
        bias = qkv.bias[value] if qkv.bias is not None else None
        return self.attn.proj(F.linear(self.norm1(tokens), qkv.weight[value], bias))


def take_values(backbone: AnyBackbone, name: str) -> None:
    """Let a CLIP transformer give the values of its last block, with the final norm (``ln_post``).

    Raises:
        UserError: the backbone isn't CLIP's image transformer, or isn't used to its last block alone.
    """
    network = getattr(backbone, "network", None)
    model = network.model if isinstance(network, LayerFeatures) else None
    if not isinstance(model, VisionTransformer) or isinstance(model.norm_pre, nn.Identity):
        raise UserError(
            f"classifier.backbone is {name}; expected one of CLIP's image transformers with a text head, "
            "such as vit_base_patch16_clip_quickgelu_224"
        )
    assert isinstance(network, LayerFeatures)
    if network.layers != [len(model.blocks) - 1] or len(network.feature_info.channels()) != 1:
        raise UserError("classifier.layers has others than the last; expected -1 with classifier.text_head")
    model.blocks[-1] = ValueBlock(cast(Any, model.blocks[-1]))


def transformer_of(backbone: AnyBackbone) -> VisionTransformer:
    """The image transformer of a backbone that `take_values` has changed."""
    return cast(Any, backbone).network.model
