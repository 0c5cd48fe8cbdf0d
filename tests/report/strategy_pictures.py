"""The examples of docs/strategies.md: one list of placements, from which its pictures and figures are made.

`python -m tests.report.strategy_pictures` (or `make pictures`) draws every picture into docs/images/ and
writes what stands between the page's marks `<!-- example: NAME -->` and `<!-- end -->`. A test makes
everything again and compares. To add a strategy: an entry in `EXAMPLES`, a section with its marks in the page.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import yaml
from matplotlib.figure import Figure

from simulator.graph.shape import Chunk
from simulator.placement.placement import NotPlaceable
from simulator.placement.plan import Plan
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
SEQUENCES, PROMPT = 8, 32
L40S = "{name: server, host: epyc-9654-2s, devices: {l40s: 4}, host_link: pcie-gen4-x16}"
H100 = "{name: server, host: hgx-xeon-8480p-2s, devices: {h100-sxm: 4}, host_link: pcie-gen5-x16, interconnect: nvlink-4}"
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
        return use(config)


@cache
def simulated(example: Example) -> RunResult:
    """The row of a batch of equal prompts."""

    def run(config: Path) -> RunResult:
        scenario = config.with_name("scenario.yaml")
        scenario.write_text(
            f"name: example\nmodel: {config}\nmachine: {example.machine}\nengine: vllm\n"
            "precision: {weights: bf16, activations: bf16, kv_cache: bf16}\n"
            f"placements: [{example.placement}]\n"
            f"workload: {{arrivals: {{process: batch}}, lengths: {{prompt: {PROMPT}, output: 4}}, "
            f"requests: {SEQUENCES}}}\n",
            encoding="utf-8",
        )
        (row,) = run_scenario(scenario).runs
        return row

    return _with_model(example, run)


@cache
def _deployed(example: Example) -> Deployment:
    catalogue = Catalogue()
    placement = yaml.safe_load(example.placement)
    (kind,) = [each for each in STRATEGIES if each.model_fields["strategy"].default == placement["strategy"]]
    precision = PrecisionChoice(weights="bf16", activations="bf16", kv_cache="bf16")

    def place(config: Path) -> Deployment | NotPlaceable:
        model = load_model(config, catalogue)
        return deploy(yaml.safe_load(example.machine), model, "vllm", precision, kind.model_validate(placement), catalogue)

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
        "memory": _memory(_deployed(example)),
        f"traffic of a decode step of {SEQUENCES} sequences": _traffic(_deployed(example)),
        "transitions per token": transitions_text(transitions_per_token(_deployed(example).program)),
    }
    table = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
    picture = example.picture.relative_to(PAGE.parent).as_posix()
    return (
        f"```yaml\n{example.placement}\n```\n\n![Two steps: {example.caption}]({picture})\n\n"
        f"| in the picture | |\n|---|---|\n{table}\n\n"
    )


def _memory(deployment: Deployment) -> str:
    accounts = []
    for need in deployment.budget.needs:
        if not need.weights_bytes + need.kv_block_bytes:
            continue
        per_token = need.kv_block_bytes // deployment.budget.block_tokens
        cache_text = f", KV cache {format_bytes(per_token)} a token" if per_token else ""
        accounts.append((need.memory, f"weights {format_bytes(need.weights_bytes)}{cache_text}"))
    return _listed(accounts)


def _traffic(deployment: Deployment) -> str:
    """Bytes over each link when every sequence decodes one token; links that carry the same, together."""
    count = min(deployment.program.placement.microbatches, SEQUENCES)
    chunks = tuple(
        tuple(Chunk(number, PROMPT, 1, True) for number in range(first, SEQUENCES, count)) for first in range(count)
    )
    streaming = deployment.program.placement.streaming
    plan = Plan(deployment.program.template(count, streaming is not None and streaming.across_steps), chunks)
    carried: dict[str, int] = {}
    for task in plan.template.tasks:
        for link, nbytes in plan.link_bytes(task):
            carried[link] = carried.get(link, 0) + nbytes
    return _listed((link, format_bytes(nbytes)) for link, nbytes in carried.items() if nbytes)


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
