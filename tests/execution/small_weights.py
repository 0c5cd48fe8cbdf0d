"""A tiny Llama of random weights, written out as published models are: as a folder, and as a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

END = "<|endoftext|>"
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("a", "n"), ("1", "2"), ("Ġ", "Ġ")]
TOKENS = [END, "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()),
          *(first + second for first, second in MERGES)]  # fmt: skip

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "vocab_size": len(TOKENS),
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100_000.0,
    "tie_word_embeddings": False,
    "eos_token_id": 0,
}


def state(seed: int = 0, tied: bool = False) -> dict[str, Tensor]:
    """Random weights by Hugging Face's names."""
    drawn = torch.Generator().manual_seed(seed)
    width, inner, keys = CONFIG["hidden_size"], CONFIG["intermediate_size"], 2 * CONFIG["head_dim"]
    shapes = {
        "self_attn.q_proj": (width, width), "self_attn.k_proj": (keys, width), "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, width), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner), "input_layernorm": (width,), "post_attention_layernorm": (width,),
    }  # fmt: skip
    named = {f"model.layers.{layer}.{part}": shape for layer in (0, 1) for part, shape in shapes.items()}
    named |= {"model.embed_tokens": (len(TOKENS), width), "model.norm": (width,)}
    named |= {} if tied else {"lm_head": (len(TOKENS), width)}
    return {f"{name}.weight": 0.5 * torch.randn(shape, generator=drawn) for name, shape in named.items()}


def tokenizer() -> Tokenizer:
    """Bytes, a few merges, one control token."""
    made = Tokenizer(models.BPE({token: number for number, token in enumerate(TOKENS)}, MERGES))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(TOKENS[:3])
    return made


def write_folder(
    folder: Path, weights: Mapping[str, Tensor] | None = None, shards: int = 1, **changes: Any
) -> Path:
    """A model as Hugging Face writes it; `changes` are made to its config."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = state() if weights is None else weights
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    tokenizer().save(str(folder / "tokenizer.json"))
    if shards == 1:
        save_file(dict(weights), folder / "model.safetensors")
        return folder
    files = {
        name: f"model-{1 + at % shards:05}-of-{shards:05}.safetensors" for at, name in enumerate(weights)
    }
    for file in set(files.values()):
        save_file({name: weights[name] for name in weights if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_gguf(
    path: Path, weights: Mapping[str, Tensor] | None = None, quantised: str | None = None, architecture: str = "llama",
    pre: str = "smollm", extra: Mapping[str, float] | None = None,
) -> Path:  # fmt: skip
    """The same model as llama.cpp's converter writes it: matrices in the format `quantised`, the rest in float32."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_embedding_length(CONFIG["hidden_size"])
    writer.add_block_count(CONFIG["num_hidden_layers"])
    writer.add_head_count(CONFIG["num_attention_heads"])
    writer.add_head_count_kv(CONFIG["num_key_value_heads"])
    writer.add_rope_dimension_count(CONFIG["head_dim"])
    writer.add_feed_forward_length(CONFIG["intermediate_size"])
    writer.add_context_length(CONFIG["max_position_embeddings"])
    writer.add_vocab_size(CONFIG["vocab_size"])
    writer.add_rope_freq_base(CONFIG["rope_theta"])
    writer.add_layer_norm_rms_eps(CONFIG["rms_norm_eps"])
    for key, value in (extra or {}).items():
        writer.add_float32(key, value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges([" ".join(merge) for merge in MERGES])
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    for name, tensor in (state() if weights is None else weights).items():
        _add(writer, name.removesuffix(".weight"), tensor.numpy(), quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, name: str, values: np.ndarray, quantised: str | None) -> None:
    if name.endswith(("q_proj", "k_proj")):
        heads = CONFIG["num_attention_heads" if name.endswith("q_proj") else "num_key_value_heads"]
        values = neighbours(values, heads)
    _, _, after_model = name.partition("model.layers.")
    layer, _, part = after_model.partition(".")
    known = f"blk.{layer}.{GGUF_NAMES[part]}" if part else GGUF_NAMES.get(name, name)
    kind = gguf.GGMLQuantizationType[quantised] if quantised and values.ndim == 2 else None
    data = values if kind is None else gguf.quants.quantize(values, kind)
    writer.add_tensor(f"{known}.weight", data, raw_dtype=kind)


def neighbours(rows: np.ndarray, heads: int) -> np.ndarray:
    """A head's rows 0, 1, 2, ... in the order 0, d/2, 1, d/2 + 1, ...: `LlamaModel.permute` of llama.cpp's
    convert_hf_to_gguf.py."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape).copy()
