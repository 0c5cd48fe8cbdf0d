"""Readers of published configurations, one for each family: to add one, write it and name it here."""

from collections.abc import Callable, Mapping

from simulator.specs.architecture import Architecture
from simulator.specs.config_fields import ConfigFields
from simulator.specs.families.bert import read_bert, read_roberta
from simulator.specs.families.deci import read_deci, read_nemotron_nas
from simulator.specs.families.deepseek import read_deepseek_v2, read_deepseek_v3
from simulator.specs.families.falcon import read_bloom, read_falcon
from simulator.specs.families.gemma import read_gemma, read_gemma2, read_gemma3, read_gemma3_text
from simulator.specs.families.gpt import read_gpt2, read_gpt_neox, read_gptj, read_opt, read_phi
from simulator.specs.families.llama import (
    read_internlm,
    read_llama,
    read_mistral,
    read_qwen2,
    read_qwen3,
)
from simulator.specs.families.mixtures import read_gpt_oss, read_mixtral, read_qwen2_moe, read_qwen3_moe
from simulator.specs.families.qwen import read_qwen
from simulator.specs.families.qwen3_next import read_qwen3_next

Reader = Callable[[ConfigFields, str], Architecture]
"""Makes a record of a name from fields; what is wrong is left in the fields' `problems`."""

READERS: Mapping[str, Reader] = {
    "gpt2": read_gpt2,
    "opt": read_opt,
    "gptj": read_gptj,
    "gpt_neox": read_gpt_neox,
    "phi": read_phi,
    "bloom": read_bloom,
    "falcon": read_falcon,
    "llama": read_llama,
    "aquila": read_llama,
    "internlm": read_internlm,
    "mistral": read_mistral,
    "qwen": read_qwen,
    "qwen2": read_qwen2,
    "qwen3": read_qwen3,
    "gemma": read_gemma,
    "gemma2": read_gemma2,
    "gemma3_text": read_gemma3_text,
    "gemma3": read_gemma3,
    "deci": read_deci,
    "nemotron-nas": read_nemotron_nas,
    "mixtral": read_mixtral,
    "qwen2_moe": read_qwen2_moe,
    "qwen3_moe": read_qwen3_moe,
    "gpt_oss": read_gpt_oss,
    "deepseek_v2": read_deepseek_v2,
    "deepseek_v3": read_deepseek_v3,
    "kimi_k2": read_deepseek_v3,
    "qwen3_next": read_qwen3_next,
    "bert": read_bert,
    "roberta": read_roberta,
    "xlm-roberta": read_roberta,
}
"""By `model_type`."""
