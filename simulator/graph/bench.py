"""What all builders of operators share: a model's cut, its number formats, and the arithmetic of a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.graph.shape import NOTHING, Amount
from simulator.graph.share import ExpertSplit, Part, Share
from simulator.graph.work import Formats, Operator, OperatorClass, Parameter, Value, Work, byte_amount
from simulator.specs.architecture import Architecture, Attention
from simulator.specs.hardware import ITEM_BYTES, Precision
from simulator.specs.weight_formats import WEIGHT_FORMATS, WeightStorage

PER_TOKEN = Amount.of(tokens=1)
ALL_HELD = ExpertSplit()


def weight_storage(model: Architecture, formats: Formats) -> WeightStorage:
    """How the parameters of a model lie in memory."""
    experts = model.experts
    heads = next((layer.attention for layer in model.layers if isinstance(layer.attention, Attention)), None)
    return WeightStorage(
        formats.weights, formats.activations, model.num_hidden_layers, model.tie_word_embeddings,
        0 if experts is None else experts.num_experts,
        1 if heads is None else heads.num_attention_heads // heads.num_key_value_heads,
    )  # fmt: skip


def parameter_bytes(storage: WeightStorage, parameter: Parameter) -> int:
    """Bytes that the part of a parameter takes."""
    return storage.parameter_bytes(parameter.name, parameter.shape, parameter.whole_shape[-1])


@dataclass(frozen=True, slots=True)
class Bench:
    """One rank's share of a model in given number formats, and how its kernels are counted."""

    model: Architecture
    share: Share
    formats: Formats
    storage: WeightStorage
    """How the model's parameters lie in memory."""
    split: ExpertSplit = ALL_HELD
    """How routed experts are shared out."""

    @classmethod
    def of(
        cls, model: Architecture, share: Share, formats: Formats, split: ExpertSplit = ALL_HELD
    ) -> Bench:
        return cls(model, share, formats, weight_storage(model, formats), split)

    @property
    def hidden(self) -> Amount:
        """The residual stream of all tokens."""
        return Amount.of(tokens=self.model.hidden_size)

    def bytes(self, elements: Amount) -> Amount:
        """Of so many activations."""
        return byte_amount(elements, self.formats.activations)

    def cached_bytes(self, elements: Amount) -> Amount:
        """Of so many numbers in the KV cache."""
        return byte_amount(elements, self.formats.kv_cache)

    def weight_bytes(self, parameters: Sequence[Parameter]) -> Amount:
        """Of parameters read once."""
        return Amount.of(one=sum(parameter_bytes(self.storage, parameter) for parameter in parameters))

    def packed_weights(self, parameters: Sequence[Parameter]) -> int:
        """The numbers of those matrices whose format nothing multiplies in."""
        matrices = [parameter for parameter in parameters if len(parameter.shape) > 1]
        formats = [self.storage.format_of(matrix.name, matrix.whole_shape[-1]) for matrix in matrices]
        return sum(
            matrix.elements
            for matrix, form in zip(matrices, formats, strict=True)
            if form.computes_in is None
        )

    def packed_cache(self, elements: Amount) -> Amount:
        """Numbers of the KV cache, if nothing multiplies in their format."""
        form = WEIGHT_FORMATS.get(self.formats.kv_cache)
        return elements if form is not None and form.computes_in is None else NOTHING

    def row_bytes(self, table: Parameter) -> int:
        """Of one row of a table that rows are looked up in."""
        width = table.shape[-1]
        return self.storage.parameter_bytes(table.name, (1, width), width)

    def multiplies_in(self, matrix: Parameter) -> tuple[Precision, ...]:
        """The formats a product by `matrix` may run in, best first: its own where products of it are
        defined and the device can, else the activations', to which it is widened first."""
        own = self.storage.format_of(matrix.name, matrix.whole_shape[-1]).computes_in
        activations = self.formats.activations
        return (activations,) if own in (None, activations) else (own, activations)

    def attends_in(self) -> tuple[Precision, ...]:
        """The formats attention may run in, best first: engines multiply by an fp8 cache as it lies, where
        the device can, and widen any other."""
        activations = self.formats.activations
        return ("fp8", activations) if self.formats.kv_cache == "fp8" else (activations,)

    def elementwise(
        self, elements: Amount, parameters: Sequence[Parameter] = (),
        operator_class: OperatorClass = "elementwise", row: int = 0,
    ) -> Work:  # fmt: skip
        """A kernel that reads and writes so many activations, and reads `parameters`; `row` numbers of them
        in sequence where one processor takes a whole row."""
        moved = self.bytes(elements) + self.weight_bytes(parameters)
        return Work(operator_class, (self.formats.activations,), NOTHING, moved, chain=row, is_warm=True)

    def matmul(
        self, name: str, layer: int | None, source: str, rows: Amount, parameters: tuple[Parameter, ...],
        inner: int, output: Value, partial: bool = False,
    ) -> Operator:  # fmt: skip
        """A projection of `rows` vectors of `inner` numbers by the matrices among `parameters`."""
        matrices = [parameter for parameter in parameters if len(parameter.shape) == 2]
        flops = rows * (2 * sum(matrix.elements for matrix in matrices))
        formats = self.multiplies_in(matrices[0])
        moved = self.weight_bytes(parameters) + self.bytes(rows * inner + output.elements)
        packed = Amount.of(one=self.packed_weights(matrices))
        work = Work("matmul", formats, flops, moved, chain=inner, packed=packed)
        works = (work, *self.quantise(formats, rows, inner))
        return Operator(name, layer, (source,), (output,), works, flops, parameters, partial=partial)

    def quantise(self, formats: tuple[Precision, ...], rows: Amount, width: int) -> tuple[Work, ...]:
        """The kernel that brings `rows` of activations to the narrower format products run in, where the
        device has a unit for it."""
        if ITEM_BYTES[formats[0]] >= ITEM_BYTES[self.formats.activations]:
            return ()
        pair = byte_amount(rows, formats[0]) + self.bytes(rows)
        return (Work("quantise", formats, NOTHING, pair * width, block_bytes=pair, is_warm=True,
                     only_in=formats[0]),)  # fmt: skip

    def columns(self, prefix: str, part: Part, inner: int, bias: bool) -> tuple[Parameter, ...]:
        """A projection whose outputs are shared out, and with them its bias."""
        weight = Parameter.cut(f"{prefix}.weight", (part.count, inner), 0, part)
        return (weight, Parameter.cut(f"{prefix}.bias", (part.count,), 0, part)) if bias else (weight,)

    def rows(self, prefix: str, part: Part, bias: bool) -> tuple[Parameter, ...]:
        """A projection to the hidden size whose inputs are shared out: ranks hold summands of its output,
        and the first one adds the bias."""
        hidden = self.model.hidden_size
        weight = Parameter.cut(f"{prefix}.weight", (hidden, part.count), 1, part)
        has_bias = bias and self.share.rank == 0
        return (weight, Parameter(f"{prefix}.bias", (hidden,))) if has_bias else (weight,)

    def mlp_part(self, prefix: str, size: int) -> Part:
        """The rank's part of a feed-forward network's channels. Where servers share its format unevenly,
        in whole blocks, of which the first ranks take one more if need be."""
        form = self.storage.format_of(f"{prefix}.down_proj.weight", size)
        unit = (form.block_columns or 1) if form.shared_unevenly else 1
        if size % unit or size // unit < self.share.degree:
            unit = 1
        return self.share.of(size // unit).times(unit)

    def norm_parameters(self, prefix: str, width: int) -> tuple[Parameter, ...]:
        """The weight, and for a layer norm the bias, of one normalisation."""
        kinds = ("weight", "bias") if self.model.norm == "layer" else ("weight",)
        return tuple(Parameter(f"{prefix}.{kind}", (width,)) for kind in kinds)
