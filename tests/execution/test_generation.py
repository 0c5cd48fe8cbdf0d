"""Greedy generation against the network's own loop, its end, and its times."""

import time
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from simulator.execution import generation
from simulator.execution.generation import PRINTABLE, greedy, random_language_model
from simulator.execution.weights_folder import load_folder
from simulator.specs.catalogue import Catalogue
from simulator.specs.model import load_model
from tests.execution.small_weights import write_folder

PROMPT = [5, 6, 7, 8]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return replace(load_folder(write_folder(tmp_path_factory.mktemp("small"))), end_ids=frozenset())


def test_tokens_are_those_of_plain_generation(small):
    chosen, _ = greedy(small, PROMPT, 12)
    ids, logits = small.network.generate(PROMPT, 12)
    assert [each.token_id for each in chosen] == ids
    likeliest = logits.softmax(-1).max(-1).values.tolist()
    assert [each.probability for each in chosen] == pytest.approx(likeliest, rel=1e-4)


def test_it_ends_with_the_token_that_means_the_end(small):
    whole, _ = greedy(small, PROMPT, 12)
    end = whole[5].token_id
    at = [each.token_id for each in whole].index(end)
    cut, _ = greedy(replace(small, end_ids=frozenset({end})), PROMPT, 12)
    assert [each.token_id for each in cut] == [each.token_id for each in whole[: at + 1]]


def test_times_count_from_the_prompt_and_include_every_pass(small, monkeypatch):
    honest = generation.next_logits
    monkeypatch.setattr(generation, "next_logits", lambda *given: (time.sleep(0.02), honest(*given))[1])
    chosen, here = greedy(small, PROMPT, 4)
    times = [0.0, *(each.measured_s for each in chosen)]
    assert all(later - earlier >= 0.02 for earlier, later in pairwise(times))
    assert here.cpu
    assert here.threads == torch.get_num_threads()


def test_random_weights_answer_in_printable_bytes_on_one_thread():
    model = random_language_model(load_model("tiny-llama", Catalogue()), seed=3)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        chosen, here = greedy(model, list(b"Where?"), 8)
        assert (here.threads, torch.get_num_threads()) == (1, 2)
    finally:
        torch.set_num_threads(before)
    assert all(each.token_id in PRINTABLE for each in chosen)
    assert [each.token_id for each in greedy(model, list(b"Where?"), 8)[0]] == [
        each.token_id for each in chosen
    ]


def test_progress_is_told_after_every_token(small):
    told = []
    greedy(small, PROMPT, 3, lambda done, count: told.append((done, count)))
    assert told == [(1, 3), (2, 3), (3, 3)]
