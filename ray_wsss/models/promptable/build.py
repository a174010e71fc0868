"""Building a promptable model by name."""

from ray_wsss.config import SamConfig
from ray_wsss.models.promptable.frame import InputFrame
from ray_wsss.models.promptable.interface import PromptableModel
from ray_wsss.models.sam.build import build_sam, file_sha256, sam_sha256
from ray_wsss.models.sam_family.hub import hub_frame, hub_sha256, load_hub_model
from ray_wsss.models.sam_family.mobile_sam import build_mobile_sam, mobile_sam_checkpoint


def input_frame(config: SamConfig) -> InputFrame:
    """The square input of a model, known without building it.

    Raises:
        UserError: as `hub_frame`.
    """
    return hub_frame(config) if config.card.hub_id is not None else InputFrame(config.card.side_px)


def build_model(config: SamConfig) -> PromptableModel:
    """Build a model with its weights, on the CPU, in eval mode, without gradients.

    Raises:
        UserError: the weights can't be found, downloaded or read, or do not fit this model.
    """
    if config.card.hub_id is not None:
        return load_hub_model(config)
    return build_mobile_sam(config) if config.name == "mobile_sam" else build_sam(config)


def weights_sha256(config: SamConfig) -> str:
    """Hex SHA-256 of a model's weights. For Meta's SAMs it is known without a download.

    Raises:
        UserError: the file does not exist or can't be read.
    """
    if config.card.hub_id is not None:
        return hub_sha256(config)
    if config.name == "mobile_sam":
        return file_sha256(mobile_sam_checkpoint(config))
    return sam_sha256(config)


def build_decoder(config: SamConfig) -> PromptableModel:
    """Build a model as `build_model` does, but without its image encoder, which has most of its weights."""
    model = build_model(config)
    model.drop_encoder()
    return model
