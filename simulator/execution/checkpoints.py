"""Published weights of every family, under our names.

Hugging Face names the same thing differently from family to family, fuses projections in several orders and
stores some matrices the other way round. Here a published tensor becomes one or more of ours. Orders of
fused projections are those of the modelling code in `transformers`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from simulator.execution.network import Transformer
from simulator.specs.architecture import Architecture, Attention, LinearAttention

LAYER = re.compile(r"^(?:.*\.)?(?:layers|layer|h)\.(\d+)\.(.+)$")
EXPERT = re.compile(r"^(.*experts)\.(\d+)\.(.+)$")

Named = Iterator[tuple[str, Tensor]]


def load_hugging_face_state(arch: Architecture, state: Mapping[str, Tensor]) -> Transformer:
    """The network with published weights, of the dtype and device they come in.

    Raises ValueError for a published tensor that the architecture has no place for, or the reverse: a bias
    left out would otherwise only show as slightly wrong tokens.
    """
    ours: dict[str, Tensor] = {}
    single: defaultdict[str, dict[int, Tensor]] = defaultdict(dict)
    for name, tensor in state.items():
        if _is_left_out(arch, name):
            continue
        for new_name, part in _converted(arch, name, tensor):
            expert = EXPERT.match(new_name)
            if expert is not None:
                single[f"{expert[1]}.{expert[3]}"][int(expert[2])] = part
            else:
                ours[new_name] = part
    ours |= {name: torch.stack([parts[i] for i in sorted(parts)]) for name, parts in single.items()}
    return filled(arch, ours)


def unfilled_transformer(arch: Architecture) -> Transformer:
    """The network on the meta device: shapes without storage, whatever its size."""
    with torch.device("meta"):
        return Transformer(arch)


def filled(arch: Architecture, state: Mapping[str, Tensor]) -> Transformer:
    """The network with these weights, which are to be all of its own and no others."""
    network = unfilled_transformer(arch)
    needed = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = sorted(name for name in given.keys() | needed.keys() if given.get(name) != needed.get(name))
    if wrong:
        lines = [f"{name}: {given.get(name, 'absent')}, needs {needed.get(name, 'none')}" for name in wrong]
        raise ValueError(f"these weights are not those of {arch.name}:\n" + "\n".join(lines))
    network.load_state_dict(state, assign=True)
    return network.eval()


def _is_left_out(arch: Architecture, name: str) -> bool:
    """Buffers, second copies, heads for other tasks, and layers that only predict further ahead."""
    buffers = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias",
               ".attention.masked_bias", "position_ids")  # fmt: skip
    layer = LAYER.match(name)
    predicts_further = arch.family in ("deepseek_v3", "kimi_k2")
    beyond = predicts_further and layer is not None and int(layer[1]) >= arch.num_hidden_layers
    second_copy = arch.tie_word_embeddings and re.sub(r".*\.", "", name.removesuffix(".weight")) in HEADS
    part = name.removeprefix("bert.").removeprefix("roberta.")
    other_task = arch.is_encoder and part.startswith(("pooler.", "cls.", "lm_head."))
    return name.endswith(buffers) or beyond or second_copy or other_task or name.startswith("mtp.")


def _converted(arch: Architecture, name: str, tensor: Tensor) -> Named:
    """Our name for a published tensor, or several names and the parts that go by them."""
    found = LAYER.match(name)
    path, leaf = _path_and_leaf(found[2] if found else name)
    if found is None:
        part = path.removeprefix("language_model.").split(".", 1)[-1] if "." in path else path
        yield f"{OUTSIDE.get(part, OUTSIDE.get(path, path))}.{leaf}", _norm_weight(arch, path, tensor)
        return
    prefix, layer = f"layers.{found[1]}.", int(found[1])
    if layer >= arch.num_hidden_layers:
        yield f"{prefix}{found[2]}", tensor  # there is no place for it, and the error will say so
        return
    for part, piece in _split(arch, layer, path, leaf, tensor):
        yield f"{prefix}{part}", piece


def _path_and_leaf(name: str) -> tuple[str, str]:
    """What a tensor belongs to, and whether it is its weight or its bias.

    >>> _path_and_leaf("mlp.gate.e_score_correction_bias"), _path_and_leaf("mlp.experts.down_proj_bias")
    (('mlp.gate.e_score_correction_bias', 'weight'), ('mlp.experts.down_proj', 'bias'))
    """
    if name.endswith((".weight", ".bias")):
        path, leaf = name.rsplit(".", 1)
        return path, leaf
    if ".experts." in name and name.endswith("_bias"):
        return name.removesuffix("_bias"), "bias"
    return name, "weight"


def _split(arch: Architecture, layer: int, path: str, leaf: str, tensor: Tensor) -> Named:
    """One layer's tensor under our names, fused ones taken apart."""
    special = SPECIAL.get(path.rsplit(".", 1)[-1])
    if special is not None and (pieces := list(special(arch, layer, path, tensor))):
        yield from ((f"{name}.{leaf}", piece) for name, piece in pieces)
        return
    if arch.family == "gpt2" and tensor.ndim == 2:
        tensor = tensor.t().contiguous()
    expert = EXPERT.match(path)
    if expert is not None:
        names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
        yield f"mlp.experts.{expert[2]}.{names.get(expert[3], expert[3])}.{leaf}", tensor
        return
    names = GEMMA_PARTS if arch.residual == "sandwich" else {}
    yield f"{names.get(path, PARTS.get(path, path))}.{leaf}", _norm_weight(arch, path, tensor)


def _norm_weight(arch: Architecture, path: str, tensor: Tensor) -> Tensor:
    """Some families keep how far the weight of a norm is from 1."""
    is_norm = path.endswith(("norm", "layernorm")) and path != "linear_attn.norm"
    return tensor + 1 if is_norm and arch.family in FROM_ONE else tensor


# --- fused projections --------------------------------------------------------------------------------------


def _attention(arch: Architecture, layer: int) -> Attention:
    attention = arch.layers[layer].attention
    assert isinstance(attention, Attention)
    return attention


def _by_thirds(arch: Architecture, layer: int, path: str, tensor: Tensor) -> Named:
    """Queries, keys and values one after the other: rows of the first Qwen's, columns of GPT-2's."""
    whole = tensor.t() if arch.family == "gpt2" and tensor.ndim == 2 else tensor
    for name, part in zip(("q_proj", "k_proj", "v_proj"), whole.chunk(3), strict=True):
        yield f"attention.{name}", part.contiguous()


def _by_groups(arch: Architecture, layer: int, path: str, tensor: Tensor) -> Named:
    """For each key-value head its queries, its key, its value: rows of the fused projection. One group for
    each head, in families whose heads share nothing."""
    attention = _attention(arch, layer)
    queries = attention.num_attention_heads // attention.num_key_value_heads
    grouped = tensor.unflatten(0, (attention.num_key_value_heads, queries + 2, attention.head_dim))
    for name, part in zip(("q_proj", "k_proj", "v_proj"), grouped.split([queries, 1, 1], dim=1), strict=True):
        yield f"attention.{name}", part.flatten(0, 2).contiguous()


def _with_gate(arch: Architecture, layer: int, path: str, tensor: Tensor) -> Named:
    """Qwen3-Next: each head's query, then its output gate."""
    attention = arch.layers[layer].attention
    if isinstance(attention, Attention) and attention.gate:
        halves = tensor.unflatten(0, (attention.num_attention_heads, 2, attention.head_dim))
        for index, name in enumerate(("q_proj", "attn_gate_proj")):
            yield f"attention.{name}", halves[:, index].flatten(0, 1).contiguous()


def _convolution(arch: Architecture, layer: int, path: str, tensor: Tensor) -> Named:
    """One kernel a channel: those of queries, keys and values one after the other."""
    linear = arch.layers[layer].attention
    assert isinstance(linear, LinearAttention)
    sizes = [linear.key_width, linear.key_width, linear.value_width]
    for name, part in zip(("q_conv", "k_conv", "v_conv"), tensor[:, 0].split(sizes), strict=True):
        yield f"attention.{name}", part.contiguous()


def _gate_and_up(arch: Architecture, layer: int, path: str, tensor: Tensor) -> Named:
    """Experts' two projections up as one: halves, or (gpt-oss) every other column of a transposed one."""
    if arch.family == "gpt_oss":
        stacked = tensor.transpose(1, 2) if tensor.ndim == 3 else tensor
        gate, up = stacked[:, ::2], stacked[:, 1::2]
    else:
        gate, up = tensor.chunk(2, dim=1)
    yield "mlp.experts.gate_proj", gate.contiguous()
    yield "mlp.experts.up_proj", up.contiguous()


def _experts_down(arch: Architecture, layer: int, path: str, tensor: Tensor) -> Named:
    if path == "mlp.experts.down_proj":
        is_transposed = arch.family == "gpt_oss" and tensor.ndim == 3
        yield path, tensor.transpose(1, 2).contiguous() if is_transposed else tensor


SPECIAL: Mapping[str, Callable[[Architecture, int, str, Tensor], Named]] = {
    "c_attn": _by_thirds,
    "query_key_value": _by_groups,
    "q_proj": _with_gate,
    "conv1d": _convolution,
    "gate_up_proj": _gate_and_up,
    "down_proj": _experts_down,
}

FROM_ONE = ("gemma", "gemma2", "gemma3", "gemma3_text", "qwen3_next")

HEADS = ("lm_head", "embed_out")

OUTSIDE = {
    "embed_tokens": "embed",
    "decoder.embed_tokens": "embed",
    "wte": "embed",
    "embed_in": "embed",
    "word_embeddings": "embed",
    "embeddings.word_embeddings": "embed",
    "wpe": "positions",
    "decoder.embed_positions": "positions",
    "position_embeddings": "positions",
    "embeddings.position_embeddings": "positions",
    "token_type_embeddings": "token_types",
    "embeddings.token_type_embeddings": "token_types",
    "word_embeddings_layernorm": "embed_norm",
    "LayerNorm": "embed_norm",
    "embeddings.LayerNorm": "embed_norm",
    "decoder.project_in": "project_in",
    "decoder.project_out": "project_out",
    "norm": "final_norm",
    "ln_f": "final_norm",
    "final_layer_norm": "final_norm",
    "final_layernorm": "final_norm",
    "decoder.final_layer_norm": "final_norm",
    "embed_out": "lm_head",
}

GEMMA_PARTS = {
    "post_attention_layernorm": "attn_post_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_post_norm",
}

PARTS = {
    # norms
    "input_layernorm": "attn_norm",
    "ln_1": "attn_norm",
    "ln_attn": "attn_norm",
    "self_attn_layer_norm": "attn_norm",
    "attention.output.LayerNorm": "attn_norm",
    "post_attention_layernorm": "mlp_norm",
    "ln_2": "mlp_norm",
    "ln_mlp": "mlp_norm",
    "final_layer_norm": "mlp_norm",
    "output.LayerNorm": "mlp_norm",
    # attention
    **{f"{owner}.{name}": f"attention.{name}" for owner in ("self_attn", "attn")
       for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm", "sinks")},
    "attention.self.query": "attention.q_proj",
    "attention.self.key": "attention.k_proj",
    "attention.self.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "attention.dense": "attention.o_proj",
    "self_attention.dense": "attention.o_proj",
    "self_attn.dense": "attention.o_proj",
    "attn.c_proj": "attention.o_proj",
    "attn.out_proj": "attention.o_proj",
    "self_attn.out_proj": "attention.o_proj",
    "self_attn.q_a_proj": "attention.q_a_proj",
    "self_attn.q_a_layernorm": "attention.q_a_norm",
    "self_attn.q_b_proj": "attention.q_b_proj",
    "self_attn.kv_a_proj_with_mqa": "attention.kv_a_proj",
    "self_attn.kv_a_layernorm": "attention.kv_a_norm",
    "self_attn.kv_b_proj": "attention.kv_b_proj",
    "linear_attn.in_proj_qkvz": "attention.qkvz_proj",
    "linear_attn.in_proj_ba": "attention.ba_proj",
    "linear_attn.A_log": "attention.a_log",
    "linear_attn.dt_bias": "attention.dt_bias",
    "linear_attn.norm": "attention.linear_norm",
    "linear_attn.out_proj": "attention.o_proj",
    # feed-forward
    "mlp.c_fc": "mlp.up_proj",
    "mlp.fc_in": "mlp.up_proj",
    "fc1": "mlp.up_proj",
    "mlp.fc1": "mlp.up_proj",
    "mlp.w1": "mlp.up_proj",
    "mlp.w2": "mlp.gate_proj",
    "mlp.dense_h_to_4h": "mlp.up_proj",
    "intermediate.dense": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
    "mlp.fc_out": "mlp.down_proj",
    "fc2": "mlp.down_proj",
    "mlp.fc2": "mlp.down_proj",
    "mlp.dense_4h_to_h": "mlp.down_proj",
    "output.dense": "mlp.down_proj",
    # experts
    "mlp.gate": "mlp.router",
    "block_sparse_moe.gate": "mlp.router",
    "mlp.gate.e_score_correction_bias": "mlp.correction",
    **{f"mlp.{shared}.{name}": f"mlp.shared.{name}" for shared in ("shared_expert", "shared_experts")
       for name in ("gate_proj", "up_proj", "down_proj")},
    "mlp.shared_expert_gate": "mlp.shared_gate",
}  # fmt: skip
