"""Write tests/execution/data/*.npz: tiny random models with what Hugging Face transformers computes of them.

Not part of the tests, which need no transformers. To write the files again:

    pip install torch==2.13.0 transformers==5.23.0
    python tests/execution/make_fixtures.py
"""

import copy
import json
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    DeepseekV2Config,
    DeepseekV3Config,
    DynamicCache,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    RobertaConfig,
    XLMRobertaConfig,
)
from transformers.models.llama.modeling_llama import LlamaAttention

DATA = Path(__file__).parent / "data"
VOCABULARY, TOKENS, PROMPT = 96, 40, 24
"""The sliding windows of 6 are shorter than the prompt, which is shorter than all tokens."""

SHAPE = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
}
LLAMA = SHAPE | {
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
GPT = {"n_embd": 24, "n_layer": 2, "n_head": 3, "vocab_size": VOCABULARY, "n_positions": 64}
GPT |= {"bos_token_id": 0, "eos_token_id": 0}
BERT = SHAPE | {"intermediate_size": 40, "max_position_embeddings": 64, "layer_norm_eps": 1e-5}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
    "intermediate_size": 40,
    "moe_intermediate_size": 8,
    "first_k_dense_replace": 1,
    "rms_norm_eps": 1e-6,
}


def rope(kind: str, theta: float = 10_000.0, **scaling: float) -> dict[str, str | float]:
    return {"rope_type": kind, "rope_theta": theta, **scaling}


# Of head_dim 8's four channel pairs the first is kept, the second blended, the others slowed.
LLAMA3_ROPE = rope(
    "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=8.0, original_max_position_embeddings=128
)
# Of head_dim 16's eight channel pairs the first is kept, the next three blended, the others slowed.
YARN_ROPE = rope("yarn", factor=4.0, original_max_position_embeddings=256)

LLAMAS = {
    "llama-grouped-llama3-rope": LlamaConfig(**LLAMA, head_dim=8, rope_parameters=LLAMA3_ROPE),
    "llama-tied-biased": LlamaConfig(
        **LLAMA | {"tie_word_embeddings": True}, attention_bias=True, mlp_bias=True
    ),
    "llama-yarn": LlamaConfig(
        **LLAMA | {"max_position_embeddings": 1024}, head_dim=16, rope_parameters=YARN_ROPE
    ),
    "llama-linear-rope": LlamaConfig(**LLAMA, rope_parameters=rope("linear", factor=3.0)),
    "mistral": MistralConfig(**LLAMA, head_dim=8, sliding_window=6, rope_parameters=rope("default", 1e6)),
    "qwen2": Qwen2Config(**LLAMA),
    "qwen2-sliding": Qwen2Config(
        **LLAMA | {"num_hidden_layers": 3}, use_sliding_window=True, sliding_window=6, max_window_layers=1
    ),
    "qwen3": Qwen3Config(**LLAMA, head_dim=8, rope_parameters=rope("default", 1e6)),
}
GEMMAS = {
    "gemma": GemmaConfig(**LLAMA | {"num_key_value_heads": 1, "tie_word_embeddings": True}, head_dim=8),
    "gemma2": Gemma2Config(
        **LLAMA | {"tie_word_embeddings": True},
        head_dim=8,
        query_pre_attn_scalar=12,
        sliding_window=6,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=8.0,
    ),
    "gemma3": Gemma3TextConfig(
        **LLAMA | {"tie_word_embeddings": True, "num_hidden_layers": 3},
        head_dim=8,
        query_pre_attn_scalar=12,
        sliding_window=6,
        sliding_window_pattern=2,
        rope_parameters={
            "sliding_attention": rope("default"),
            "full_attention": rope("linear", 1e6, factor=8.0),
        },
    ),
}
GPTS = {
    "gpt2": GPT2Config(**GPT),
    "opt": OPTConfig(**SHAPE, ffn_dim=40),
    "opt-post-norm": OPTConfig(**SHAPE, ffn_dim=40, do_layer_norm_before=False, word_embed_proj_dim=16),
    "gptj": GPTJConfig(**GPT, rotary_dim=4, n_inner=40),
    "gpt-neox": GPTNeoXConfig(**SHAPE | {"hidden_size": 32}, intermediate_size=40, rotary_pct=0.5),
    "gpt-neox-sequential": GPTNeoXConfig(
        **SHAPE | {"hidden_size": 32}, intermediate_size=40, use_parallel_residual=False
    ),
    # Six of a head's eight channels turn.
    "phi": PhiConfig(**SHAPE | {"hidden_size": 32}, intermediate_size=40, partial_rotary_factor=0.75),
    "falcon-7b-style": FalconConfig(**SHAPE),
    "falcon-40b-style": FalconConfig(**SHAPE, new_decoder_architecture=True, num_kv_heads=2),
    # Sixteen heads: every other slope of alibi is one that bfloat16 rounds.
    "falcon-rw-style": FalconConfig(
        **SHAPE | {"hidden_size": 32, "num_attention_heads": 16},
        alibi=True,
        multi_query=False,
        parallel_attn=False,
        bias=True,
    ),
    # Six heads: alibi's slopes follow a second rule for those beyond a power of two.
    "bloom": BloomConfig(hidden_size=24, n_layer=2, n_head=6, vocab_size=VOCABULARY),
}
MIXTURES = {
    "mixtral": MixtralConfig(
        **LLAMA | {"intermediate_size": 12}, num_local_experts=6, rope_parameters=rope("default", 1e6)
    ),
    "qwen2-moe": Qwen2MoeConfig(**LLAMA, **EXPERTS, shared_expert_intermediate_size=20),
    "qwen2-moe-normalised": Qwen2MoeConfig(
        **LLAMA | {"num_hidden_layers": 3},
        **EXPERTS,
        shared_expert_intermediate_size=20,
        norm_topk_prob=True,
        mlp_only_layers=[0],
    ),
    "qwen3-moe": Qwen3MoeConfig(**LLAMA, **EXPERTS, head_dim=8, norm_topk_prob=True),
    "gpt-oss": GptOssConfig(
        **LLAMA | {"intermediate_size": 12, "max_position_embeddings": 4096},
        head_dim=16,
        num_local_experts=6,
        num_experts_per_tok=2,
        sliding_window=6,
        swiglu_limit=1.5,
        rope_parameters=rope(
            "yarn",
            150_000.0,
            factor=8.0,
            beta_fast=32.0,
            beta_slow=1.0,
            truncate=False,
            original_max_position_embeddings=512,
        ),
    ),
    "deepseek-v2-lite": DeepseekV2Config(
        **SHAPE,
        **LATENT,
        q_lora_rank=None,
        qk_rope_head_dim=4,
        n_routed_experts=8,
        num_experts_per_tok=3,
        n_shared_experts=2,
    ),
    "deepseek-v2": DeepseekV2Config(
        **SHAPE,
        **LATENT,
        q_lora_rank=16,
        qk_rope_head_dim=16,
        n_routed_experts=8,
        num_experts_per_tok=3,
        n_shared_experts=2,
        topk_method="group_limited_greedy",
        n_group=4,
        topk_group=2,
        routed_scaling_factor=1.5,
        rope_parameters=YARN_ROPE | {"mscale": 0.707, "mscale_all_dim": 0.707},
    ),
    "deepseek-v3": DeepseekV3Config(
        **SHAPE,
        **LATENT,
        q_lora_rank=16,
        qk_rope_head_dim=16,
        n_routed_experts=12,
        num_experts_per_tok=3,
        n_shared_experts=1,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
        rope_parameters=YARN_ROPE | {"mscale": 1.0, "mscale_all_dim": 0.6},
    ),
    "qwen3-next": Qwen3NextConfig(
        **LLAMA | {"num_hidden_layers": 3, "rms_norm_eps": 1e-4},
        **EXPERTS | {"num_experts": 4},
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        head_dim=16,
        partial_rotary_factor=0.5,
        shared_expert_intermediate_size=10,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=6,
    ),
}
ENCODERS = {
    "bert": BertConfig(**BERT),
    "roberta": RobertaConfig(**BERT, type_vocab_size=1),
    "xlm-roberta": XLMRobertaConfig(**BERT, type_vocab_size=1),
}
ALIKE = {
    "internlm": LlamaConfig(
        **LLAMA | {"num_key_value_heads": 4}, attention_bias=True, rope_parameters=rope("default", 1e6)
    ),
    "qwen": Qwen2Config(**LLAMA | {"num_key_value_heads": 4}, rope_parameters=rope("default", 1e6)),
}
"""What transformers has that computes the same as code on the hub."""
DECODERS = LLAMAS | GEMMAS | GPTS | MIXTURES | ALIKE
DECILM_KEY_VALUE_HEADS = (4, 2, 1)
NAMES = (*DECODERS, "decilm", *ENCODERS)


def build(name: str) -> tuple[PreTrainedModel, dict[str, object]]:
    """A tiny random model, and its configuration as a published `config.json` spells it."""
    torch.manual_seed(1)
    model = unfilled(name)
    randomise(model)
    return model.float().eval(), HUB_CONFIGS.get(name, published_config)(model)


def unfilled(name: str) -> PreTrainedModel:
    if name == "decilm":
        return decilm()
    if name in ENCODERS:
        return AutoModel.from_config(ENCODERS[name], attn_implementation="eager", add_pooling_layer=False)
    # Eager attention of Falcon with alibi adds it twice in transformers 5.23: itself, and with the mask.
    attention = "sdpa" if name == "falcon-rw-style" else "eager"
    return AutoModelForCausalLM.from_config(
        DECODERS[name], attn_implementation=attention, experts_implementation="eager"
    )


def published_config(model: PreTrainedModel) -> dict[str, object]:
    """What `save_pretrained` would write, less what says nothing about the architecture."""
    says_nothing = PreTrainedConfig().to_dict().keys() - {"model_type"}
    fields = {key: value for key, value in model.config.to_dict().items() if key not in says_nothing}
    return {"architectures": [type(model).__name__], **fields}


def decilm() -> PreTrainedModel:
    """A Llama whose layers have different numbers of key-value heads; transformers has no class for it."""
    config = LlamaConfig(**LLAMA | {"num_hidden_layers": len(DECILM_KEY_VALUE_HEADS)})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for index, heads in enumerate(DECILM_KEY_VALUE_HEADS):
        own = copy.deepcopy(model.config)
        own.num_key_value_heads = heads
        model.model.layers[index].self_attn = LlamaAttention(own, index)
    return model


def decilm_config(model: PreTrainedModel) -> dict[str, object]:
    """In the spelling of the code on the hub, older than transformers 5."""
    fields = published_config(model) | {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": "deci",
        "num_key_value_heads_per_layer": list(DECILM_KEY_VALUE_HEADS),
        "rope_theta": model.config.rope_parameters["rope_theta"],
    }
    absent = ("num_key_value_heads", "head_dim", "rope_parameters")
    return {key: value for key, value in fields.items() if key not in absent}


def internlm_config(model: PreTrainedModel) -> dict[str, object]:
    """In the spelling of the code on the hub."""
    fields = published_config(model) | {
        "architectures": ["InternLMForCausalLM"],
        "model_type": "internlm",
        "bias": model.config.attention_bias,
        "rotary": {"base": model.config.rope_parameters["rope_theta"], "type": "dynamic"},
    }
    absent = ("attention_bias", "mlp_bias", "head_dim", "rope_parameters")
    return {key: value for key, value in fields.items() if key not in absent}


def qwen_config(model: PreTrainedModel) -> dict[str, object]:
    """In the spelling of the code on the hub, which has no name for what it calls an intermediate size."""
    config = model.config
    same = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "tie_word_embeddings",
            "max_position_embeddings")  # fmt: skip
    return {key: getattr(config, key) for key in same} | {
        "architectures": ["QWenLMHeadModel"],
        "model_type": "qwen",
        "intermediate_size": 2 * config.intermediate_size,
        "kv_channels": config.hidden_size // config.num_attention_heads,
        "layer_norm_epsilon": config.rms_norm_eps,
        "no_bias": True,
        "rotary_emb_base": config.rope_parameters["rope_theta"],
        "rotary_pct": 1.0,
        "seq_length": config.max_position_embeddings,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
    }


HUB_CONFIGS = {"decilm": decilm_config, "internlm": internlm_config, "qwen": qwen_config}
"""Of models whose class is on the hub and not in transformers."""


def published_state(model: PreTrainedModel, name: str) -> dict[str, Tensor]:
    """The weights under the names that they are published by."""
    return qwen_state(model.state_dict()) if name == "qwen" else model.state_dict()


def qwen_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of a Qwen2 as the first Qwen has them: queries, keys and values in one, w2 before the activation."""
    renamed = {}
    for name, tensor in state.items():
        if ".q_proj." in name:
            tensor = torch.cat([state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
        if not re.search(r"\.[kv]_proj\.", name):
            renamed[re.sub("|".join(QWEN_NAMES), lambda part: QWEN_NAMES[part[0]], name)] = tensor
    return renamed


QWEN_NAMES = {
    "model.layers.": "transformer.h.",
    "model.embed_tokens": "transformer.wte",
    "model.norm": "transformer.ln_f",
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "self_attn.q_proj": "attn.c_attn",
    "self_attn.o_proj": "attn.c_proj",
    "mlp.up_proj": "mlp.w1",
    "mlp.gate_proj": "mlp.w2",
    "mlp.down_proj": "mlp.c_proj",
}


def randomise(model: PreTrainedModel) -> None:
    """Move every tensor far enough from its neutral value to be missed if left out.

    A vector's neutral value is the one it has when built: 1 for a norm, 0 for a norm that adds 1, and for a bias.
    Scores of experts are large, so that float noise changes no choice; embeddings are as large as what layers
    add to them, so that norms do not amplify it. A head that is the table of embeddings comes last, and small.
    """
    for name, tensor in model.state_dict().items():
        if name.endswith("A_log"):
            tensor.normal_(mean=-1.0, std=0.5)
        elif tensor.ndim == 1:
            tensor.add_(torch.randn_like(tensor), alpha=0.3)
        elif name.endswith(("mlp.gate.weight", "router.weight")):
            tensor.normal_(std=1.0)
        elif "embed" in name or "wte" in name:
            tensor.normal_(std=0.6)
        else:
            tensor.normal_(std=0.15)


def some_ids(seed: int = 2) -> Tensor:
    """Beyond the lowest ids, of which some families treat one as padding."""
    return torch.randint(4, VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def at_once(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits, or an encoder's hidden states, of all tokens in one pass."""
    output = model(ids[None])
    return output.logits[0] if "logits" in output else output.last_hidden_state[0]


@torch.no_grad()
def step_by_step(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits of the tokens after the prompt, each fed alone to a model that remembers the others."""
    cache = DynamicCache(config=model.config)
    model(ids[None, :PROMPT], past_key_values=cache, use_cache=True)
    steps = [model(ids[None, [i]], past_key_values=cache, use_cache=True) for i in range(PROMPT, len(ids))]
    return torch.cat([step.logits[0] for step in steps])


class InFloat64(TorchFunctionMode):
    """Float64 also where transformers casts to float32."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is Tensor.float:
            return args[0].double()
        args = [torch.float64 if arg is torch.float32 else arg for arg in args]
        kwargs = {
            key: torch.float64 if value is torch.float32 else value for key, value in (kwargs or {}).items()
        }
        return function(*args, **kwargs)


def exactly(model: PreTrainedModel, ids: Tensor) -> Tensor:
    with InFloat64():
        return at_once(copy.deepcopy(model).double(), ids)


def chosen_experts(model: PreTrainedModel, ids: Tensor, noise: float) -> list[Tensor]:
    """Which experts each layer chooses when routers see their input with some noise."""
    chosen = []
    routers = [module for module in model.modules() if type(module).__name__.endswith("Router")]
    hooks = [
        router.register_forward_pre_hook(lambda _, args: (args[0] + noise * torch.randn_like(args[0]),))
        for router in routers
    ]
    hooks += [
        router.register_forward_hook(lambda _, args, output: chosen.append(output[-1].sort().values))
        for router in routers
    ]
    at_once(model, ids)
    for hook in hooks:
        hook.remove()
    return chosen


def write(name: str) -> str:
    """Write one file; the same bytes on every run. Returns how well the numbers are determined."""
    model, config = build(name)
    ids = some_ids()
    logits = at_once(model, ids)
    arrays = {"config": np.array(json.dumps(config)), "ids": ids.numpy(), "logits": logits.numpy()}
    report = f"float32 is off by {(logits - exactly(model, ids)).abs().max():.1e}"
    if name not in ENCODERS:
        decoded = step_by_step(model, ids)
        arrays["decoded"] = decoded.numpy()
        report += f", decoding by {(decoded - logits[PROMPT:]).abs().max():.1e}"
    quiet = chosen_experts(model, ids, noise=0.0)
    for _ in range(8):
        noisy = chosen_experts(model, ids, noise=1e-4)
        assert all(map(torch.equal, quiet, noisy)), f"{name}: a choice of experts hangs on float noise"
    state = {f"state/{key}": tensor.numpy() for key, tensor in published_state(model, name).items()}
    path = DATA / f"{name}.npz"
    np.savez_compressed(path, **arrays, **state)
    size = f"{path.stat().st_size / 1000:.0f} kB"
    return f"{name:26} logits to {logits.abs().max():4.1f}, {report}, {len(quiet)} routers, {size}"


def main() -> None:
    DATA.mkdir(exist_ok=True)
    for stale in {path.stem for path in DATA.glob("*.npz")} - set(NAMES):
        (DATA / f"{stale}.npz").unlink()
    for name in NAMES:
        print(write(name), flush=True)


if __name__ == "__main__":
    main()
