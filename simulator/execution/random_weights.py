"""Networks with random weights, the same on every call."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from simulator.execution.checkpoints import filled, unfilled_transformer
from simulator.execution.network import Transformer
from simulator.specs.architecture import Architecture


def random_transformer(arch: Architecture, seed: int, dtype: torch.dtype = torch.float32) -> Transformer:
    """A network on the CPU with the same random weights on every call, rounded to `dtype`.

    Scaled so that the tokens it generates vary, and so that no bias or norm is near its neutral value.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tensor.shape for name, tensor in unfilled_transformer(arch).state_dict().items()}
    weights = {name: _random_tensor(arch, name, shape, generator).to(dtype) for name, shape in shapes.items()}
    return filled(arch, weights)


def _random_tensor(arch: Architecture, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Drawn so that projections double their input, which makes attention sharp, and embeddings stay small,
    also after they are scaled or normalised.

    A tied network whose layers do not outweigh its embedding repeats its last token for ever; one that is
    much sharper than this amplifies rounding until equal plans no longer give equal tokens.
    """
    normal = torch.randn(shape, generator=generator)
    if name.endswith("norm.weight"):
        return (1 + 0.3 * normal) * (0.5 if name == "embed_norm.weight" else 1)
    if name == "embed.weight":
        strength = 0.1 if arch.tie_word_embeddings or arch.norm == "rms" else 0.5
        return strength * normal / (arch.embed_scale or 1)
    if name.endswith("bias") or name == "token_types.weight":
        return 0.1 * normal
    if name.endswith(("o_proj.weight", "down_proj.weight")) and arch.residual.startswith("parallel"):
        return 4 * normal / sqrt(shape[-1])
    if name == "positions.weight":
        return 0.3 * normal
    return 2 * normal / sqrt(shape[-1])
