"""The transformer that every plan is carried out on: its operators as functions, and the network they make.

A batch is ragged: the tokens of all its sequences stand in one flat row, without batch dimension or padding.
A tensor-parallel shard calls the same operators with fewer rows or columns of the weights.

Shapes are written as suffixes:

    t  tokens of the step              e  embedding channels (hidden_size)
    n  new tokens of one sequence      f  feed-forward channels
    s  keys of one sequence            i, o  inputs and outputs of a linear map
    v  rows of the vocabulary          h  query heads
    p  rows of the position table      g  key/value heads, each shared by a group of r query heads
    d  channels of one head            m  queries of one group: r * n
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import pi, sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulator.specs.model import Architecture

# --- operators ----------------------------------------------------------------------------------------------


def embed(ids_t: Tensor, table_ve: Tensor, first_row: int = 0) -> Tensor:
    """The table's row for each id; zeros for an id that another shard of the vocabulary holds."""
    row_t = ids_t - first_row
    elsewhere_t = (row_t < 0) | (row_t >= table_ve.shape[0])
    x_te = functional.embedding(row_t.masked_fill(elsewhere_t, 0), table_ve)
    return x_te.masked_fill(elsewhere_t[:, None], 0)


def learned_positions(x_te: Tensor, positions_t: Tensor, table_pe: Tensor) -> Tensor:
    """Add to each token the row of its position."""
    return x_te + functional.embedding(positions_t, table_pe)


def normalise(arch: Architecture, x_te: Tensor, weight_e: Tensor, bias_e: Tensor | None = None) -> Tensor:
    """Each token scaled to unit root mean square, or to zero mean and unit variance, then by the weight."""
    if arch.norm == "rms":
        return functional.rms_norm(x_te, weight_e.shape, weight_e, arch.norm_eps)
    return functional.layer_norm(x_te, weight_e.shape, weight_e, bias_e, arch.norm_eps)


def add_normalise(
    arch: Architecture, x_te: Tensor, update_te: Tensor, weight_e: Tensor, bias_e: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The residual stream with the update added, and that sum normalised."""
    sum_te = x_te + update_te
    return sum_te, normalise(arch, sum_te, weight_e, bias_e)


def linear(x_ti: Tensor, weight_oi: Tensor, bias_o: Tensor | None = None) -> Tensor:
    """One matrix product. Of shards that are summed afterwards only one may add the bias."""
    return functional.linear(x_ti, weight_oi, bias_o)


def rotate(arch: Architecture, q_thd: Tensor, positions_t: Tensor) -> Tensor:
    """Rotary position embedding of queries or keys; unchanged where positions are learned.

    Channel i turns with channel i + d/2, as in Hugging Face's checkpoints (Su et al. 2021, arXiv:2104.09864,
    pairs 2i and 2i + 1). A broadcast product, because Hugging Face's matrix product would count as FLOPs.
    """
    if arch.positions != "rope":
        return q_thd
    wide = _wide(q_thd.dtype)
    angle_td = positions_t.to(wide)[:, None] * rotary_frequencies(arch, wide, q_thd.device)
    cos_t1d, sin_t1d = angle_td.cos()[:, None], angle_td.sin()[:, None]
    first_thd, second_thd = q_thd.to(wide).chunk(2, dim=-1)
    turned = (first_thd * cos_t1d - second_thd * sin_t1d, second_thd * cos_t1d + first_thd * sin_t1d)
    return torch.cat(turned, dim=-1).to(q_thd.dtype)


def rotary_frequencies(arch: Architecture, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Radians per position for each of the d/2 channel pairs.

    Llama 3.1 divides by `factor` the rate of pairs that turn fewer than `low_freq_factor` times over the
    original context, leaves those that turn more than `high_freq_factor` times, and blends in between.
    """
    exponent_d = torch.arange(0, arch.head_dim, 2, dtype=dtype, device=device) / arch.head_dim
    frequency_d = 1.0 / arch.rope_theta**exponent_d
    scaling = arch.rope_scaling
    if scaling is None:
        return frequency_d
    turns_d = scaling.original_max_position_embeddings * frequency_d / (2 * pi)
    band = scaling.high_freq_factor - scaling.low_freq_factor
    kept_d = ((turns_d - scaling.low_freq_factor) / band).clamp(0, 1)
    return kept_d * frequency_d + (1 - kept_d) * frequency_d / scaling.factor


def attention_one(q_nhd: Tensor, k_sgd: Tensor, v_sgd: Tensor, context: int) -> Tensor:
    """Causal attention `[n, h, d]` of one sequence, whose n new tokens follow `context` older ones.

    The rectangle is computed whole and its future masked, so torch counts 4 * h * d * n * s FLOPs everywhere.
    Scores take h * n * s numbers: meant to verify plans on small networks, not to serve long prompts.
    """
    (n, h, d), (s, g, _) = q_nhd.shape, k_sgd.shape
    assert s == context + n, f"{s} keys for {context} older and {n} new tokens"
    r = h // g
    q_gmd = q_nhd.reshape(n, g, r, d).permute(1, 2, 0, 3).flatten(1, 2)
    scores_gms = q_gmd @ k_sgd.permute(1, 2, 0) / sqrt(d)
    position_s = torch.arange(s, device=q_nhd.device)
    future_ns = position_s > position_s[context:, None]
    scores_grns = scores_gms.view(g, r, n, s).masked_fill(future_ns, float("-inf"))
    share_gms = scores_grns.softmax(dim=-1, dtype=_wide(v_sgd.dtype)).to(v_sgd.dtype).flatten(1, 2)
    out_gmd = share_gms @ v_sgd.transpose(0, 1)
    return out_gmd.view(g, r, n, d).permute(2, 0, 1, 3).flatten(1, 2)


def activate(arch: Architecture, gate_up_tf: Tensor) -> Tensor:
    """The feed-forward non-linearity; where it is gated, the first half of the channels gates the second."""
    function = ACTIVATIONS[arch.activation]
    if not arch.gated_mlp:
        return function(gate_up_tf)
    gate_tf, up_tf = gate_up_tf.chunk(2, dim=-1)
    return function(gate_tf) * up_tf


def sample(logits_tv: Tensor) -> Tensor:
    """The likeliest id of each row; the first of equals."""
    return logits_tv.argmax(dim=-1)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_new": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
}


def _wide(dtype: torch.dtype) -> torch.dtype:
    """At least float32: angles and exponentials lose too much in half precision."""
    return torch.promote_types(dtype, torch.float32)


# --- the network --------------------------------------------------------------------------------------------


class Norm(nn.Module):
    """The weight, and for a layer norm the bias, of one normalisation."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        self.weight = nn.Parameter(torch.ones(arch.hidden_size))
        self.bias = nn.Parameter(torch.zeros(arch.hidden_size)) if arch.norm == "layer" else None

    def forward(self, x_te: Tensor) -> Tensor:
        return normalise(self.arch, x_te, self.weight, self.bias)


class Layer(nn.Module):
    """Attention, then feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        width, inner = arch.hidden_size, arch.intermediate_size
        query_width = arch.num_attention_heads * arch.head_dim
        key_width = arch.num_key_value_heads * arch.head_dim
        self.attn_norm = Norm(arch)
        self.q_proj = nn.Linear(width, query_width, bias=arch.qkv_bias)
        self.k_proj = nn.Linear(width, key_width, bias=arch.qkv_bias)
        self.v_proj = nn.Linear(width, key_width, bias=arch.qkv_bias)
        self.o_proj = nn.Linear(query_width, width, bias=arch.output_bias)
        self.mlp_norm = Norm(arch)
        self.gate_proj = nn.Linear(width, inner, bias=arch.mlp_bias) if arch.gated_mlp else None
        self.up_proj = nn.Linear(width, inner, bias=arch.mlp_bias)
        self.down_proj = nn.Linear(inner, width, bias=arch.mlp_bias)

    def forward(self, x_te: Tensor, positions_t: Tensor) -> Tensor:
        x_te = x_te + self.attend(self.attn_norm(x_te), positions_t)
        return x_te + self.feed_forward(self.mlp_norm(x_te))

    def attend(self, x_te: Tensor, positions_t: Tensor) -> Tensor:
        """The update from every earlier token and the token itself."""
        q_thd, k_tgd, v_tgd = (
            project(x_te).unflatten(1, (-1, self.arch.head_dim))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q_thd, k_tgd = rotate(self.arch, q_thd, positions_t), rotate(self.arch, k_tgd, positions_t)
        update_te: Tensor = self.o_proj(attention_one(q_thd, k_tgd, v_tgd, context=0).flatten(1))
        return update_te

    def feed_forward(self, x_te: Tensor) -> Tensor:
        """The update from each token alone."""
        gate_up_tf = self.up_proj(x_te)
        if self.gate_proj is not None:
            gate_up_tf = torch.cat((self.gate_proj(x_te), gate_up_tf), dim=-1)
        update_te: Tensor = self.down_proj(activate(self.arch, gate_up_tf))
        return update_te


class Transformer(nn.Module):
    """The network as one module: one sequence, one device, no cache. Every placed run must agree with it."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        self.embed = nn.Embedding(arch.vocab_size, arch.hidden_size)
        learned = arch.positions == "learned"
        self.positions = nn.Embedding(arch.max_position_embeddings, arch.hidden_size) if learned else None
        self.layers = nn.ModuleList(Layer(arch) for _ in range(arch.num_hidden_layers))
        self.final_norm = Norm(arch)
        tied = arch.tie_word_embeddings
        self.lm_head = None if tied else nn.Linear(arch.hidden_size, arch.vocab_size, bias=False)
        self.requires_grad_(False)

    def forward(self, ids_t: Tensor, logits: int | None = None) -> Tensor:
        """The logits `[t, v]` after each token of one sequence, or after its last `logits` tokens."""
        positions_t = torch.arange(len(ids_t), device=ids_t.device)
        x_te = embed(ids_t, self.embed.weight)
        if self.positions is not None:
            x_te = learned_positions(x_te, positions_t, self.positions.weight)
        for layer in self.layers:
            x_te = layer(x_te, positions_t)
        kept_te = x_te if logits is None else x_te[len(ids_t) - logits :]
        head = self.embed if self.lm_head is None else self.lm_head
        return linear(self.final_norm(kept_te), head.weight)

    def generate(self, ids: Sequence[int], count: int) -> tuple[list[int], Tensor]:
        """The `count` likeliest ids to follow, and the logits `[count, v]` each was the largest of.

        Every id recomputes the whole sequence, so no cache can be wrong.
        """
        sequence, rows = list(ids), []
        for _ in range(count):
            rows.append(self(torch.tensor(sequence, device=self.embed.weight.device), logits=1))
            sequence.append(int(sample(rows[-1])))
        return sequence[len(ids) :], torch.cat(rows)


# --- weights ------------------------------------------------------------------------------------------------


def random_transformer(arch: Architecture, seed: int, dtype: torch.dtype = torch.float32) -> Transformer:
    """A network on the CPU with the same random weights on every call, rounded to `dtype`.

    Scaled so that the tokens it generates vary, and so that no bias or norm is near its neutral value.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tensor.shape for name, tensor in unfilled_transformer(arch).state_dict().items()}
    weights = {name: _random_tensor(name, shape, generator).to(dtype) for name, shape in shapes.items()}
    return _filled(arch, weights)


def _random_tensor(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Drawn so that projections double their input, which makes attention sharp, and embeddings stay small.

    A tied network whose layers do not outweigh its embedding repeats its last token for ever; one that is
    much sharper than this amplifies rounding until equal plans no longer give equal tokens.
    """
    normal = torch.randn(shape, generator=generator)
    if name.endswith("norm.weight"):
        return 1 + 0.3 * normal
    if name.endswith("bias") or name == "embed.weight":
        return 0.1 * normal
    if name == "positions.weight":
        return 0.3 * normal
    return 2 * normal / sqrt(shape[-1])


def unfilled_transformer(arch: Architecture) -> Transformer:
    """The network on the meta device: shapes without storage, whatever its size."""
    with torch.device("meta"):
        return Transformer(arch)


def load_hugging_face_state(arch: Architecture, state_dict: Mapping[str, Tensor]) -> Transformer:
    """The network with published weights, of the dtype and device they come in.

    Raises ValueError for a published tensor that the architecture has no place for, or the reverse: a bias
    left out would otherwise only show as slightly wrong tokens.
    """
    convert, prefix = (_from_gpt2, "transformer.") if arch.family == "gpt2" else (_from_llama, "model.")
    ours: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        is_buffer = name.endswith(("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias"))
        is_second_copy = name == "lm_head.weight" and arch.tie_word_embeddings
        if not (is_buffer or is_second_copy):
            ours |= convert(name.removeprefix(prefix), tensor)
    return _filled(arch, ours)


def _from_llama(name: str, tensor: Tensor) -> dict[str, Tensor]:
    path, leaf = name.rsplit(".", 1)
    layer, part = _split_layer(path, "layers.")
    return {f"{layer}{LLAMA_PARTS.get(part, part)}.{leaf}": tensor}


def _from_gpt2(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """GPT-2 stores its projections as [in, out], and queries, keys and values as one."""
    path, leaf = name.rsplit(".", 1)
    layer, part = _split_layer(path, "h.")
    if ".c_" in part:
        tensor = tensor.t().contiguous()
    if part == "attn.c_attn":
        thirds = zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True)
        return {f"{layer}{projection}.{leaf}": third for projection, third in thirds}
    return {f"{layer}{GPT2_PARTS.get(part, part)}.{leaf}": tensor}


def _split_layer(path: str, prefix: str) -> tuple[str, str]:
    """`layers.3.mlp.up_proj` -> (`layers.3.`, `mlp.up_proj`); the first is empty outside the layers.

    >>> _split_layer("h.3.mlp.c_fc", prefix="h.")
    ('layers.3.', 'mlp.c_fc')
    """
    if not path.startswith(prefix):
        return "", path
    index, part = path.removeprefix(prefix).split(".", 1)
    return f"layers.{index}.", part


def _filled(arch: Architecture, state: Mapping[str, Tensor]) -> Transformer:
    network = unfilled_transformer(arch)
    needed = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = sorted(name for name in given.keys() | needed.keys() if given.get(name) != needed.get(name))
    if wrong:
        lines = [f"{name}: {given.get(name, 'absent')}, needs {needed.get(name, 'none')}" for name in wrong]
        raise ValueError(f"these weights are not those of {arch.name}:\n" + "\n".join(lines))
    network.load_state_dict(state, assign=True)
    return network.eval()


LLAMA_PARTS = {
    "embed_tokens": "embed",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "o_proj",
    "post_attention_layernorm": "mlp_norm",
    "mlp.gate_proj": "gate_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "down_proj",
    "norm": "final_norm",
}

GPT2_PARTS = {
    "wte": "embed",
    "wpe": "positions",
    "ln_1": "attn_norm",
    "attn.c_proj": "o_proj",
    "ln_2": "mlp_norm",
    "mlp.c_fc": "up_proj",
    "mlp.c_proj": "down_proj",
    "ln_f": "final_norm",
}
