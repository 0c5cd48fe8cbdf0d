"""What a deployment is: transitions of one token, in closed form, and the KV blocks of pools."""

import pytest

from simulator.placement.memory import budget
from simulator.placement.placement import Placement
from simulator.placement.strategies import Disaggregated
from simulator.specs.catalogue import Catalogue
from simulator.specs.model import load_model
from simulator.specs.scenario import PrecisionChoice
from simulator.study.deploy import Deployment, deploy, transitions_per_token
from simulator.study.run import memory_use
from tests.placed import deployed, stages

LAYERS = 4
RANKS = {2: "gpu-0+gpu-1", 4: "gpu-0+gpu-1+gpu-2+gpu-3"}


def transitions(placement: Placement) -> tuple[int, int]:
    """Between accelerators, and from or to the host."""
    counted = transitions_per_token(deployed(placement, "tiny-mixtral").program)
    at_host = sum(count for pair, count in counted.items() if "host" in pair)
    return sum(counted.values()) - at_host, at_host


@pytest.mark.parametrize("degree", RANKS)
def test_ranks_that_share_all_tokens(degree):
    """All-reduces after the embedding and twice a layer, then logits to the first rank; ids to every rank."""
    placement = Placement("ranks", stages((RANKS[degree], LAYERS)), whole_experts=True)
    assert transitions(placement) == (degree * (2 * LAYERS + 1) + degree - 1, degree + 1)


@pytest.mark.parametrize("degree", RANKS)
def test_ranks_with_sequences_of_their_own(degree):
    """Once round before the experts of each layer and once after; ids to one rank alone."""
    placement = Placement("ranks", stages((RANKS[degree], LAYERS)), degree, whole_experts=True, by_sequence=True)
    assert transitions(placement) == (degree * 2 * LAYERS, 2)


def test_microbatches_do_not_add_to_a_token():
    whole, cut = (Placement("stages", stages(("gpu-0", 2), ("gpu-1", 2)), count) for count in (1, 4))
    assert transitions(whole) == transitions(cut) == (1, 2)


# --- pools -------------------------------------------------------------------------------------------------------


def apart(model_name: str, machine_name: str, **pools: dict[str, object]) -> Deployment:
    strategy = Disaggregated.model_validate(pools)
    precision = PrecisionChoice(weights="bf16", activations="bf16", kv_cache="bf16")
    catalogue = Catalogue()
    found = deploy(machine_name, load_model(model_name, catalogue), "vllm", precision, strategy, catalogue)
    assert isinstance(found, Deployment), found
    return found


def test_no_pool_is_limited_by_the_other():
    """An L40S has 48 GB, a Cloud AI 100 Ultra 128: each pool has the KV blocks of its own devices, alone or not."""
    unlike = apart("llama-3.1-8b", "cpu-gpu-nr1", prefill={"devices": ["x86.gpu-0"]}, decode={"replicas": 2})
    alone = {}
    for role, device in (("prefill", "x86.gpu-0"), ("decode", "nr1.accelerator-0")):
        program = next(each for each in unlike.programs if each.placement.role == role)
        assert program.placement.devices == (device,)
        alone[role] = budget(program, unlike.engine).kv_blocks
    assert unlike.blocks == alone
    assert alone["decode"] > 2 * alone["prefill"]
    used = memory_use(unlike, {"prefill": 3, "decode": 5})
    cached = {use.memory: use.parts["kv_cache"] for use in used if "kv_cache" in use.parts}
    block = 2 * 32 * 8 * 128 * 2 * 16
    assert cached == {"x86.gpu-0": 3 * block, "nr1.accelerator-0": 5 * block, "nr1.accelerator-1": 5 * block}


def test_a_memory_that_both_pools_use_is_told_of_once():
    """The host's, through which token ids pass."""
    deployment = apart("llama-3.1-8b", "epyc-9654-4x-l40s")
    used = [use.memory for use in memory_use(deployment, {"prefill": 1, "decode": 1})]
    assert sorted(used) == ["gpu-0", "gpu-1", "host"]
    whole = next(need for need in deployment.budget.needs if need.memory == "host")
    assert next(use for use in memory_use(deployment, {"prefill": 0, "decode": 0}) if use.memory == "host").parts == whole.parts


def test_a_pool_that_has_no_room_says_which_it_is_and_by_how_much():
    """Two L40S hold a model of 32 billion in bf16, one does not. The decode pool must hold prompt and answer, the
    prefill pool the prompt."""
    found = apart("qwen3-32b", "epyc-9654-4x-l40s", prefill={}, decode={"tensor_parallel": 2})
    reason = found.refusal(fewest_prompt_tokens=100, fewest_tokens=200)
    assert reason is not None and reason.startswith("prefill: needs ") and "gpu-0" in reason
    assert "decode: " not in reason
    small = apart("llama-3.1-8b", "epyc-9654-4x-l40s")
    held = small.pools["decode"].kv_blocks * small.pools["decode"].block_tokens
    assert small.refusal(held, held) is None
    too_long = small.refusal(held, held + 1)
    assert too_long is not None and too_long.startswith("decode: needs ") and "prefill" not in too_long
