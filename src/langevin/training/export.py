"""From a run folder to one file that everything else here loads."""

from __future__ import annotations

from pathlib import Path

from langevin.checkpoints.memory import checkpoint_of
from langevin.checkpoints.original import write_original
from langevin.training.data import PictureSet
from langevin.training.text_to_image import TextToImageConfig, load_trained


def export(config: TextToImageConfig, data: PictureSet, run: Path, dtype: str = "F16") -> Path:
    """Write `run/model.safetensors`: averaged weights, single-file layout, architecture and vocabulary as metadata.

    dtype: the safetensors name of the weights' element type. Returns the path.
    """
    path = run / "model.safetensors"
    write_original(checkpoint_of(load_trained(config, data, run)), path, dtype=dtype, overwrite=True)
    return path
