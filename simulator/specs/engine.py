"""The serving software being modelled: its scheduling defaults, memory reserve and overheads."""

import re
from typing import Annotated, Any, Literal, Optional, Self

from pydantic import AfterValidator, Field, create_model, model_validator

from simulator import units
from simulator.specs.base import Spec, rule_broken
from simulator.specs.provenance import Sources
from simulator.specs.quantities import (
    PositiveShare,
    Quantity,
    Seconds,
    SecondsPerRequest,
    SecondsPerToken,
    Tokens,
    WholeNumber,
)

MetricsClock = Literal["client", "engine", "call"]
"""`client`: from a client's sending to its receiving, network and host included; `engine`: from the engine's
queue to the ends of steps; `call`: of one call that answers all requests."""


class SchedulerSettings(Spec):
    """What the engine puts into one step."""

    policy: Literal["continuous_batching", "prefill_first", "static_batch"] = "continuous_batching"
    """`continuous_batching`: prompts and decodes together in a step, requests join and leave between any two
    (vLLM V1, TensorRT-LLM, SGLang); `prefill_first`: the same, but a step has either prompts or decodes, and
    prompts go first (vLLM V0); `static_batch`: a batch is prefilled and decodes until all of it is done."""
    order: Literal["fcfs", "priority", "shortest_first"] = "fcfs"
    """In which order those that wait are admitted: as they came, by the lowest priority number, or by the
    fewest tokens of prompt."""
    preemption: Literal["recompute", "swap"] = "recompute"
    """What becomes of a sequence that gives way when KV blocks run out: it is computed again, or waits in
    the `host_kv` of the engine's memory as long as there is room."""
    prefix_caching: bool = False
    """Whether full KV blocks of what was computed are kept until they are needed, for prompts that begin in
    the same way."""
    watermark: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the KV blocks that admission leaves free, for those that run to grow into."""
    max_queue: Tokens | None = None
    """Most requests that wait; further ones are rejected. None: any number."""
    max_num_seqs: Tokens
    """Most sequences in one step."""
    max_num_batched_tokens: Tokens
    """Most tokens in one step, prompts and decodes together."""
    max_num_batched_tokens_of_encoders: Tokens | None = None
    """The same for models that answer with a vector; as many if not given."""
    chunked_prefill: bool
    """Whether a prompt may be spread over steps that also decode."""
    max_prefills_per_step: Tokens | None = None
    """Most prompts begun in one step; absent: as many as the tokens allow."""
    kv_block_tokens: Tokens
    """Tokens that one block of KV cache holds."""
    full_reservation: bool
    """Whether a request is admitted only when blocks for its whole answer are free."""
    overlap: bool = False
    """Whether each step is decided while the one before is under way, as by vLLM's asynchronous scheduling
    and the overlap schedulers of TensorRT-LLM and SGLang: a request misses the step after the one it
    comes in."""

    @model_validator(mode="after")
    def _every_sequence_gets_a_token(self) -> Self:
        if self.max_num_batched_tokens < self.max_num_seqs:
            advice = f"must be at least max_num_seqs ({self.max_num_seqs}), a token for each sequence"
            raise rule_broken(advice, "max_num_batched_tokens")
        return self


class EngineMemory(Spec):
    """What the engine takes and leaves of a device's memory."""

    utilization: PositiveShare
    """Share of the memory named by `of` that it uses."""
    of: Literal["capacity", "free"] = "capacity"
    """`capacity`: utilization is of the whole memory, weights included (vLLM's gpu_memory_utilization);
    `free`: of what weights, activations and the runtime leave, all of it KV cache (TensorRT-LLM's
    free_gpu_memory_fraction)."""
    context_bytes: Annotated[float, Quantity(units.BYTES, better="low"), Field(alias="context")]
    """What the runtime itself takes on each device: context, libraries, graphs."""
    graphs_bytes: Annotated[float, Quantity(units.BYTES, better="low"), Field(alias="graphs")] = 0.0
    """What graphs of kernels captured beforehand take on each device, where `context` does not hold it."""
    collectives_bytes: Annotated[float, Quantity(units.BYTES, better="low"), Field(alias="collectives")] = 0.0
    """Buffers of the collective library on each device that shares layers with others."""
    sampler_bytes_per_logit: Annotated[WholeNumber, Field(ge=0, le=1_000_000)]
    """Temporaries of the sampler for each logit of each sequence."""
    host_kv_bytes: Annotated[float, Quantity(units.BYTES, better="high"), Field(alias="host_kv")] = 0.0
    """Host memory for KV blocks of each placement that leave its devices: those of preempted sequences with
    `preemption: swap`, and with `prefix_caching` what was evicted."""
    pinned: bool = True
    """Whether the host memory that copies start or end in is page-locked; else links move them at their
    `pageable_efficiency`."""


def changes_of(settings: type[Spec]) -> type[Spec]:
    """The record of some of the settings in another one, which replace those of an engine's profile."""
    fields: dict[str, Any] = {}
    for name, info in settings.model_fields.items():
        checked = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
        known = Field(default=None, alias=info.alias, description=info.description)
        fields[name] = (Optional[checked], known)  # noqa: UP045
    return create_model(f"{settings.__name__}Changes", __base__=Spec, __doc__=settings.__doc__, **fields)


class Overheads(Spec):
    """What the engine's own thread spends."""

    step_s: Annotated[Seconds, Field(alias="step")]
    """On every step, whatever is in it."""
    per_sequence_s: Annotated[Seconds, Field(alias="per_sequence")]
    """More for each sequence in the step."""
    block_copy_s: Annotated[Seconds, Field(alias="block_copy")] = 0.0
    """For each piece in which KV blocks are copied to host memory or back, besides its bytes: one layer's
    keys of a block, or its values. Nothing where pieces are gathered first."""
    fetch_s: Annotated[Seconds, Field(alias="fetch")] = 0.0
    """What bringing the weights of a layer from another memory costs besides the copy: to allocate their
    place, and to free it after use."""


class Launch(Spec):
    """What the engine's own thread spends on launching kernels. An eager engine launches each by itself, so
    a step takes the longer of launching and computing; a graph of kernels is launched at once."""

    kernel_s: Annotated[Seconds, Field(alias="kernel")]
    """For each kernel that is launched by itself."""
    graphs: Literal["all", "decode", "none"]
    """Steps whose kernels are launched as one graph: `all`, those that only decode, or `none`."""


def _operator_key(key: str) -> str:
    """`key` if it is an operator, optionally with something that models ask of it: `rotary.rope`."""
    if re.fullmatch(r"[a-z]+(_[a-z]+)*(\.[a-z]+(_[a-z]+)*)?", key) is None:
        raise rule_broken("write an operator, as `rotary`, or with what the model asks of it, `rotary.rope`")
    return key


OperatorKey = Annotated[str, AfterValidator(_operator_key)]


class OwnCode(Spec):
    """What an engine whose operators are scripts of several small kernels takes beyond one kernel each.
    Fused engines leave it out."""

    operator_s: Annotated[Seconds, Field(alias="operator")] = 0.0
    """For every operator: on a processor in turn with its kernel, on a device by the thread that launches."""
    operators: dict[OperatorKey, Seconds] = Field(default_factory=dict)
    """More for some, by operator or by operator and what the model asks of it: `rotary.rope`. For each expert
    of a layer `expert_up_proj.experts`, and for each that some token chose `expert_up_proj.active`. What it
    takes longer to launch `attention` on a device in a step with prompts is `attention.prompt`."""
    passes: dict[OperatorKey, Annotated[float, Quantity(units.NUMBER, better="low", least=0)]] = Field(
        default_factory=dict
    )
    """By the same keys, how many more times what an operator reads and writes goes through memory."""
    score_bytes: Annotated[WholeNumber, Field(ge=0, le=1_000_000)] = 0
    """Written and read in memory for each score of a query, a key and a head, where attention is not one
    kernel."""
    unpack_bytes: Annotated[WholeNumber, Field(ge=0, le=1000)] = 0
    """Written and read in memory for each number of a weight or of the KV cache in a format that nothing
    multiplies in, such as int4, by kernels that unpack it before each use; none where products unpack it
    themselves."""


class HostStages(Spec):
    """Core time that the host spends on a request outside the engine's loop."""

    receive_s: Annotated[SecondsPerRequest, Field(alias="receive")]
    """To take a request from the network, for each request."""
    tokenize_s: Annotated[SecondsPerToken, Field(alias="tokenize")]
    """For each token of the prompt."""
    detokenize_s: Annotated[SecondsPerToken, Field(alias="detokenize")]
    """For each token of the answer."""
    send_s: Annotated[SecondsPerToken, Field(alias="send")]
    """To put a token on the network, for each token of the answer."""


class Engine(Spec):
    """One serving engine, as it comes."""

    name: str
    """With the version that was looked at or measured."""
    scheduler: SchedulerSettings
    """What goes into a step."""
    memory: EngineMemory
    """What it reserves."""
    overheads: Overheads
    """Time on its own thread."""
    host_stages: HostStages
    """Core time around it."""
    launch: Launch = Launch(kernel_s=0.0, graphs="all")
    """Time to launch kernels; nothing if not given."""
    code: OwnCode = OwnCode()
    """Time of its own code in operators; nothing if not given."""
    metrics_clock: MetricsClock = "client"
    """Which clock its latencies are read from, as by those who publish figures of it."""
    sources: Sources = Field(default_factory=dict)
    """Where each figure comes from."""

    @property
    def is_eager(self) -> bool:
        """Whether kernels are launched one by one, at least in some steps."""
        launching = self.launch.kernel_s or self.code.operator_s or self.code.operators
        return self.launch.graphs != "all" and bool(launching)
