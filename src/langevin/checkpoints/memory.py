"""A model in memory seen as a checkpoint, so that the writers of files can write it."""

from __future__ import annotations

from torch import Tensor, nn

from langevin.checkpoints.checkpoint import Checkpoint, Stored, text_names_of
from langevin.checkpoints.config import Defaults, ModelConfig, ScheduleConfig
from langevin.checkpoints.places import identity
from langevin.checkpoints.tensorfile import MemoryTensors
from langevin.checkpoints.transfer import Part
from langevin.errors import CheckpointError
from langevin.model.bundle import FileLayout, ModelBundle
from langevin.model.text import TextEncoder
from langevin.model.text_transformers import TransformersEncoder
from langevin.networks.controlnet import ControlNet
from langevin.networks.unet import UNet


def config_of(bundle: ModelBundle) -> ModelConfig:
    """Everything about a model but its weights and tokenizer."""
    unet, control = bundle.diffusion.network, bundle.controlnet
    if not isinstance(unet, UNet):
        raise CheckpointError(f"{bundle.info.name}: a {type(unet).__name__} has no place in these formats, only a UNet")
    info = bundle.info
    tower = bundle.text if isinstance(bundle.text, TextEncoder) else None
    return ModelConfig(
        unet=unet.config,
        autoencoder=bundle.autoencoder.network.config if bundle.autoencoder else None,
        text=tower.network.config if tower else None,
        text_layer=tower.layer if tower else -1,
        control=control.config if isinstance(control, ControlNet) else None,
        hint_channels=control.hint_channels if isinstance(control, ControlNet) else 3,
        schedule=ScheduleConfig.of(bundle.diffusion.schedule),
        prediction=bundle.diffusion.prediction,
        learned_variance=bundle.diffusion.learned_variance,
        sigma_data=bundle.diffusion.sigma_data,
        scale_factor=bundle.autoencoder.scale_factor if bundle.autoencoder else 1.0,
        defaults=Defaults(
            width=info.default_size[0],
            height=info.default_size[1],
            steps=info.default_steps,
            guidance=info.default_guidance,
            sampler=info.default_sampler,
        ),
        classes=bundle.classes,
    )


def checkpoint_of(bundle: ModelBundle) -> Checkpoint:
    """The bundle's tensors, not copied, under the names of our networks. A text encoder of the transformers library is
    named, not held."""
    config = config_of(bundle)
    extras = MemoryTensors(bundle.extras)
    encoder = bundle.text.record if isinstance(bundle.text, TransformersEncoder) else None
    return Checkpoint(
        label=bundle.info.name,
        format="memory",
        config=config,
        prediction_from=bundle.info.prediction_from,
        parts={
            name: _part(network) for name, network in bundle.networks().items() if encoder is None or name != "text"
        },
        extras={name: Stored(extras, name) for name in bundle.extras},
        tokenizer=bundle.text.tokenizer if isinstance(bundle.text, TextEncoder) else None,
        encoder=encoder,
        weights=bundle.info.weights,
        layout=bundle.info.layout or FileLayout(text=text_names_of(config.unet)),
    )


def _part(network: nn.Module) -> Part:
    state: dict[str, Tensor] = network.state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    return Part(MemoryTensors(state), identity(state), shapes)
