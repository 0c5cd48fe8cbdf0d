"""A GGUF file written out as the folder that Hugging Face would have made of the same model.

Reads what llama.cpp writes for a model of the Llama family with a byte-level vocabulary. Whatever else a
file may hold, and would change results, is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError, Problem, shorten

KNOWN = {
    "general.architecture": "llama",
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.add_space_prefix": False,
}
"""What this reader can read; a file that says otherwise is refused."""

CONFIG_KEYS = {
    "llama.embedding_length": "hidden_size",
    "llama.block_count": "num_hidden_layers",
    "llama.attention.head_count": "num_attention_heads",
    "llama.attention.head_count_kv": "num_key_value_heads",
    "llama.rope.dimension_count": "head_dim",
    "llama.feed_forward_length": "intermediate_size",
    "llama.context_length": "max_position_embeddings",
    "llama.vocab_size": "vocab_size",
    "llama.rope.freq_base": "rope_theta",
    "llama.attention.layer_norm_rms_epsilon": "rms_norm_eps",
}

OUTER_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}

LAYER_TENSORS = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}

CONTROL, USER_DEFINED = 3, 4
"""Token types of tokens that are never made by merging."""

ENDS = ("<|endoftext|>", "<|im_end|>")
"""Control tokens after which nothing follows, besides the one that the file names."""


def write_as_folder(path: Path, folder: Path) -> None:
    """Write config.json, model.safetensors in float32 and tokenizer.json. Raises InputError for a file that
    cannot be read so, OSError for a folder that cannot be written."""
    from gguf import GGUFReader
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise InputError([Problem(path, advice=f"cannot be read as a GGUF file ({error})")]) from None
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    _refuse_what_is_not_understood(path, metadata, [tensor.name for tensor in reader.tensors])
    weights = {str(_hugging_face_name(tensor.name)): _values(tensor, metadata) for tensor in reader.tensors}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        save_file(weights, folder / "model.safetensors")
    except SafetensorError as error:
        raise OSError(str(error)) from error
    (folder / "tokenizer.json").write_text(_tokenizer(metadata), encoding="utf-8")
    config = _config(metadata, tied="lm_head.weight" not in weights)
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def _refuse_what_is_not_understood(path: Path, metadata: Mapping[str, Any], tensors: Sequence[str]) -> None:
    problems = [
        Problem(path, key=key, value=metadata.get(key, "absent"), advice=f"only {shorten(known)} is read")
        for key, known in KNOWN.items()
        if metadata.get(key) != known
    ]
    problems += [Problem(path, key=key, advice="missing") for key in CONFIG_KEYS if key not in metadata]
    problems += [
        Problem(path, key=key, value=metadata[key], advice="this setting is not understood")
        for key in metadata
        if key.startswith("llama.") and key not in CONFIG_KEYS
    ]
    problems += [
        Problem(path, key=name, advice="this tensor has no counterpart in a Llama model")
        for name in tensors
        if _hugging_face_name(name) is None
    ]
    if problems:
        raise InputError(problems)


def _hugging_face_name(name: str) -> str | None:
    """`blk.3.ffn_up.weight` -> `model.layers.3.mlp.up_proj.weight`; None for a tensor that is not known."""
    if not name.startswith("blk."):
        return OUTER_TENSORS.get(name)
    _, layer, part = name.split(".", 2)
    known = LAYER_TENSORS.get(part)
    return known and f"model.layers.{layer}.{known}"


def _values(tensor: Any, metadata: Mapping[str, Any]) -> NDArray[np.float32]:
    """The tensor in float32, its rows in the order of Hugging Face."""
    from gguf.quants import dequantize

    values = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    if tensor.name.endswith(".attn_q.weight"):
        return halves_apart(values, metadata["llama.attention.head_count"])
    if tensor.name.endswith(".attn_k.weight"):
        return halves_apart(values, metadata["llama.attention.head_count_kv"])
    return values


def halves_apart(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of a head from llama.cpp's order (0, d/2, 1, d/2 + 1, ...) back to 0, 1, 2, ...

    Both turn the same pairs: llama.cpp neighbours, Hugging Face a channel and the one half a head further.

    >>> halves_apart(np.float32([[0], [2], [1], [3]]), heads=1).ravel().tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _config(metadata: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    """The `config.json` of the same model."""
    tokens = metadata["tokenizer.ggml.tokens"]
    named = [number for number, token in enumerate(tokens) if token in ENDS]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "eos_token_id": sorted({metadata["tokenizer.ggml.eos_token_id"], *named}),
    } | {name: _shortest(metadata[key]) for key, name in CONFIG_KEYS.items()}


def _shortest(number: Any) -> Any:
    """A number that was stored in float32 as it was meant: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(number))) if isinstance(number, float) else number


def _tokenizer(metadata: Mapping[str, Any]) -> str:
    """The `tokenizer.json`: digits one by one, then the words of GPT-2, their bytes merged pair by pair.

    That is what llama.cpp does for the pre-tokenizer `smollm`, and what the model's makers publish.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == CONTROL, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (CONTROL, USER_DEFINED)
        ]
    )
    return tokenizer.to_str()
