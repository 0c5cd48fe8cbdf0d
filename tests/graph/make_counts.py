"""Write tests/graph/data/hugging_face_counts.json: parameters and FLOPs as Hugging Face transformers has them.

Every published model of models/*.yaml is built by transformers on torch's `meta` device, and its passes over 64
tokens, then over one more, are counted by torch's FlopCounterMode. Not part of the tests, which need no
transformers. To write the file again:

    pip install -e . torch==2.13.0 transformers==5.23.0
    python tests/graph/make_counts.py

Counted are two FLOPs a multiply-add of matrix products. Attention's rectangle is counted in full, with what
is masked; queries that share keys count each for itself. Experts count for the tokens routed to them. Latent
attention is that of transformers: keys and values of all cached tokens are expanded anew in every pass. The
convolution of a gated delta net is counted over its padding too, and its chunks of 64 tokens are whole, but
the triangular system it solves counts nothing. So do norms, activations, softmax and, as transformers 5.23
computes it, the turning of channels (`rotary_flops` would tell).
"""

import inspect
import json
import re
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from simulator.specs.yaml_file import read_document

ROOT = Path(__file__).parents[2]
COUNTS = Path(__file__).parent / "data" / "hugging_face_counts.json"
TOKENS = 64

ENCODERS = ("bert", "roberta", "xlm-roberta")
LAYER = re.compile(r"\.(?:layers|layer|h)\.(\d+)(?:\.|$)")

GROUPS = {
    "shared_experts": r"\.shared_expert(s|_gate)?\.",
    "experts": r"\.experts\.",
    "router": r"\.mlp\.(gate|router)\.",
    "norms": r"(norm|layernorm|ln_\w+|LayerNorm)\.(weight|bias)$",
    "attention": r"\.(self_attn|self_attention|attention|attn|linear_attn)\.",
    "mlp": r"\.(mlp|fc1|fc2|intermediate|output)\.",
    "head": r"^lm_head\.",
    "embeddings": "",
}
"""What a parameter belongs to: the first whose pattern is found in its name. Embeddings include positions,
token types and the projections of their width; a head that is the table of embeddings is none."""


def main() -> None:
    found: dict[str, Any] = {"left_out": {}}
    for path in sorted((ROOT / "models").glob("*.yaml")):
        if path.stem.startswith("tiny"):
            continue
        fields = json.loads(json.dumps(read_document(path).data["config"]))
        if fields["model_type"] not in CONFIG_MAPPING:
            found["left_out"][path.stem] = f"transformers has no class for model_type {fields['model_type']}"
            continue
        found[path.stem] = counts(build(fields))
        print(f"{path.stem:32} {found[path.stem]['parameters']:16,} parameters", flush=True)
    COUNTS.parent.mkdir(exist_ok=True)
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in found.items()]
    COUNTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def build(fields: dict[str, Any]) -> PreTrainedModel:
    """The model of a published configuration, of shapes alone; of several modalities the text's.

    In bfloat16, since the product of all experts is not to be had in float32 on the meta device.
    """
    fields = {key: value for key, value in fields.items() if key != "quantization_config"}
    config = CONFIG_MAPPING[fields["model_type"]].from_dict(fields).get_text_config(decoder=True)
    is_encoder = config.model_type in ENCODERS
    kind, options = (AutoModel, {"add_pooling_layer": False}) if is_encoder else (AutoModelForCausalLM, {})
    with torch.device("meta"):
        model = kind.from_config(config, dtype=torch.bfloat16, attn_implementation="eager", **options)
    return model.eval()


def counts(model: PreTrainedModel) -> dict[str, Any]:
    return {"class": type(model).__name__} | parameter_counts(model) | flop_counts(model)


# --- parameters -------------------------------------------------------------------------------------------


def parameter_counts(model: PreTrainedModel) -> dict[str, Any]:
    """Tied ones once. What corrects the choice of experts is a buffer to torch, but published with weights."""
    groups: Counter[str] = Counter()
    layers: Counter[int] = Counter()
    for name, parameter in model.named_parameters():
        groups[next(group for group, pattern in GROUPS.items() if re.search(pattern, name))] += (
            parameter.numel()
        )
        if layer := LAYER.search(name):
            layers[int(layer[1])] += parameter.numel()
    buffers = dict(model.named_buffers())
    return {
        "parameters": sum(groups.values()),
        "parameters_by_group": dict(sorted(groups.items())),
        "parameters_by_layer": in_order(layers),
        "published_buffers": sum(buffers[name].numel() for name in model.state_dict() if name in buffers),
    }


def in_order(by_layer: dict[int, int]) -> list[int]:
    return [by_layer[index] for index in range(len(by_layer))]


# --- FLOPs ------------------------------------------------------------------------------------------------


def flop_counts(model: PreTrainedModel) -> dict[str, Any]:
    """Of a prompt with logits of all tokens, with those of the last alone, and of the token after it."""
    if model.config.model_type in ENCODERS:
        return prefill_counts(counted(model, TOKENS))
    past = DynamicCache(config=model.config)
    found = prefill_counts(counted(model, TOKENS, past_key_values=past, use_cache=True))
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        last = counted(model, TOKENS, logits_to_keep=1, use_cache=True)
        found["prefill_64_last_flops"] = last.get_total_flops()
    decode = counted(model, 1, past_key_values=past, use_cache=True)
    return found | {"decode_after_64_flops": decode.get_total_flops()}


def counted(model: PreTrainedModel, tokens: int, **options: Any) -> FlopCounterMode:
    ids = torch.empty((1, tokens), dtype=torch.int64, device="meta")
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten._grouped_mm: grouped_product_flops}
    )
    with counter, torch.no_grad():
        model(ids, **options)
    return counter


def grouped_product_flops(a: torch.Size, b: torch.Size, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Of the product of all experts, rows [n, in] times [e, in, out], which torch 2.13 counts as nothing."""
    return 2 * prod(a) * b[-1]


def prefill_counts(counter: FlopCounterMode) -> dict[str, Any]:
    """In all, by operation, by layer, and those parts that others may count otherwise."""
    by_module = counter.get_flop_counts()
    layers: Counter[int] = Counter()
    for name, flops in by_module.items():
        if (layer := LAYER.search(name)) and layer.end() == len(name):
            layers[int(layer[1])] = sum(flops.values())
    operations = {str(operation): flops for operation, flops in by_module["Global"].items()}
    delta_nets = [flops for name, flops in by_module.items() if name.endswith(".linear_attn")]
    rotary = [flops for name, flops in by_module.items() if name.endswith("rotary_emb")]
    return {
        "prefill_64_flops": counter.get_total_flops(),
        "prefill_64_flops_by_operation": dict(sorted(operations.items())),
        "prefill_64_flops_by_layer": in_order(layers),
        "rotary_flops": sum(sum(flops.values()) for flops in rotary),
        "delta_rule_flops": sum(flops.get(torch.ops.aten.bmm, 0) for flops in delta_nets),
    }


if __name__ == "__main__":
    main()
