"""Write tests/execution/data/*.npz: tiny random models with the logits Hugging Face transformers gives them.

Not part of the tests, which need no transformers. To write the files again:

    pip install torch==2.13.0 transformers==5.23.0
    python tests/execution/make_fixtures.py
"""

from pathlib import Path

import numpy as np
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

DATA = Path(__file__).parent / "data"

LLAMA_SHAPE = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "vocab_size": 96,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "attn_implementation": "eager",
}

# Of head_dim 8's four channel pairs the first is kept, the second blended, the others slowed.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 8.0,
    "original_max_position_embeddings": 128,
}


def models() -> dict[str, PreTrainedModel]:
    """One model for every way in which published architectures of these families differ."""
    plain_rope = {"rope_type": "default", "rope_theta": 10_000.0}
    return {
        "llama-grouped-llama3-rope": LlamaForCausalLM(
            LlamaConfig(**LLAMA_SHAPE, head_dim=8, tie_word_embeddings=False, rope_parameters=LLAMA3_ROPE)
        ),
        "llama-tied-biased": LlamaForCausalLM(
            LlamaConfig(
                **LLAMA_SHAPE,
                tie_word_embeddings=True,
                attention_bias=True,
                mlp_bias=True,
                rope_parameters=plain_rope,
            )
        ),
        "qwen2": Qwen2ForCausalLM(
            Qwen2Config(**LLAMA_SHAPE, tie_word_embeddings=False, rope_parameters=plain_rope)
        ),
        "gpt2": GPT2LMHeadModel(
            GPT2Config(
                n_embd=24,
                n_layer=2,
                n_head=3,
                vocab_size=96,
                n_positions=64,
                bos_token_id=0,
                eos_token_id=0,
                attn_implementation="eager",
            )
        ),
    }


def randomise(model: PreTrainedModel) -> None:
    """Move every weight, bias and norm far enough from its neutral value to be missed if left out."""
    for name, parameter in model.named_parameters():
        is_norm_weight = ("norm" in name or "ln_" in name) and name.endswith("weight")
        torch.nn.init.normal_(parameter, mean=1.0 if is_norm_weight else 0.0, std=0.4)


def main() -> None:
    """Write one file a model; the same bytes on every run."""
    DATA.mkdir(exist_ok=True)
    for name, model in models().items():
        torch.manual_seed(1)
        randomise(model)
        ids = torch.randint(0, model.config.vocab_size, (48,))
        with torch.no_grad():
            logits = model.eval()(ids[None]).logits[0]
        weights = {f"state/{key}": tensor.numpy() for key, tensor in model.state_dict().items()}
        np.savez_compressed(DATA / f"{name}.npz", ids=ids.numpy(), logits=logits.numpy(), **weights)


if __name__ == "__main__":
    main()
