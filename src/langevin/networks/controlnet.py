"""ControlNet: a trainable copy of the U-Net's way down that steers the U-Net by a picture (Zhang et al. 2023)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from langevin.networks.blocks import zero_init
from langevin.networks.embeddings import TimeEmbed
from langevin.networks.unet import Stage, UNet, UNetConfig, check_context, make_encoder, make_middle


def zero_conv(channels: int) -> nn.Sequential:
    return nn.Sequential(zero_init(nn.Conv2d(channels, channels, 1)))


def make_hint_encoder(hint_channels: int, out_channels: int) -> nn.Sequential:
    """Eight convolutions that take a picture to a feature map of 1/8 its size; the last begins at zero."""
    layers: list[nn.Module] = []
    channels = hint_channels
    for width, stride in [(16, 1), (16, 1), (32, 2), (32, 1), (96, 2), (96, 1), (256, 2)]:
        layers += [nn.Conv2d(channels, width, 3, stride=stride, padding=1), nn.SiLU()]
        channels = width
    return nn.Sequential(*layers, zero_init(nn.Conv2d(channels, out_channels, 3, padding=1)))


class ControlNet(nn.Module):
    """Residuals for each of the U-Net's skip connections and its middle, from the noised latent and a hint."""

    def __init__(self, config: UNetConfig, hint_channels: int = 3, *, pooled: bool = False) -> None:
        """pooled: of each residual there is its mean over all places alone, so that the hint says what, and not where
        (the shuffle ControlNet of version 1.1)."""
        super().__init__()
        # It has neither labels nor an output of its own.
        self.config = config = replace(config, num_classes=None)
        self.hint_channels = hint_channels
        self.pooled = pooled
        self.time_embed = TimeEmbed(config.model_channels, config.emb_channels)
        self.input_blocks, skips = make_encoder(config)
        self.zero_convs = nn.ModuleList(zero_conv(channels) for channels in skips)
        self.input_hint_block = make_hint_encoder(hint_channels, config.model_channels)
        self.middle_block: Stage = make_middle(config)
        self.middle_block_out = zero_conv(skips[-1])

    @classmethod
    def from_unet(cls, unet: UNet, hint_channels: int = 3) -> ControlNet:
        """A ControlNet that begins as a copy of `unet`'s way down and, through zero convolutions, changes nothing."""
        parameter = next(unet.parameters())
        control = cls(unet.config, hint_channels).to(parameter.device, parameter.dtype)
        for name in ("time_embed", "input_blocks", "middle_block"):
            getattr(control, name).load_state_dict(getattr(unet, name).state_dict())
        return control

    def embed_hint(self, hint: Tensor) -> Tensor:
        """The hint's features, B C h w: constant over the sampling steps.

        hint: B 3 8h 8w in [0, 1].
        """
        features: Tensor = self.input_hint_block(hint)
        return features

    def forward(self, z: Tensor, t: Tensor, features: Tensor, *, context: Tensor | None = None) -> list[Tensor]:
        """One residual for each stage of the U-Net's way down, then one for its middle (13 for Stable Diffusion).

        z: B C h w and t: [B] as for the U-Net; features: B C' h w from `embed_hint`; context: B L D. Residuals are
        B C h w for each stage's h and w, or B C 1 1 where they are pooled.
        """
        check_context(self.config, context)
        if features.shape[-2:] != z.shape[-2:]:
            raise ValueError(
                f"hint features of {tuple(features.shape[-2:])} for a latent of {tuple(z.shape[-2:])}: "
                "give a hint of 8 times the latent's height and width"
            )
        emb = self.time_embed(t)  # B E
        residuals = []
        h = z
        for i, (stage, out) in enumerate(zip(self.input_blocks, self.zero_convs, strict=True)):
            h = stage(h, emb, context)
            if i == 0:
                h = h + features
            residuals.append(out(h))
        residuals.append(self.middle_block_out(self.middle_block(h, emb, context)))
        return [residual.mean((2, 3), keepdim=True) for residual in residuals] if self.pooled else residuals
