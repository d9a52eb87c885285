"""The stages as ONNX files: symbolic views and prompt slots, named values, shared weights, metadata.

Opset 20 is the oldest with tanh-GELU and LayerNormalization as single operators, and what TensorRT reads.

Shape legend: V views, S prefix tokens, H horizon, A action dims.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ki_vla.engine.exported import SAID, WEIGHTS
from ki_vla.engine.heads import TokenPrefixStage, TokenStage, action_stage
from ki_vla.engine.interface import Shape, example_inputs
from ki_vla.engine.onnx import ACTIONS, CACHED, INPUTS, LOGITS, NEXT_CACHE, OPEN_SIZES, TOKEN_CACHE, TOKENS
from ki_vla.engine.packing import Fusions
from ki_vla.engine.stages import KINDS, PrefixStage, Step, VisionStage, pure
from ki_vla.errors import VlaError
from ki_vla.export.source import Source, action_part, one_part
from ki_vla.model.config import ModelConfig

OPSET = 20
INLINE_BYTES = 1024  # smaller tensors stay in the graph
ALIGN = 4096  # so that weights can be mapped into memory
AUTO = torch.export.Dim.AUTO
PREFIX_OPEN = ({0: AUTO}, {0: AUTO}, {0: AUTO}, {0: AUTO}, None)  # open dimensions of a prefix's inputs
Progress = Callable[[str], None]
AnyStage = TypeVar('AnyStage', bound=nn.Module)


def export_graphs(
    source: Source,
    folder: Path,
    dtype: torch.dtype,
    steps: int,
    kinds: Sequence[str] = KINDS,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> bool:
    """Write every graph of a model; returns whether the prefix also gives a state token.

    Args:
        source: the weights; only one part of them is in memory at a time.
        folder: an empty folder.
        dtype: of weights and activations.
        steps: Euler steps.
        kinds: ways of denoising, of `stages.KINDS`, and `exported.SAID` for actions that are said as tokens.
        metadata: written into every graph.
        progress: called with a line for each step of the work.

    Raises:
        VlaError: the model's head cannot be exported, or a package is missing.
    """
    _check_packages()
    weights = ExternalWeights(folder / WEIGHTS)
    report = progress or (lambda line: None)
    config, info = source.config, dict(metadata or {})
    with silence_exporter(), torch.no_grad():
        report('exporting vision')
        with one_part(source, 'vision', dtype) as model:
            vision = make_contiguous(VisionStage(model, Fusions()))
        images = torch.zeros(2, config.vision.image_size, config.vision.image_size, 3, dtype=torch.uint8)
        _write(vision, 'vision', (images,), ({0: AUTO},), [TOKENS], weights, info)
        del vision
        state_token = False
        if set(kinds) & set(KINDS):
            state_token = _action_graphs(source, dtype, steps, kinds, info, weights, report)
        if SAID in kinds:
            _token_graphs(source, dtype, info, weights, report)
    weights.close()
    return state_token


def _action_graphs(
    source: Source,
    dtype: torch.dtype,
    steps: int,
    kinds: Sequence[str],
    info: Mapping[str, str],
    weights: ExternalWeights,
    report: Progress,
) -> bool:
    """The prefix, and a step of every kind; returns whether the prefix also gives a state token."""
    config = source.config
    report('exporting prefix')
    with one_part(source, 'prefix', dtype) as model:
        prefix = make_contiguous(PrefixStage(model, Fusions(), consume=True))
    state_token = prefix.state_in is not None
    names = CACHED if state_token else CACHED[:-1]
    _write(prefix, 'prefix', prefix_example(config, dtype), PREFIX_OPEN, names, weights, info)
    del prefix
    gc.collect()
    with one_part(source, action_part(config), dtype) as model:
        action = make_contiguous(action_stage(model, steps, Fusions(), consume=True))
    for kind in (each for each in kinds if each in KINDS):
        report(f'exporting {kind} step')
        tensors, dynamic = step_example(config, dtype, kind, state_token)
        # Traced operation by operation, so that a backward pass becomes operations too.
        step = pure(Step(action, kind), tensors, symbolic=True)
        _write(step, kind, tensors, dynamic, [ACTIONS], weights, info, state_token)
    return state_token


def _token_graphs(
    source: Source, dtype: torch.dtype, info: Mapping[str, str], weights: ExternalWeights, report: Progress
) -> None:
    """The prefix with room for tokens, and one token more."""
    config = source.config
    report('exporting prefix for tokens')
    with one_part(source, 'prefix', dtype) as model:
        prefix = make_contiguous(TokenPrefixStage(model, Fusions()))
        token = make_contiguous(TokenStage(model, Fusions()))
    outputs = [LOGITS, *TOKEN_CACHE]
    _write(prefix, 'token_prefix', prefix_example(config, dtype), PREFIX_OPEN, outputs, weights, info)
    report('exporting token')
    tensors, dynamic = token_example(config, dtype)
    _write(token, 'token', tensors, dynamic, [LOGITS, *NEXT_CACHE], weights, info)


def token_example(config: ModelConfig, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    """Inputs of a token, and which of their dimensions are open."""
    cache = 23 + config.max_targets
    kv = torch.zeros(config.backbone.depth, cache, config.backbone.kv_heads, config.backbone.head_dim, dtype=dtype)
    one = torch.ones(1, dtype=torch.int64)
    tensors = (one, one.clone(), kv, kv.clone(), torch.zeros(1, cache), 20 * one)
    return tensors, (None, None, {1: AUTO}, {1: AUTO}, {1: AUTO}, None)


def prefix_example(config: ModelConfig, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Inputs of the prefix stage, in a size of no importance."""
    inputs = example_inputs(config, Shape(2, 7))
    rest = [torch.from_numpy(getattr(inputs, n)) for n in ('image_mask_V', 'prompt_L', 'prompt_mask_L', 'state_S')]
    return (torch.zeros(2, config.vision.tokens, config.backbone.width, dtype=dtype), *rest)


def step_example(
    config: ModelConfig, dtype: torch.dtype, kind: str, state_token: bool
) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    """Inputs of a step of some kind, and which of their dimensions are open."""
    H, A, K, S = config.horizon, config.action_dim, config.backbone.head_dim, 23
    Q = config.action_tokens + state_token
    rows = Q if state_token else 1
    actions, flags = torch.zeros(H, A), torch.zeros(H)
    carried = {'plain': (), 'trained': (actions, flags.bool()), 'guided': (actions, flags)}[kind]
    kv = torch.zeros(config.backbone.depth, S, config.backbone.kv_heads, K, dtype=dtype)
    cached = [kv, kv.clone(), torch.ones(Q, 1, K // 2), torch.zeros(Q, 1, K // 2), torch.zeros(rows, S + Q)]
    dynamic = [{1: AUTO}, {1: AUTO}, None, None, {1: AUTO}]
    if state_token:
        cached.append(torch.zeros(1, config.expert.width, dtype=dtype))
        dynamic.append(None)
    tensors = (actions.clone(), torch.zeros(1, dtype=torch.int64), *carried, *cached)
    return tensors, (*[None] * (len(tensors) - len(cached)), *dynamic)


def make_contiguous(stage: AnyStage) -> AnyStage:
    """Every weight as the graph wants it, one after the other so that memory holds no second model."""
    for parameter in stage.parameters():
        parameter.data = parameter.data.contiguous()
    return stage


def _write(
    module: nn.Module,
    name: str,
    tensors: tuple[Tensor, ...],
    dynamic: tuple[Any, ...],
    outputs: Sequence[str],
    weights: ExternalWeights,
    metadata: Mapping[str, str],
    state_token: bool = False,
) -> None:
    """Export one module into the folder of its weights."""
    inputs = list(INPUTS[name])
    if name in KINDS:
        inputs += CACHED if state_token else CACHED[:-1]
    program = torch.onnx.export(
        module,
        tensors,
        dynamo=True,
        opset_version=OPSET,
        dynamic_shapes=dynamic,
        input_names=inputs,
        output_names=list(outputs),
        verbose=False,
    )
    assert program is not None  # only without dynamo
    model = program.model
    name_dimensions(model)
    strip_debug_info(model)
    model.metadata_props.update({**metadata, 'graph': name})
    weights.take(model)
    import onnx_ir

    onnx_ir.save(model, str(weights.path.parent / f'{name}.onnx'))
    check(weights.path.parent / f'{name}.onnx')


def check(path: Path) -> None:
    """Refuse a file that onnx.checker, with full shape inference, does not accept.

    Raises:
        VlaError: what it found.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # the checker and shape inference have unrelated error types
        raise VlaError(f'{path}: onnx.checker refuses it ({str(error).splitlines()[0]}).') from error


def name_dimensions(model: Any) -> None:
    """Give the exporter's symbols the names of `onnx.OPEN_SIZES`, wherever they occur, and one name to equal sizes.

    A session fixes open dimensions by name: one that is left open stays symbolic behind it, in shapes that are worked
    out at run time and in TensorRT's profiles.
    """
    import onnx_ir

    graph = model.graph
    whole: dict[str, str] = {}  # a dimension as the exporter wrote it, which may be a sum, -> its name
    for value in (*graph.inputs, *graph.outputs):
        for axis, name in OPEN_SIZES.get(value.name, {}).items():
            whole[str(value.shape[axis])] = name
    words = {symbol: name for symbol, name in whole.items() if symbol.isidentifier()}
    pattern = re.compile('|'.join(rf'\b{re.escape(word)}\b' for word in words) or r'(?!)')

    def named(size: Any) -> Any:
        if isinstance(size, int):
            return size
        return whole.get(str(size)) or pattern.sub(lambda found: words[found.group()], str(size))

    for value in (*graph.inputs, *graph.outputs, *(out for node in graph for out in node.outputs)):
        if value is not None and value.shape is not None:
            value.shape = onnx_ir.Shape([named(size) for size in value.shape])


def strip_debug_info(model: Any) -> None:
    """Drop what the exporter notes about the Python code that it came from: paths of this machine among it."""
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()


class ExternalWeights:
    """One file that holds the large tensors of several graphs, equal ones once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open('wb')
        self._known: dict[tuple[str, int], int] = {}

    def take(self, model: Any) -> None:
        """Move the large tensors of a graph into the file; they are let go one by one."""
        import onnx_ir

        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < INLINE_BYTES:
                continue
            data = tensor.tobytes()
            offset = self._put(data)
            value.const_value = onnx_ir.ExternalTensor(
                self.path.name,
                offset,
                len(data),
                tensor.dtype,
                shape=tensor.shape,
                name=value.name,
                base_dir=self.path.parent,
            )
        self._file.flush()

    def _put(self, data: bytes) -> int:
        key = (hashlib.sha256(data).hexdigest(), len(data))
        if key not in self._known:
            self._file.seek(-self._file.tell() % ALIGN, 1)
            self._known[key] = self._file.tell()
            self._file.write(data)
        return self._known[key]

    def close(self) -> None:
        """No more tensors."""
        self._file.close()


@contextmanager
def silence_exporter() -> Iterator[None]:
    """Without the exporter's warnings about what it does inside."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(level)


def _check_packages() -> None:
    import importlib.util

    missing = [name for name in ('onnx', 'onnxscript', 'onnx_ir') if importlib.util.find_spec(name) is None]
    if missing:
        raise VlaError(
            f'exporting needs {", ".join(missing)}; install the extra: pip install "ki_policy_node[export]".'
        )
