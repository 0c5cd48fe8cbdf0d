"""Room for what passes through a device: fetched weights, new tokens on their way home, known steps."""

from dataclasses import replace

import pytest

from simulator.graph.shape import Chunk
from simulator.placement.liveness import Liveness
from simulator.placement.memory import budget
from simulator.placement.placement import KvHome, Placement
from simulator.placement.plan import Plan
from tests import tiny


def planned(placement: Placement, new: int = 5, context: int = 3) -> Plan:
    program = tiny.program(placement, tiny.server(2, cpu=tiny.device("cpu")))
    chunks = tuple((Chunk(number, context, new, True),) for number in range(placement.microbatches))
    return Plan(program.template(placement.microbatches), chunks)


def test_a_fetch_that_may_come_at_any_time_does_not_add_up_what_excludes_each_other() -> None:
    """Weights come while any of six microbatches computes; those compute in turn, so of what lies between a
    layer's operators there is one microbatch's share, and of the residual stream one for each."""
    many = replace(tiny.streamed(), microbatches=6)
    plan = planned(many, new=50)
    kinds = Liveness(plan.template, plan.template.tensors).most(plan)["gpu-0"]
    token = 2 * 24
    streams = 6 * 2 * token  # the residual and the branch that is still to be added
    between = 2 * 3 * 40 + token  # gate and up, what is activated, what was normed
    assert kinds["activations"] <= 50 * (streams + between)


@pytest.mark.parametrize("buffers", [1, 2, 3])
def test_new_tokens_that_go_home_make_room_before_more_come(buffers: int) -> None:
    """However slow the way home is, so many layers' new tokens are on the device, and the next one's."""
    away = replace(tiny.single(), kv_home=KvHome("host", buffers=buffers))
    plan = planned(away, new=50, context=0)
    kinds = Liveness(plan.template, plan.template.tensors).most(plan)["gpu-0"]
    token = 2 * 2 * 6 * 2  # keys and values of two heads of six channels, two bytes each
    assert 50 * token * buffers <= kinds["fetched_kv"] <= 50 * token * (buffers + 1)


def test_steps_that_are_known_bound_a_memory_more_closely() -> None:
    """Two microbatches of one prompt each, where an unknown step might give all tokens to one of them."""
    program = tiny.program(replace(tiny.streamed(), microbatches=2), tiny.server(1))
    engine = tiny.engine(max_num_seqs=2, max_num_batched_tokens=64)
    step = tuple((Chunk(number, 0, 32, True),) for number in range(2))
    accounts = [budget(program, engine), budget(program, engine, [step])]
    general, known = (next(n for n in each.needs if n.memory == "gpu-0") for each in accounts)
    assert known.parts["weights"] == general.parts["weights"]
    assert known.parts["activations"] < general.parts["activations"]
