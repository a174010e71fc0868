"""Building a promptable model by name."""

from ray_wsss.config import SamConfig
from ray_wsss.models.promptable.frame import InputFrame
from ray_wsss.models.promptable.interface import PromptableModel
from ray_wsss.models.sam.build import build_sam, sam_sha256
from ray_wsss.models.sam.tiny import IMAGE_SIZE_PX


def input_frame(config: SamConfig) -> InputFrame:
    """The square input of a model, known without building it."""
    return InputFrame(IMAGE_SIZE_PX if config.name == "tiny" else 1024)


def build_model(config: SamConfig) -> PromptableModel:
    """Build a model with its weights, on the CPU, in eval mode, without gradients.

    Raises:
        UserError: the weights can't be found, downloaded or read, or do not fit this model.
    """
    return build_sam(config)


def weights_sha256(config: SamConfig) -> str:
    """Hex SHA-256 of a model's weights. For Meta's SAMs it is known without a download.

    Raises:
        UserError: the file does not exist or can't be read.
    """
    return sam_sha256(config)


def build_decoder(config: SamConfig) -> PromptableModel:
    """Build a model as `build_model` does, but without its image encoder, which has most of its weights."""
    model = build_model(config)
    model.drop_encoder()
    return model
