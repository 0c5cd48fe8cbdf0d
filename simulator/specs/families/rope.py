"""Rotary settings: `rope_theta` and `rope_scaling` in older files, `rope_parameters` in newer ones.

What each kind of scaling computes, and its defaults, are those of `modeling_rope_utils.py` of Hugging Face
transformers.
"""

import math
from collections.abc import Callable, Mapping

from simulator.specs.architecture import LinearRope, Llama3Rope, Rope, YarnRope
from simulator.specs.config_fields import ConfigFields

Scaling = LinearRope | Llama3Rope | YarnRope


def read_rope(
    fields: ConfigFields,
    head_dim: int,
    *,
    theta: float = 10_000.0,
    share: float | None = None,
    interleaved: bool = False,
    width_key: str | None = None,
) -> Rope:
    """The one rotary embedding of a configuration; `theta` and `share` are its family's defaults, `width_key`
    the field that says how wide heads are, if it is none of the usual.

    `share` is that of the channels that turn; None where the family has no such setting.
    """
    settings = rope_settings(fields)
    if any(isinstance(value, dict) for value in settings.data.values()):
        settings.complain("full_attention", "settings by kind of layer are not modelled for this family")
    original = "original_max_position_embeddings"
    fields.refuse_unless(
        original, settings.get(original), "transformers would prefer it to that of rope_scaling"
    )
    theta = rope_theta(fields, default=theta)
    rotary_dim = _rotary_dim(fields, settings, head_dim, share, width_key)
    return rope_from(settings, rotary_dim, theta=theta, interleaved=interleaved)


def rope_theta(fields: ConfigFields, default: float, key: str = "rope_theta") -> float:
    """The base of the frequencies, which fall from channel to channel."""
    theta = fields.number(key, default=default)
    if fields.get(key) is not None and theta <= 1 and fields.is_right(key):
        fields.complain(key, "must be above 1")
    return theta


def rope_settings(fields: ConfigFields) -> ConfigFields:
    """Where the settings stand; `rope_scaling` wins where a file has both."""
    return fields.section("rope_scaling" if fields.get("rope_scaling") else "rope_parameters")


def rope_from(settings: ConfigFields, rotary_dim: int, *, theta: float, interleaved: bool = False) -> Rope:
    """The rotary embedding that one mapping of settings describes."""
    return Rope(
        theta=rope_theta(settings, default=theta),
        rotary_dim=rotary_dim,
        interleaved=interleaved,
        scaling=_scaling(settings),
    )


def yarn_scale(factor: float, weight: float = 1.0) -> float:
    """By how much attention is sharpened when contexts grow by `factor`; `weight` is an `mscale`.

    >>> round(yarn_scale(40.0, 0.707), 4)
    1.2608
    """
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _rotary_dim(
    fields: ConfigFields, settings: ConfigFields, head_dim: int, share: float | None, width_key: str | None
) -> int:
    """How many channels of a head turn: pairs, and no more than there are."""
    key = "partial_rotary_factor"
    if share is None:
        for place in (fields, settings):
            place.refuse_unless(key, 1, "partial rotary embeddings are not modelled for this family")
    share = settings.number(key, default=fields.number(key, default=share or 1.0))
    rotary_dim = int(head_dim * share)
    if rotary_dim > head_dim:
        fields.complain(key, "must be at most 1")
    if (rotary_dim % 2 or not rotary_dim) and not fields.problems:
        blamed = width_key or ("num_attention_heads" if fields.get("head_dim") is None else "head_dim")
        what = f"makes heads {head_dim} wide" if share == 1 else f"makes {rotary_dim} channels turn"
        fields.complain(blamed, f"{what}; rotary embeddings need an even width")
    return rotary_dim


def _scaling(settings: ConfigFields) -> Scaling | None:
    """How frequencies are stretched for contexts longer than those of training."""
    is_older = settings.get("rope_type") is None and settings.get("type") is not None
    kind = settings.word("type" if is_older else "rope_type", _SCALINGS, default="default")
    return _SCALINGS[kind](settings)


def _linear(settings: ConfigFields) -> LinearRope:
    return LinearRope(settings.number("factor"))


def _llama3(settings: ConfigFields) -> Llama3Rope:
    return Llama3Rope(
        factor=settings.number("factor"),
        low_freq_factor=settings.number("low_freq_factor"),
        high_freq_factor=settings.number("high_freq_factor"),
        original_max_position_embeddings=settings.size("original_max_position_embeddings"),
    )


def _yarn(settings: ConfigFields) -> YarnRope:
    factor = settings.number("factor")
    return YarnRope(
        factor=factor,
        beta_fast=settings.number("beta_fast", default=32.0),
        beta_slow=settings.number("beta_slow", default=1.0),
        original_max_position_embeddings=settings.size("original_max_position_embeddings"),
        truncate=settings.flag("truncate", default=True),
        attention_factor=settings.number("attention_factor", default=_attention_factor(settings, factor)),
    )


def _attention_factor(settings: ConfigFields, factor: float) -> float:
    """The ratio of two scales where both weights are given, else the plain one."""
    if settings.get("mscale") and settings.get("mscale_all_dim"):
        whole = yarn_scale(factor, settings.number("mscale_all_dim"))
        return yarn_scale(factor, settings.number("mscale")) / whole
    return yarn_scale(factor)


def _none(settings: ConfigFields) -> None:
    """`dynamic` stretches only beyond `max_position_embeddings`, which is as far as we go."""


_SCALINGS: Mapping[str, Callable[[ConfigFields], Scaling | None]] = {
    "default": _none,
    "linear": _linear,
    "dynamic": _none,
    "llama3": _llama3,
    "yarn": _yarn,
}
