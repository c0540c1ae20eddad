"""The ONNX file: one pass as torch's exporter writes it; of several, that pass as the body of a loop."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

from ..errors import UsageError
from .networks import Network, Pass, Summary
from .program import Outputs, program_of, shapes_of
from .tensor_call import TensorCall

if TYPE_CHECKING:
    import onnx

_NUMBER, _MOST_BYTES = "loop/number", 2**31 - 1
METADATA = "bayesify"  # the key of the metadata


def require_onnx() -> None:
    """Refuse where the exporter or the runtime is missing.

    Raises:
        UsageError: naming what to install.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError(f'ONNX needs {error.name}, which is not installed: pip install "bayesify[export]"') from None


def write_onnx(network: Network, file: BinaryIO, metadata: dict[str, Any]) -> Outputs:
    """Write the model; what it computes, in onnxruntime.

    Raises:
        UsageError: torch's exporter refuses it, or it is larger than a file of ONNX may be.
    """
    import onnxruntime

    model = _model(network)
    _clean(model)
    _name_batch(model, network.one.call)
    for key, value in {METADATA: json.dumps(metadata), **_texts(metadata)}.items():
        model.metadata_props.add(key=key, value=value)
    if model.ByteSize() > _MOST_BYTES:
        raise UsageError("the model is larger than the 2 GiB that one ONNX file may have: export it as .pt2")
    written = model.SerializeToString()
    file.write(written)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(written, options, providers=["CPUExecutionProvider"])
    taken = {own.name for own in session.get_inputs()}

    def outputs(tensors: Sequence[Tensor]) -> list[Tensor]:
        named = dict(zip(network.one.call.names, tensors, strict=True))
        given = {name: tensor.detach().cpu().numpy() for name, tensor in named.items() if name in taken}
        return [torch.from_numpy(array) for array in session.run(list(network.names), given)]

    return outputs


def _model(network: Network) -> onnx.ModelProto:
    call, summary = network.one.call, network.summary
    number = torch.zeros(1, dtype=torch.int64)
    of_outputs = network.names if summary is None else [f"loop/result_{at}" for at in range(_outputs(network))]
    names = [_NUMBER, *call.names]
    one = _exported(network.one, (number, *call.tensors), [None, *shapes_of(call.dims)], names, of_outputs)
    if summary is None:
        del one.graph.input[0]
        return one
    with torch.no_grad():
        stacked = tuple(torch.stack([own] * network.passes) for own in network.one(number, *call.tensors))
    of_stacked = [f"loop/stacked_{at}" for at in range(len(stacked))]
    open_dims = [{at for at, dim in enumerate(_dims(own), 1) if dim.dim_param} for own in one.graph.output]
    shapes = [dict.fromkeys(own, torch.export.Dim.AUTO) for own in open_dims]
    after = _exported(summary, stacked, shapes, of_stacked, network.names)
    for given, taken in zip(one.graph.output, after.graph.input, strict=True):
        new = {dim.dim_param: own.dim_param for dim, own in zip(_dims(taken)[1:], _dims(given), strict=True)}
        _rename_dims(after.graph.output, new)
    return _looped(one, after, network.passes)


def _name_batch(model: onnx.ModelProto, call: TensorCall) -> None:
    """`batch` for the dimension that has the examples, in the inputs and the outputs."""
    dims = dict(zip(call.names, call.dims, strict=True))
    known = {own.name: dims[own.name] for own in model.graph.input}
    symbols = {_dims(own)[known[own.name]].dim_param for own in model.graph.input if known[own.name] is not None}
    _rename_dims([*model.graph.input, *model.graph.output], dict.fromkeys(symbols, "batch"))


def _dims(value: onnx.ValueInfoProto) -> Any:
    return value.type.tensor_type.shape.dim


def _rename_dims(values: Iterable[onnx.ValueInfoProto], new: dict[str, str]) -> None:
    for value in values:
        for dim in _dims(value):
            if dim.dim_param in new and dim.dim_param:
                dim.dim_param = new[dim.dim_param]


def _outputs(network: Network) -> int:
    with torch.no_grad():
        return len(network.one(torch.zeros(1, dtype=torch.int64), *network.one.call.tensors))


def _exported(
    module: Pass | Summary, tensors: tuple[Tensor, ...], shapes: list[Any], names: Sequence[str], outputs: Sequence[str]
) -> onnx.ModelProto:
    given: Any = {"stacked": tuple(shapes)}
    if isinstance(module, Pass):
        given = {"number": shapes[0], "tensors": tuple(shapes[1:])}
    program = program_of(module, tensors, None, given)
    # names that no value inside has: the exporter does not look whether one is taken
    taken, answered = ([f"{kind}/{at}" for at in range(len(own))] for kind, own in (("in", names), ("out", outputs)))
    with _quietly():
        try:
            exported: Any = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=taken, output_names=answered
            )
        except Exception as error:
            raise UsageError(f"torch's ONNX exporter does not take this model: {_cause(error)}; try .pt2") from error
    model: onnx.ModelProto = exported.model_proto
    known = dict(zip([*taken, *answered], [*names, *outputs], strict=True))
    _rename(model.graph, f"{type(module).__name__.lower()}/", known)
    return model


def _looped(one: onnx.ModelProto, summary: onnx.ModelProto, passes: int) -> onnx.ModelProto:
    """A loop over the pass, which sees the inputs and weights around it, and the summary of what it gives."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    inside, after = one.graph, summary.graph
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["loop/condition"], ["loop/goes_on"]),
            helper.make_node("Reshape", ["loop/at", "loop/one"], [_NUMBER]),
            *inside.node,
        ],
        "one_pass",
        [
            helper.make_tensor_value_info("loop/at", TensorProto.INT64, []),
            helper.make_tensor_value_info("loop/condition", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("loop/goes_on", TensorProto.BOOL, []), *inside.output],
    )
    constants = {"loop/passes": np.array(passes), "loop/one": np.array([1]), "loop/always": np.array(True)}
    stacked = [own.name for own in after.input]
    loop = helper.make_node("Loop", ["loop/passes", "loop/always"], stacked, name="passes", body=body)
    graph = helper.make_graph(
        [loop, *after.node],
        "passes_and_summary",
        [own for own in inside.input if own.name != _NUMBER],
        list(after.output),
        [*inside.initializer, *after.initializer, *(numpy_helper.from_array(v, k) for k, v in constants.items())],
    )
    model = helper.make_model(graph, opset_imports=one.opset_import, functions=[*one.functions, *summary.functions])
    model.ir_version, model.producer_name, model.producer_version = one.ir_version, "bayesify", ""
    return model


def _rename(graph: onnx.GraphProto, prefix: str, known: dict[str, str]) -> None:
    """New names for all values in a graph and its subgraphs: as known, else with the prefix."""

    def new(name: str) -> str:
        return name and known.get(name, prefix + name)

    for inner in _with_subgraphs(graph):
        for node in inner.node:
            node.input[:], node.output[:] = map(new, node.input), map(new, node.output)
        for own in (*inner.input, *inner.output, *inner.initializer):
            own.name = new(own.name)
        del inner.value_info[:]


def _with_subgraphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _with_subgraphs(inner)


def _clean(model: onnx.ModelProto) -> None:
    """Without what torch notes of the code that a node comes from, which names places on this machine."""
    for graph in _with_subgraphs(model.graph):
        for own in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
            del own.metadata_props[:]
            own.doc_string = ""
    del model.metadata_props[:]


def _texts(metadata: dict[str, Any]) -> dict[str, str]:
    return {f"{METADATA}.{key}": str(value) for key, value in metadata.items() if isinstance(value, str | int | float)}


def _cause(error: BaseException) -> str:
    """The first line of what lies at the bottom of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what torch's exporter prints and logs of its progress."""
    logger = logging.getLogger("onnxscript")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
