"""The examples of docs/strategies.md: one list of placements, from which its pictures and figures are made.

`python -m tests.report.strategy_pictures` (or `make pictures`) draws every picture into docs/images/ and
writes what stands between the page's marks `<!-- example: NAME -->` and `<!-- end -->`. A test makes
everything again and compares. To add a strategy: an entry in `EXAMPLES`, a section with its marks in the page.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import yaml
from matplotlib.figure import Figure

from simulator.graph.shape import Chunk, split_evenly
from simulator.placement.memory import split_chunks
from simulator.placement.placement import NotPlaceable
from simulator.placement.plan import Plan
from simulator.placement.program import Program
from simulator.placement.strategies import STRATEGIES
from simulator.report.timeline_figure import timeline_figure
from simulator.report.wording import transitions_text
from simulator.results.records import Span
from simulator.results.run_result import RunResult
from simulator.specs.catalogue import Catalogue
from simulator.specs.model import load_model
from simulator.specs.scenario import PrecisionChoice
from simulator.specs.yaml_file import plain, read_document
from simulator.study.deploy import Deployment, deploy, transitions_per_token
from simulator.study.run import run_scenario
from simulator.units import format_bytes

ROOT = Path(__file__).parents[2]
PAGE, IMAGES = ROOT / "docs" / "strategies.md", ROOT / "docs" / "images"
Result = TypeVar("Result")
L40S = "{name: server, host: epyc-9654-2s, devices: {l40s: 4}, host_link: pcie-gen4-x16}"
H100 = "{name: server, host: hgx-xeon-8480p-2s, devices: {h100-sxm: 4}, host_link: pcie-gen5-x16, interconnect: nvlink-4}"
DESKTOP = "{name: desktop, host: desktop-13900k, devices: {rtx-4090: 1}, host_link: pcie-gen4-x16}"
TWO_SOCKETS = "{name: server, host: xeon-6454s-2s, devices: {rtx-4090: 1}, host_link: pcie-gen4-x16}"
"""Machines without a network: all requests of a batch are there at once."""


@dataclass(frozen=True)
class Example:
    """One section's placement."""

    name: str
    """Of the section, and of the picture: that of the strategy, as a rule."""
    placement: str
    """As a scenario has it."""
    machine: str
    caption: str
    """What to look for."""
    model: str = "llama-3.1-70b"
    """Whose first layers are placed."""
    layers: int = 4
    engine: str = "vllm"
    sequences: int = 8
    prompt: int = 32
    """Tokens of each sequence's prompt."""
    draft_layers: int = 1
    """Of the same model, as what proposes tokens where the placement has a `DRAFT`."""

    @property
    def picture(self) -> Path:
        return IMAGES / f"timeline-{self.name}.png"


EXAMPLES = (
    Example(
        "single_device", "{strategy: single_device}", L40S,
        "One GPU does everything: layer after layer, attention then feed-forward. Only token ids cross to it and back, "
        "too few to see.",
    ),
    Example(
        "layer_split", "{strategy: layer_split, gpu_layers: 2}", L40S,
        "The first two layers run on the CPU, the others on the GPU. One waits while the other works; between them "
        "goes one small copy.",
    ),
    Example(
        "tensor_parallel", "{strategy: tensor_parallel, degree: 4}", H100,
        "All four GPUs work on every layer at once, each on its share. After attention and after feed-forward they "
        "stop to add up what they have: the lines that join them.",
    ),
    Example(
        "pipeline_parallel", "{strategy: pipeline_parallel, stages: 2}", L40S,
        "Two batches are in flight. While batch 1 is on the second GPU, batch 2 (striped) is on the first, then they "
        "change places: both GPUs are busy, but each batch still passes through one after the other.",
    ),
    Example(
        "data_parallel", "{strategy: data_parallel, replicas: 2}", L40S,
        "Two copies of the model work side by side, each on half of the sequences and with an engine's thread of its "
        "own. Nothing goes between them.",
    ),
    Example(
        "disaggregated", "{strategy: disaggregated}", L40S,
        "The first GPU reads the prompt and chooses the first token. Its keys and values go to the second GPU, layer by "
        "layer, which makes all other tokens. Meanwhile the first one is free for other prompts.",
        sequences=1, prompt=512,
    ),
    Example(
        "expert_parallel", "{strategy: expert_parallel, degree: 4}", H100,
        "Each GPU holds two of the eight experts and goes through them (blue) with those tokens that chose them. Then "
        "all add up what experts made of each token: the lines that join them.",
        model="mixtral-8x7b",
    ),
    Example(
        "expert_parallel_data", "{strategy: expert_parallel, degree: 4, attention: data}", H100,
        "Each GPU attends to sequences of its own, a part of the batch. Before its two experts (blue) the tokens of all "
        "are gathered on every GPU, and after them each gets its own back.",
        model="mixtral-8x7b",
    ),
    Example(
        "weight_streaming", "{strategy: weight_streaming, gpu_layers: 1}", L40S,
        "While a layer computes, the next one is copied in. The large prefill takes about as long as the copies and "
        "hides them; decode takes a moment, so it waits for each layer. Layer 3 stays on the GPU.",
        engine="flexgen", prompt=1024,
    ),
    Example(
        "kv_offload", "{strategy: kv_offload}", L40S,
        "Prefill sends the keys and values of each layer to the host. In decode they all come back, layer after "
        "layer, ahead of the attention that needs them: here the copies set the pace.",
        model="llama-2-7b", prompt=256,
    ),
    Example(
        "attention_offload", "{strategy: attention_offload}", DESKTOP,
        "Prefill attends on the GPU and sends keys and values to the host. In decode the CPU attends, where they lie: "
        "for each layer a small copy goes down and one comes back, and GPU and CPU take turns.",
        model="llama-2-7b", engine="flexgen", prompt=256,
    ),
    Example(
        "expert_offload", "{strategy: expert_offload}", TWO_SOCKETS,
        "The CPU computes routed experts while the GPU computes the shared one of the same layer (blue above blue). "
        "In prefill the tokens of a prompt choose nearly all experts, in decode only four of 60 are read.",
        model="qwen1.5-moe-a2.7b", engine="ktransformers", sequences=1,
    ),
    Example(
        "hybrid", "{strategy: hybrid, pipeline_parallel: 2, tensor_parallel: 2, loops: 2}", H100,
        "A pipeline of two stages, each of two GPUs that share every layer (joined by lines). Two batches are in "
        "flight: batch 2 is striped.",
    ),
    Example(
        "speculative", "{strategy: speculative, draft: DRAFT, draft_tokens: 2, acceptance: 70 %}", L40S,
        "The small model (here the first layer alone) reads the prompts too. In decode it makes two passes, a token "
        "for each sequence in each, before the model goes through all of them at once and keeps what it agrees with.",
    ),
    Example(
        "custom", "{strategy: custom, rules: [{layers: 2-3, part: mlp, device: cpu}]}", L40S,
        "As the rule says, the CPU computes the feed-forward part of layers 2 and 3; all else is on the GPU. Twice "
        "a step tokens go down and come back.",
    ),
    Example(
        "eager_engine", "{strategy: single_device}", H100,
        "The host launches kernel after kernel. In prefill kernels are long, and launches run ahead of them. In "
        "decode they are short: the GPU has done all but the last one long before that is launched, and waits.",
        model="phi-2", engine="transformers", prompt=1024,
    ),
)  # fmt: skip


# -- an example carried out ---------------------------------------------------------------------------------


def _config(example: Example) -> dict[str, Any]:
    """A published model, cut to a few layers and a smaller vocabulary, so that layers fill the picture."""
    published = plain(read_document(ROOT / "models" / f"{example.model}.yaml").data)["config"]
    return {**published, "num_hidden_layers": example.layers, "vocab_size": 32_000}


def _with_model(example: Example, use: Callable[[Path], Result]) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(_config(example)), encoding="utf-8")
        draft = _config(example) | {"num_hidden_layers": example.draft_layers}
        config.with_name("draft.json").write_text(json.dumps(draft), encoding="utf-8")
        return use(config)


@cache
def simulated(example: Example) -> RunResult:
    """The row of a batch of equal prompts."""

    def run(config: Path) -> RunResult:
        scenario = config.with_name("scenario.yaml")
        scenario.write_text(
            f"name: example\nmodel: {config}\nmachine: {example.machine}\nengine: {example.engine}\n"
            "precision: {weights: bf16, activations: bf16, kv_cache: bf16}\n"
            f"placements: [{_placement(example, config)}]\n"
            f"workload: {{arrivals: {{process: batch}}, lengths: {{prompt: {example.prompt}, output: 4}}, "
            f"requests: {example.sequences}}}\n",
            encoding="utf-8",
        )
        (row,) = run_scenario(scenario).runs
        return row

    return _with_model(example, run)


def _placement(example: Example, config: Path) -> str:
    return example.placement.replace("DRAFT", str(config.with_name("draft.json")))


@cache
def _deployed(example: Example) -> Deployment:
    catalogue = Catalogue()
    given = yaml.safe_load(example.placement)
    (kind,) = [each for each in STRATEGIES if each.model_fields["strategy"].default == given["strategy"]]
    precision = PrecisionChoice(weights="bf16", activations="bf16", kv_cache="bf16")

    def place(config: Path) -> Deployment | NotPlaceable:
        model, placement = load_model(config, catalogue), yaml.safe_load(_placement(example, config))
        return deploy(yaml.safe_load(example.machine), model, example.engine, precision, kind.model_validate(placement), catalogue)

    deployed = _with_model(example, place)
    assert isinstance(deployed, Deployment), deployed
    return deployed


# -- its picture --------------------------------------------------------------------------------------------


def figure(example: Example) -> Figure:
    return timeline_figure(simulated(example).spans, example.name, example.caption)


def digest(example: Example) -> str:
    """Of all that a picture shows; times to the nanosecond, which is less than it can show."""
    shown = [_fact(span) for span in simulated(example).spans]
    return sha256(json.dumps([example.name, example.caption, shown]).encode()).hexdigest()


def _fact(span: Span) -> list[object]:
    times_ns = [round(time_s * 1e9) for time_s in (span.start_s, span.end_s)]
    return [span.category, span.operator, span.layer, span.microbatch, span.step, *span.units, *times_ns]


def draw(example: Example, folder: Path = IMAGES) -> Path:
    """Write the picture; a digest of what it was drawn from stands in it."""
    path = folder / example.picture.name
    figure(example).savefig(path, format="png", metadata={"Software": None, "Description": digest(example)})
    return path


# -- its figures --------------------------------------------------------------------------------------------


def facts(example: Example) -> str:
    """What stands between an example's marks in the page."""
    rows = {
        "model, machine and engine": _question(example),
        "memory": _memory(_deployed(example)),
        f"traffic of a decode step of {_many(example.sequences, 'sequence')}": _traffic(example),
        "transitions per token": transitions_text(transitions_per_token(_deployed(example).decoding)),
    }
    table = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
    picture = example.picture.relative_to(PAGE.parent).as_posix()
    return (
        f"```yaml\n{example.placement}\n```\n\n![Two steps: {example.caption}]({picture})\n\n"
        f"| in the picture | |\n|---|---|\n{table}\n\n"
    )


def _question(example: Example) -> str:
    machine = yaml.safe_load(example.machine)
    devices = ", ".join(f"{count} x `{device}`" for device, count in machine["devices"].items())
    return (f"{example.layers} layers of `{example.model}`; `{machine['host']}` with {devices}; `{example.engine}`; "
            f"{_many(example.sequences, 'prompt')} of {example.prompt:,} tokens")  # fmt: skip


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _memory(deployment: Deployment) -> str:
    tokens, accounts = deployment.budget.block_tokens, []
    for need in deployment.budget.needs:
        sizes = {
            "weights {}": need.parts.get("weights", 0),
            "draft weights {}": need.parts.get("draft_weights", 0),
            "fetched weights {}": need.parts.get("fetched_weights", 0),
            "KV cache {} a token": need.kv_block_bytes // tokens,
            "draft KV cache {} a token": need.draft_block_bytes // tokens,
            "fetched KV {} a token": need.fetched_block_bytes // tokens,
        }
        said = ", ".join(text.format(format_bytes(size)) for text, size in sizes.items() if size)
        if said:
            accounts.append((need.memory, said))
    return _listed(accounts)


def _traffic(example: Example) -> str:
    """Bytes over each link when every sequence decodes one token, or has a round of proposed ones; links that carry
    the same, together."""
    carried: Counter[str] = Counter()
    programs = [each for each in _deployed(example).programs if each.placement.role != "prefill"]
    for program, count in zip(programs, split_evenly(example.sequences, len(programs)), strict=True):
        speculation, streaming = program.placement.speculation, program.placement.streaming
        proposed = 0 if speculation is None else speculation.tokens
        step = [Chunk(number, example.prompt, proposed + 1, True, rows=proposed + 1) for number in range(count)]
        chunks = split_chunks(step, _parts(program))
        plans = [Plan(program.template(len(chunks), streaming is not None and streaming.across_steps), chunks)]
        if program.drafter is not None:
            alone = tuple(Chunk(number, example.prompt, 1, True) for number in range(count))
            plans += [Plan(program.drafter.template(1), (alone,))] * proposed
        for plan in plans:
            for task in plan.template.tasks:
                carried.update(dict(plan.link_bytes(task)))
    return _listed((link, format_bytes(nbytes)) for link, nbytes in carried.items() if nbytes)


def _parts(program: Program) -> int:
    """Microbatches of a step."""
    return max(program.placement.microbatches, program.rank_groups)


def _listed(pairs: Iterable[tuple[str, str]]) -> str:
    """`a and b each 3 B; c 5 B`, in the order of the first of each."""
    listed = list(pairs)
    order = list(dict.fromkeys(text for _, text in listed))
    ordered = sorted(listed, key=lambda pair: order.index(pair[1]))
    said = []
    for text, group in groupby(ordered, key=lambda pair: pair[1]):
        names = [f"`{name}`" for name, _ in group]
        said.append(f"{', '.join(names)}{' each' if len(names) > 1 else ''}: {text}")
    return "; ".join(said)


# -- the page -----------------------------------------------------------------------------------------------


def with_facts(page: str) -> str:
    """The page's text with what stands between marks made anew. Every example must have its marks."""
    for example in EXAMPLES:
        marks = re.compile(rf"(<!-- example: {example.name} -->\n).*?(<!-- end -->)", re.DOTALL)
        content = facts(example)
        page, found = marks.subn(lambda match, content=content: f"{match[1]}{content}{match[2]}", page)
        assert found == 1, f"docs/strategies.md marks {example.name} {found} times"
    return page


def main() -> None:
    for example in EXAMPLES:
        draw(example)
    PAGE.write_text(with_facts(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
