"""The ONNX runner: exported graphs in ONNX Runtime, on a CPU, with CUDA or with TensorRT.

Views and prompt slots are dynamic in the files (`OPEN_SIZES`). Each static shape gets a session of its own in which
they are fixed, so that no shape is computed at run time. IO binding passes values from graph to graph: on a GPU, keys
and values never go through host memory.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ki_common.errors import first_line
from ki_vla.engine.exported import Export
from ki_vla.engine.interface import Carried, Choose, Shape, is_out_of_memory
from ki_vla.errors import VlaError
from ki_vla.policy.model_inputs import ModelInputs
from ki_vla.policy.serving import Decode

PROVIDERS = {
    'cpu': 'CPUExecutionProvider',
    'cuda': 'CUDAExecutionProvider',
    'tensorrt': 'TensorrtExecutionProvider',
}
# float32 means float32 here: what a graph computes in it must not be rounded to TF32 on its way.
OPTIONS: dict[str, dict[str, str]] = {'cuda': {'use_tf32': '0'}}
# (graph, fixed sizes) -> options of the provider for that session
Options = Callable[[str, Mapping[str, int]], Mapping[str, str]]
# No name that an exporter might give to something inside a graph.
CACHED = ('prefix_keys', 'prefix_values', 'query_cos', 'query_sin', 'query_bias', 'state_token')
TOKENS, ACTIONS = 'image_tokens', 'next_actions'
# What a graph reads that says one token more, and what it hands to the next; `heads.TokenCache`.
LOGITS, TOKEN_CACHE = 'token_logits', ('cache_keys', 'cache_values', 'cache_bias', 'prefix_length')
NEXT_CACHE = ('next_keys', 'next_values')
CARRIED = {'plain': (), 'trained': ('previous_actions', 'given_steps'), 'guided': ('previous_actions', 'step_weights')}
INPUTS = {
    'vision': ('images_uint8',),
    **dict.fromkeys(('prefix', 'token_prefix'), (TOKENS, 'image_mask', 'prompt_ids', 'prompt_mask', 'state_normal')),
    'token': ('token_id', 'token_index', *TOKEN_CACHE),
    **{kind: ('noisy_actions', 'row', *names) for kind, names in CARRIED.items()},
}
# Open dimensions of inputs and outputs: value -> axis -> name. `context` is prefix and queries together.
OPEN_SIZES = {
    'images_uint8': {0: 'views'},
    TOKENS: {0: 'views'},
    'image_mask': {0: 'views'},
    'prompt_ids': {0: 'prompt'},
    'prompt_mask': {0: 'prompt'},
    'prefix_keys': {1: 'prefix'},
    'prefix_values': {1: 'prefix'},
    'query_bias': {1: 'context'},
    **{name: {1: 'cache'} for name in (*TOKEN_CACHE[:3], *NEXT_CACHE)},
}


def available_providers() -> list[str]:
    """What the installed ONNX Runtime can run on.

    Raises:
        VlaError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise VlaError('onnxruntime is not installed; install it (make setup), or take backend torch.') from error
    return list(onnxruntime.get_available_providers())


def check_provider(kind: str) -> str:
    """The name of a provider, if it is there.

    Raises:
        VlaError: it is not; says what is, and what to install.
    """
    name, there = PROVIDERS[kind], available_providers()
    if name not in there:
        raise VlaError(
            f'ONNX Runtime has no {name} here, only {", ".join(there)}; install onnxruntime-gpu in place of '
            'onnxruntime (make setup ACCELERATOR=gpu), or take device cpu.'
        )
    return name


def open_session(
    path: Path,
    kind: str = 'cpu',
    sizes: Mapping[str, int] | None = None,
    threads: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """An ONNX Runtime session.

    Args:
        path: the graph.
        kind: of `PROVIDERS`.
        sizes: open dimensions by name, to be fixed.
        threads: of one operation on a CPU; 0: as many as there are cores.
        options: of the provider.

    Raises:
        VlaError: the provider is missing or does not start, the file cannot be read, out of memory.
    """
    import onnxruntime as ort

    name = check_provider(kind)
    if kind == 'tensorrt':
        # ONNX Runtime looks for libnvinfer by name only; pip's package has loaded its own by then.
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module('tensorrt')
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = threads
    # Threads that wait must not keep cores from the node and the drivers; on a busy machine that is faster here, too.
    settings.add_session_config_entry('session.intra_op.allow_spinning', '0')
    for dimension, size in (sizes or {}).items():
        settings.add_free_dimension_override_by_name(dimension, size)
    providers: list[Any] = [(name, {**OPTIONS.get(kind, {}), **(options or {})})]
    if kind == 'tensorrt' and PROVIDERS['cuda'] in ort.get_available_providers():
        providers.append((PROVIDERS['cuda'], OPTIONS['cuda']))
    if kind != 'cpu':
        providers.append(PROVIDERS['cpu'])
    try:
        session = ort.InferenceSession(str(path), settings, providers=providers)
    except Exception as error:  # ONNX Runtime has a type for each of its codes, with RuntimeError above only some
        if is_out_of_memory(error):
            raise
        raise VlaError(f'{path}: ONNX Runtime cannot load it ({first_line(error)}); export again.') from error
    if session.get_providers()[0] != name:
        raise VlaError(
            f'{path}: {name} did not start ({", ".join(session.get_providers())} did); check that the driver, CUDA and '
            'cuDNN (and TensorRT) match this ONNX Runtime.'
        )
    return session


class OnnxRunner:
    """Exported graphs on one provider.

    Args:
        export: which.
        kind: of `PROVIDERS`.
        threads: see `open_session`.
        options: of the provider, by session.
        decode: 'actions', or 'tokens' for a runner that only says tokens.

    Raises:
        VlaError: the provider is missing, or its device does not answer.
    """

    shares_buffers = False

    def __init__(
        self,
        export: Export,
        kind: str = 'cpu',
        threads: int = 0,
        options: Options | None = None,
        decode: Decode = 'actions',
    ) -> None:
        name = check_provider(kind)
        self.times_ms: dict[str, float] = {}
        self._export, self._kind, self._threads, self._options = export, kind, threads, options
        # TensorRT runs what it cannot take itself on CUDA: the same memory.
        self._device = 'cpu' if kind == 'cpu' else 'cuda'
        self._sessions: dict[Any, Any] = {}
        self._cached = CACHED if export.state_token else CACHED[:-1]
        self._says_tokens = decode == 'tokens'
        try:
            self._rows = [self._value(np.array([row])) for row in range(export.steps)]
        except Exception as error:  # the first touch of the device; ONNX Runtime has a type for each of its codes
            if is_out_of_memory(error):
                raise
            raise VlaError(
                f'{name}: its device does not answer ({first_line(error)}); check that driver, CUDA and cuDNN match '
                'this ONNX Runtime, or take device cpu.'
            ) from error

    def prefill(self, shape: Shape, inputs: ModelInputs) -> list[Any]:
        """See `interface.Runner`; gives values on the device."""
        begin = time.perf_counter()
        tokens = self.vision(inputs)
        seen = time.perf_counter()
        found = self.prefix(shape, tokens, inputs)
        self.times_ms = {'vision': 1e3 * (seen - begin), 'prefix': 1e3 * (time.perf_counter() - seen)}
        return found

    def vision(self, inputs: ModelInputs) -> Any:
        """Image tokens [V, N, D], on the device."""
        images = inputs.images_VHWC
        [tokens] = self._run('vision', {'views': len(images)}, [self._value(images)], [TOKENS])
        return tokens

    def prefix(self, shape: Shape, tokens: Any, inputs: ModelInputs) -> list[Any]:
        """All that the action head, or the next token, reads, on the device."""
        rest = (inputs.image_mask_V, inputs.prompt_L, inputs.prompt_mask_L, inputs.state_S)
        graph, found = ('token_prefix', (LOGITS, *TOKEN_CACHE)) if self._says_tokens else ('prefix', self._cached)
        return self._run(graph, shape._asdict(), [tokens, *map(self._value, rest)], found)

    def say(self, shape: Shape, prefix: list[Any], choose: Choose) -> None:
        """See `interface.Runner`; keys and values stay on the device."""
        begin = time.perf_counter()
        logits, keys, values, bias, length = prefix
        sizes, index = {'cache': _length(keys)}, 0
        while (token := choose(self.host(logits))) is not None:
            said = [self._value(np.array([each], dtype=np.int64)) for each in (token, index)]
            logits, keys, values = self._run('token', sizes, [*said, keys, values, bias, length], (LOGITS, *NEXT_CACHE))
            index += 1
        self.times_ms = {'tokens': 1e3 * (time.perf_counter() - begin)}

    def host(self, value: Any) -> np.ndarray:
        """A value as float32 numpy; numpy knows no bfloat16, torch does."""
        if 'bfloat16' not in value.data_type():
            return np.asarray(value.numpy(), dtype=np.float32)
        from torch.utils.dlpack import from_dlpack

        return from_dlpack(value).float().cpu().numpy()

    def on_device(self, array: np.ndarray, like: Any) -> Any:
        """A float array on the device, in the precision of another value."""
        import onnxruntime as ort

        if 'bfloat16' in like.data_type():
            import torch
            from onnx import TensorProto

            bits = torch.from_numpy(array).to(torch.bfloat16).view(torch.uint16).numpy()
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, TensorProto.BFLOAT16)
        return self._value(array.astype(np.float16 if 'float16' in like.data_type() else np.float32))

    def denoise(self, shape: Shape, prefix: list[Any], noise_HA: np.ndarray, carried: Carried | None) -> np.ndarray:
        """See `interface.Runner`."""
        kind = 'plain' if carried is None else carried.kind
        given = [] if carried is None else [self._value(carried.previous_HA), self._value(carried.share_H)]
        # A prefix of another length has another session.
        session = self._session(
            kind, {'prefix': _length(prefix[0]), 'context': _length(prefix[CACHED.index('query_bias')])}
        )
        binding = session.io_binding()
        wanted = {each.name for each in session.get_inputs()}
        fixed = dict(zip((*CARRIED[kind], *self._cached), (*given, *prefix), strict=True))
        for name, value in fixed.items():
            if name in wanted:
                binding.bind_ortvalue_input(name, value)
        # Two buffers take turns: the output of one step is the input of the next. On a CPU a value is the memory of
        # its array itself, so these are copies.
        here, there = self._value(noise_HA.copy()), self._value(np.empty_like(noise_HA))
        for row in self._rows:
            if 'noisy_actions' in wanted:
                binding.bind_ortvalue_input('noisy_actions', here)
            if 'row' in wanted:
                binding.bind_ortvalue_input('row', row)
            binding.bind_ortvalue_output(ACTIONS, there)
            session.run_with_iobinding(binding)
            here, there = there, here
        binding.synchronize_outputs()
        return np.array(here.numpy(), dtype=np.float32)

    def drop(self) -> None:
        """Let every session go, and its memory; the next call opens what it needs."""
        self._sessions.clear()

    def close(self) -> None:
        """Drop every session."""
        self.drop()
        self._rows.clear()

    def _run(self, graph: str, sizes: Mapping[str, int], values: Sequence[Any], outputs: Sequence[str]) -> list[Any]:
        session = self._session(graph, sizes)
        binding = session.io_binding()
        wanted = {each.name for each in session.get_inputs()}
        for name, value in zip(INPUTS[graph], values, strict=True):
            if name in wanted:
                binding.bind_ortvalue_input(name, value)
        for name in outputs:
            binding.bind_output(name, self._device)
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return list(binding.get_outputs())

    def _session(self, graph: str, sizes: Mapping[str, int]) -> Any:
        key = (graph, tuple(sorted(sizes.items())))
        if key not in self._sessions:
            path = self._export.folder / f'{graph}.onnx'
            options = None if self._options is None else self._options(graph, sizes)
            self._sessions[key] = open_session(path, self._kind, sizes, self._threads, options)
        return self._sessions[key]

    def _value(self, array: np.ndarray) -> Any:
        import onnxruntime as ort

        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._device)


def _length(value: Any) -> int:
    """Prefix tokens of keys [Y, S, G, K]; prefix tokens and queries of a bias [1|Q, S + Q]."""
    return int(value.shape()[1])
