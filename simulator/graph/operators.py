"""Every operator of one forward pass, whole or as one tensor-parallel rank's share of it.

Lowering turns operators into tasks; `work_graph` (in `model_graph`) joins them for people. How a layer's
parts are joined to the residual stream differs by family (`Residual`). Where a branch is added to the stream
by the next norm's kernel, as serving engines fuse it, the branch is left open between operators.
"""

from __future__ import annotations

from dataclasses import replace

from simulator.graph.attention import attention_operators
from simulator.graph.bench import ALL_HELD, PER_TOKEN, Bench
from simulator.graph.mlp import mlp_operators
from simulator.graph.shape import NOTHING, Amount
from simulator.graph.share import ExpertSplit, Share
from simulator.graph.work import Formats, Operator, Parameter, Value, Work
from simulator.specs.architecture import Architecture

TOKEN_ID_BYTES = 8
"""A token id travels as a 64-bit integer, as torch keeps it."""

ROWS = Amount.of(logit_rows=1)
IDS = Amount.of(tokens=TOKEN_ID_BYTES)


class OperatorFactory:
    """Builds the operators of one rank's share of a model in the given number formats."""

    def __init__(
        self, model: Architecture, share: Share, formats: Formats, split: ExpertSplit = ALL_HELD
    ) -> None:
        self.model, self.share = model, share
        self.bench = Bench.of(model, share, formats, split)
        self.hidden = self.bench.hidden
        self._layers: dict[tuple[int, bool], tuple[Operator, ...]] = {}
        """Those built already: several who place the model ask for them."""

    # -- both ends --------------------------------------------------------------------------------------

    def embed(self) -> tuple[Operator, ...]:
        """Look token ids (and positions) up, then what some families do to embeddings. A rank adds nothing
        for ids outside its rows of the table."""
        model, bench = self.model, self.bench
        operators = [self._look_up()]
        if model.embedding_size is not None:
            operators.append(self._project_in(model.embedding_size))
        if model.embed_norm:
            parameters = bench.norm_parameters("embed_norm", model.hidden_size)
            work = bench.elementwise(self.hidden * 2, parameters, "norm", model.hidden_size)
            output = (Value("residual", self.hidden),)
            operators.append(
                Operator("embed_norm", None, ("residual",), output, (work,), parameters=parameters)
            )
        return tuple(operators)

    def _look_up(self) -> Operator:
        """Rows of the table, and on the first rank of positions and of the one kind of segment."""
        model, vocabulary = self.model, self.share.of(self.model.vocab_size)
        width = model.embedding_size or model.hidden_size
        tables: tuple[Parameter, ...] = (
            Parameter.cut("embed.weight", (vocabulary.count, width), 0, vocabulary),
        )
        shared_row = NOTHING
        if self.share.rank == 0 and not model.embedding_size:
            tables += self._position_table()
        parameters = tables
        if self.share.rank == 0 and model.token_types:
            types = Parameter("token_types.weight", (model.token_types, width))
            shared_row, parameters = Amount.of(one=self.bench.row_bytes(types)), (*tables, types)
        rows = PER_TOKEN * width
        moved = IDS + self._looked_up(tables) + shared_row + self.bench.bytes(rows)
        work = Work("embedding", (self.bench.formats.activations,), NOTHING, moved)
        return Operator("embed", None, ("ids",), (Value("residual", rows),), (work,),
                        parameters=parameters, partial=True)  # fmt: skip

    def _looked_up(self, tables: tuple[Parameter, ...]) -> Amount:
        """Bytes of a row of each table for every token."""
        return PER_TOKEN * sum(self.bench.row_bytes(table) for table in tables)

    def _position_table(self) -> tuple[Parameter, ...]:
        table = self.model.positions
        return (Parameter("positions.weight", (table.rows, self.model.hidden_size)),) if table else ()

    def _project_in(self, width: int) -> Operator:
        """From the embedding's width to the layers', positions added after it; every rank does all of it."""
        weight = Parameter("project_in.weight", (self.model.hidden_size, width))
        output = Value("residual", self.hidden)
        projection = self.bench.matmul("project_in", None, "residual", PER_TOKEN, (weight,), width, output)
        table = self._position_table()
        works = projection.works
        if table:
            moved = self._looked_up(table) + self.bench.bytes(self.hidden * 2)
            works += (Work("embedding", (self.bench.formats.activations,), NOTHING, moved),)
        return Operator("project_in", None, ("residual",), (output,), works, projection.dense_flops,
                        (weight, *table))  # fmt: skip

    def head(self, has_branch: bool) -> tuple[Operator, ...]:
        """Normalise the rows whose next token is wanted and score this rank's part of the vocabulary; of an
        encoder, average each sequence's states."""
        model, bench = self.model, self.bench
        if model.is_encoder:
            pooled = Value("embedding", ROWS * model.hidden_size)
            work = bench.elementwise(self.hidden + pooled.elements)
            return (Operator("pool", None, ("residual",), (pooled,), (work,)),)
        vocabulary, width = self.share.of(model.vocab_size), model.embedding_size or model.hidden_size
        operators = [self._last_rows(has_branch)]
        if model.embedding_size is not None:
            weight = Parameter("project_out.weight", (width, model.hidden_size))
            output = Value("normed", ROWS * width)
            operators.append(bench.matmul("project_out", None, "normed", ROWS, (weight,),
                                          model.hidden_size, output))  # fmt: skip
        name = "embed" if model.tie_word_embeddings else "lm_head"
        parameters = bench.columns(name, vocabulary, width, bias=False)
        if model.lm_head_bias:
            parameters += (Parameter.cut("lm_head.bias", (vocabulary.count,), 0, vocabulary),)
        scores = Value("logits", ROWS * vocabulary.count)
        operators.append(bench.matmul("lm_head", None, "normed", ROWS, parameters, width, scores))
        return tuple(operators)

    def _last_rows(self, has_branch: bool) -> Operator:
        """The last row of every chunk, with the open branch added, normalised if the model does."""
        parameters = self.bench.norm_parameters("final_norm", self.model.hidden_size)
        parameters = parameters if self.model.final_norm else ()
        reads = ("residual", "branch") if has_branch else ("residual",)
        rows = ROWS * self.model.hidden_size
        work = self.bench.elementwise(rows * (len(reads) + 1), parameters, "norm", self.model.hidden_size)
        return Operator("final_norm", None, reads, (Value("normed", rows),), (work,), parameters=parameters)

    def sample(self) -> Operator:
        """Choose the most likely token of each row, from all its logits; one processor goes through a row."""
        moved = self.bench.bytes(ROWS * self.model.vocab_size) + ROWS * TOKEN_ID_BYTES
        formats = (self.bench.formats.activations,)
        work = Work("sampling", formats, NOTHING, moved, chain=self.model.vocab_size)
        output = Value("next_ids", ROWS, is_token_ids=True)
        return Operator("sample", None, ("logits",), (output,), (work,))

    # -- layers -----------------------------------------------------------------------------------------

    def leaves_branch(self, first_layer: int, layer_count: int) -> bool:
        """Whether some layers in a row leave a branch that is not yet added to the residual stream."""
        layers = self.model.layers[first_layer : first_layer + layer_count]
        return self.model.residual != "post" and any(spec.attention or spec.mlp for spec in layers)

    def layer(self, index: int, has_branch: bool) -> tuple[Operator, ...]:
        """The operators of layer `index`. `has_branch`: a layer before left a branch open, which this one's
        first operator adds to the residual stream."""
        if (index, has_branch) not in self._layers:
            self._layers[index, has_branch] = self._layer(index, has_branch)
        return self._layers[index, has_branch]

    def _layer(self, index: int, has_branch: bool) -> tuple[Operator, ...]:
        if self.model.residual == "post":
            return self._post(index)
        if self.model.residual in ("parallel", "parallel_two_norms"):
            return self._parallel(index, has_branch)
        return self._sequential(index, has_branch)

    def residual_add(self, layer: int) -> Operator:
        """Fold the open branch of a stage into the residual stream, so that one tensor moves on."""
        work = self.bench.elementwise(self.hidden * 3)
        return Operator("residual_add", layer, ("residual", "branch"), (Value("residual", self.hidden),),
                        (work,))  # fmt: skip

    def _sequential(self, index: int, has_branch: bool) -> tuple[Operator, ...]:
        operators: list[Operator] = []
        output, spec = Value("branch", self.hidden), self.model.layers[index]
        parts = (("attn", spec.attention, attention_operators), ("mlp", spec.mlp, mlp_operators))
        for name, part, build in parts:
            if part is None:
                continue
            operators.append(self._norm(f"{name}_norm", index, has_branch))
            operators += _summed(build(self.bench, index, "normed", output))
            if self.model.residual == "sandwich":
                operators.append(self._norm_branch(f"{name}_post_norm", index))
            has_branch = True
        return tuple(operators)

    def _parallel(self, index: int, has_branch: bool) -> tuple[Operator, ...]:
        """Both parts see the same input; their ranks' summands are added up together."""
        operators, mlp_source = [self._norm("attn_norm", index, has_branch)], "normed"
        if self.model.residual == "parallel_two_norms":
            mlp_source = "mlp_normed"
            operators.append(self._norm("mlp_norm", index, has_branch=False, output=mlp_source))
        parts = (Value("attn_branch", self.hidden), Value("mlp_branch", self.hidden))
        work = self.bench.elementwise(self.hidden * 3)
        roles = tuple(part.role for part in parts)
        return (
            *operators,
            *attention_operators(self.bench, index, "normed", parts[0]),
            *mlp_operators(self.bench, index, mlp_source, parts[1]),
            Operator("branch_add", index, roles, (Value("branch", self.hidden),), (work,), partial=True),
        )

    def _post(self, index: int) -> tuple[Operator, ...]:
        operators: list[Operator] = []
        branch = Value("branch", self.hidden)
        for name, build in (("attn", attention_operators), ("mlp", mlp_operators)):
            operators += _summed(build(self.bench, index, "residual", branch))
            operators.append(self._norm_sum(f"{name}_norm", index))
        return tuple(operators)

    def _norm(self, name: str, layer: int, has_branch: bool, output: str = "normed") -> Operator:
        """Normalise the residual stream, after adding the open branch to it."""
        outputs = (Value("residual", self.hidden),) if has_branch else ()
        reads = ("residual", "branch") if has_branch else ("residual",)
        return self._norm_operator(name, layer, reads, (*outputs, Value(output, self.hidden)))

    def _norm_sum(self, name: str, layer: int) -> Operator:
        """The normalised sum of stream and branch becomes the stream."""
        return self._norm_operator(name, layer, ("residual", "branch"), (Value("residual", self.hidden),))

    def _norm_branch(self, name: str, layer: int) -> Operator:
        return self._norm_operator(name, layer, ("branch",), (Value("branch", self.hidden),))

    def _norm_operator(
        self, name: str, layer: int, reads: tuple[str, ...], writes: tuple[Value, ...]
    ) -> Operator:
        parameters = self.bench.norm_parameters(f"layers.{layer}.{name}", self.model.hidden_size)
        moved = self.hidden * (len(reads) + len(writes))
        work = self.bench.elementwise(moved, parameters, "norm", self.model.hidden_size)
        return Operator(name, layer, reads, writes, (work,), parameters=parameters)


def _summed(operators: tuple[Operator, ...]) -> tuple[Operator, ...]:
    """The same, the ranks' summands of the last one's output marked to be added up."""
    return (*operators[:-1], replace(operators[-1], partial=True))
