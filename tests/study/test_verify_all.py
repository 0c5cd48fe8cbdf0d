"""What `verify --all` carries out: every strategy and every small model. That it does, and finds nothing, is
part of `make test`; here is what it takes to be complete."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from simulator.errors import InputError
from simulator.placement.strategies import STRATEGIES
from simulator.specs.catalogue import Catalogue
from simulator.specs.scenario import load_scenario
from simulator.study import verify_all as module
from simulator.study.compare import KINDS, ROUNDS, Verified
from simulator.study.verify_all import PATTERN, tallies, verify_all

CATALOGUE = Catalogue()
RUNS = [
    run
    for path in sorted((CATALOGUE.roots[-1] / "scenarios").glob(PATTERN))
    for run in load_scenario(path, STRATEGIES, catalogue=CATALOGUE).runs
]
ROW = Verified("machine", "tiny-llama", "all of it", "ok", "single_device", steps=3, tasks=9, tokens=2, kinds=KINDS)

OF_DECODERS = {
    "kv_offload", "attention_offload", "expert_offload", "expert_parallel", "disaggregated", "speculative",
}  # fmt: skip


def test_every_small_model_meets_every_strategy() -> None:
    """Encoders keep no cache and have no decode, so strategies about these are for decoders only."""
    models = [name for name in CATALOGUE.ids("models") if name.startswith("tiny-")]
    strategies = {str(kind.model_fields["strategy"].default) for kind in STRATEGIES}
    met: dict[str, set[str]] = {name: set() for name in models}
    for run in RUNS:
        met[run.model].add(run.placement.strategy)  # type: ignore[attr-defined]
    for name, found in met.items():
        is_encoder = name in ("tiny-bert", "tiny-roberta")
        assert found == (strategies - OF_DECODERS if is_encoder else strategies), name


def test_a_strategy_that_nobody_carries_out_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that no placement could be made of."""

    def carried_out(*_: object, **__: object) -> Iterator[Verified]:
        yield ROW
        yield replace(ROW, strategy="custom", status="not placed")

    monkeypatch.setattr(module, "carry_out", carried_out)
    with pytest.raises(InputError) as caught:
        verify_all()
    lines = str(caught.value).splitlines()
    assert len(lines) == len(STRATEGIES) - 1
    assert "strategy = 'attention_offload': no scenario tiny-*.yaml here carries it out" in lines[0]
    assert "strategy = 'custom'" in lines[1]


def test_a_strategy_that_misses_a_kind_of_step_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [str(kind.model_fields["strategy"].default) for kind in STRATEGIES]
    rows = [replace(ROW, strategy=name) for name in names]
    rows.append(replace(ROW, strategy="custom", model="tiny-gpt2", kinds=("prefill", "decode")))
    monkeypatch.setattr(module, "carry_out", lambda *_, **__: iter(rows))
    with pytest.raises(InputError) as caught:
        verify_all()
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "strategy custom = 'chunk': not in every decoder's placement" in lines[0]
    assert "strategy custom = 'unlike lengths'" in lines[1]


def test_rounds_that_never_turn_out_in_some_way_are_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [str(kind.model_fields["strategy"].default) for kind in STRATEGIES]
    rows = [replace(ROW, strategy=name, rounds=ROUNDS[:2] * (name == "speculative")) for name in names]
    monkeypatch.setattr(module, "carry_out", lambda *_, **__: iter(rows))
    with pytest.raises(InputError) as caught:
        verify_all()
    assert "rounds = 'all accepted': in no verification of proposed tokens" in str(caught.value)


def test_a_tally_adds_up_a_strategy() -> None:
    rows = [
        ROW,
        replace(ROW, model="tiny-gpt2", status="mismatch", logits_difference=0.5, kinds=KINDS[:2]),
        replace(ROW, model="tiny-bert", is_encoder=True, kinds=("prefill",)),
        replace(ROW, status="not placed", steps=0, tasks=0, tokens=0, kinds=()),
        replace(ROW, strategy="custom", kinds=KINDS[:1], logits_difference=None),
    ]
    first, second = tallies(rows)
    assert (first.strategy, first.models, first.carried_out, first.not_placed) == ("single_device", 3, 3, 1)
    assert (first.mismatches, first.steps, first.tasks, first.tokens) == (1, 9, 27, 6)
    assert first.logits_difference == 0.5
    assert set(first.kinds) == {"prefill", "chunk"}
    assert (second.strategy, second.kinds, second.logits_difference) == ("custom", ("prefill",), 0.0)
