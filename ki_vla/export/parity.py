"""The parity gate: every exported graph is compared with torch, on seeded inputs, before it may be used.

Noise is not what a robot sees: where recordings are given, the whole way from images to actions is compared on
observations of them, too.

The reference is `KiVla` in float32, neither packed nor folded, so packing and export are checked together. Each graph
is checked alone, on torch's inputs rounded to the graph's precision; `chunk` checks all of them in a row, from images
to actions.

The error of actions, which a robot would execute, is absolute. Image tokens and the prefix's keys and values can have
any scale: their error is relative to the largest value.

Shape legend: V views, H horizon, A action dims.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ki_vla.engine.exported import SAID, STAGES, TOKEN_GRAPHS, Export
from ki_vla.engine.interface import Carried, Shape, example_inputs, prompt_buckets
from ki_vla.engine.onnx import OnnxRunner
from ki_vla.errors import VlaError
from ki_vla.export.source import Source, action_part, one_part
from ki_vla.model import flow
from ki_vla.model.kivla import KiVla, Prefix
from ki_vla.policy import rtc
from ki_vla.policy.model_inputs import ModelInputs

SEED = 0
MEASURED = 'actions; of vision and prefix relative to the largest value'
HIDDEN = (*STAGES, *TOKEN_GRAPHS)  # the graphs whose results are not actions
SAID_TOKENS = 6  # of a seeded stream of tokens, which the graphs are to go on with as torch does


@dataclass(frozen=True)
class Tolerance:
    """What a precision must keep: the largest error (for graphs of `HIDDEN` against the largest value); a cosine."""

    max_error: float
    cosine: float


TOLERANCES = {
    'fp32': Tolerance(1e-4, 0.999999),
    'fp16': Tolerance(float('inf'), 0.999),
    'bf16': Tolerance(float('inf'), 0.999),
    'int8': Tolerance(float('inf'), 0.99),
    'fp8': Tolerance(float('inf'), 0.99),
}


def compare(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Cosine, the largest error, and the largest value it is to be seen against."""
    found, expected = (np.asarray(each, dtype=np.float64).ravel() for each in (found, expected))
    norms = float(np.linalg.norm(found) * np.linalg.norm(expected))
    cosine = float(found @ expected) / norms if norms else float(np.array_equal(found, expected))
    if not np.isfinite(found).all():
        return {'cosine': 0.0, 'max_error': float(np.finfo(np.float64).max), 'max_value': float(np.abs(expected).max())}
    return {
        'cosine': cosine,
        'max_error': float(np.abs(found - expected).max()),
        'max_value': float(np.abs(expected).max()),
    }


def within(graph: str, found: Mapping[str, float], precision: str) -> bool:
    """Whether one graph is as close to torch as its precision asks for.

    Args:
        graph: its name; 'chunk' for the whole way.
        found: of `compare`.
        precision: of `TOLERANCES`.
    """
    allowed = TOLERANCES[precision]
    unit = max(1.0, found['max_value']) if graph in HIDDEN else 1.0
    return found['cosine'] >= allowed.cosine and found['max_error'] <= allowed.max_error * unit


def check(parity: Mapping[str, Mapping[str, float]], precision: str) -> None:
    """Refuse graphs that differ from torch by more than their precision allows.

    Raises:
        VlaError: names the graph, what was found and what is allowed.
    """
    allowed = TOLERANCES[precision]
    for graph, found in parity.items():
        if not within(graph, found, precision):
            most = '' if allowed.max_error == float('inf') else f' (at most {allowed.max_error:g})'
            raise VlaError(
                f'{precision} graph {graph} differs from torch: cosine {found["cosine"]:.6f} (at least '
                f'{allowed.cosine:g}), largest error {found["max_error"]:.2e}{most}, largest value '
                f'{found["max_value"]:.2e}. Choose a higher precision.'
            )


def stated_tolerance(precision: str) -> dict[str, float | str | None]:
    """What a precision must keep, as plain JSON; no largest error where the cosine alone decides."""
    allowed = TOLERANCES[precision]
    found: dict[str, float | str | None] = {'cosine': allowed.cosine, 'max_error': None}
    if allowed.max_error != float('inf'):
        found |= {'max_error': allowed.max_error, 'of': MEASURED}
    return found


@dataclass(eq=False)
class Reference:
    """What torch makes of one seeded observation, stage by stage; see `reference`."""

    inputs: ModelInputs
    noise_HA: np.ndarray
    previous_HA: np.ndarray
    tokens: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    valid_S: np.ndarray
    chunks: dict[str, np.ndarray]
    steps_per_token: int
    said: tuple[int, ...] = ()
    logits: np.ndarray | None = None

    @property
    def is_trivial(self) -> bool:
        """Whether torch left the noise as it was: an untrained expert, whose graphs agree whatever they compute."""
        return 'plain' in self.chunks and np.array_equal(self.chunks['plain'], self.noise_HA)

    def carried(self, kind: str) -> Carried | None:
        """The old chunk, as `kind` wants it."""
        H = len(self.previous_HA)
        if kind == 'plain':
            return None
        if kind == 'trained':
            given = rtc.given_steps(max(1, H // 4), H, H, self.steps_per_token)
            return Carried(kind, self.previous_HA, np.arange(H) < given)
        weights = rtc.prefix_weights(H, max(1, H // 4), max(1, H // 2)).numpy()
        return Carried(kind, self.previous_HA, weights.astype(np.float32))


def reference(
    source: Source,
    steps: int,
    kinds: Sequence[str],
    shape: Shape | None = None,
    observed: ModelInputs | None = None,
) -> Reference:
    """Run the model as it is, in float32, one part of its weights at a time.

    Args:
        source: the weights.
        steps: Euler steps.
        kinds: ways to actions, see `write.kinds_of`.
        shape: views and prompt slots; all views and the smallest bucket unless given.
        observed: what the model is shown, in place of seeded noise; its prompt is padded to the next bucket.
    """
    config = source.config
    if observed is None:
        inputs = example_inputs(config, shape or Shape(config.views, prompt_buckets(config)[0]), SEED)
    else:
        inputs = _in_a_bucket(observed, prompt_buckets(config))
    rng = np.random.default_rng(SEED + 1)
    noise_HA, previous_HA = (rng.standard_normal((config.horizon, config.action_dim), np.float32) for _ in range(2))
    images, image_mask, prompt, prompt_mask, state = (
        torch.from_numpy(getattr(inputs, name))[None]
        for name in ('images_VHWC', 'image_mask_V', 'prompt_L', 'prompt_mask_L', 'state_S')
    )
    with torch.no_grad():
        with one_part(source, 'vision', torch.float32) as model:
            tokens = model.encode(images.permute(0, 1, 4, 2, 3))
        with one_part(source, 'prefix', torch.float32) as model:
            prefix = model.prefix(tokens, image_mask, prompt, prompt_mask, state, hidden=SAID in kinds)
            said = tuple(rng.integers(0, config.vocab_size, min(SAID_TOKENS, config.max_targets)).tolist())
            logits = _logits(model, prefix, said) if SAID in kinds else None
        keys, values = (torch.stack(list(each))[:, 0].numpy() for each in (prefix.k, prefix.v))
        tokens_VND = tokens[0].unflatten(0, (images.shape[1], -1)).numpy()
        valid_S = prefix.mask_BS[0].numpy()
        found = Reference(
            inputs, noise_HA, previous_HA, tokens_VND, keys, values, valid_S, {}, config.steps_per_token, said, logits
        )
        denoised = [kind for kind in kinds if kind != SAID]
        if denoised:
            with one_part(source, action_part(config), torch.float32) as model:
                for kind in denoised:
                    found.chunks[kind] = _loop(model, prefix, found, kind, steps)
    return found


def _logits(model: KiVla, prefix: Prefix, said: Sequence[int]) -> np.ndarray:
    """Logits before each of some tokens and after the last one, [n + 1, W]."""
    ids_1T = torch.tensor([[*said, 0]])  # what the last one is does not matter: nothing reads it
    return model.logits(model.token_hidden(prefix, ids_1T, torch.ones_like(ids_1T, dtype=torch.bool)))[0].numpy()


def worst(found: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Of each graph the measurement with the least cosine, and the largest error of all."""
    graphs = dict.fromkeys(graph for each in found for graph in each)
    return {
        graph: dict(min((each[graph] for each in found), key=lambda said: said['cosine']))
        | {'max_error': max(each[graph]['max_error'] for each in found)}
        for graph in graphs
    }


def _in_a_bucket(inputs: ModelInputs, buckets: Sequence[int]) -> ModelInputs:
    """An observation with its prompt padded to the smallest static length that holds it."""
    length = len(inputs.prompt_L)
    room = (0, next(size for size in buckets if size >= length) - length)
    prompt, mask = np.pad(inputs.prompt_L, room), np.pad(inputs.prompt_mask_L, room)
    return replace(inputs, prompt_L=prompt, prompt_mask_L=mask)


def _loop(model: KiVla, prefix: Prefix, given: Reference, kind: str, steps: int) -> np.ndarray:
    """All steps of one kind by the functions of `rtc` and `flow`."""
    noise, field_at, carried = torch.from_numpy(given.noise_HA)[None], model.field_at(prefix), given.carried(kind)
    if model.config.head == 'parallel':
        return model.parallel_actions(prefix)[0].numpy()
    if carried is None:
        return model.denoise(prefix, noise, steps)[0].numpy()
    previous, share = torch.from_numpy(carried.previous_HA)[None], torch.from_numpy(carried.share_H)
    if kind == 'trained':
        return rtc.denoise_trained(field_at, noise, previous, int(share.sum()), steps)[0].numpy()
    return flow.euler(rtc.guide(field_at, previous, share[None]), noise, steps)[0].numpy()


def measure(export: Export, given: Reference, kind: str = 'cpu') -> dict[str, dict[str, float]]:
    """Run every graph of an export on the seeded observation and compare it with torch.

    Args:
        export: the graphs.
        given: from `reference`.
        kind: of `onnx.PROVIDERS`.
    """
    parity: dict[str, dict[str, float]] = {}
    if given.chunks:
        with contextlib.closing(OnnxRunner(export, kind)) as runner:
            parity |= measure_runner(runner, given)
    if given.logits is not None:
        with contextlib.closing(OnnxRunner(export, kind, decode='tokens')) as runner:
            parity |= measure_tokens(runner, given, given.logits)
    return parity


def measure_tokens(runner: OnnxRunner, given: Reference, expected: np.ndarray) -> dict[str, dict[str, float]]:
    """The same of the graphs that say tokens: what they expect before and after each token of a given stream."""
    shape = Shape(len(given.inputs.images_VHWC), len(given.inputs.prompt_L))
    tokens = runner.vision(given.inputs)
    prefix = runner.prefix(shape, runner.on_device(given.tokens, like=tokens), given.inputs)
    found: list[np.ndarray] = []

    def choose(logits_W: np.ndarray) -> int | None:
        found.append(logits_W.copy())
        return given.said[len(found) - 1] if len(found) <= len(given.said) else None

    runner.say(shape, prefix, choose)
    return {
        'vision': compare(runner.host(tokens), given.tokens),
        'token_prefix': compare(found[0], expected[0]),
        'token': compare(np.stack(found[1:]), expected[1:]),
    }


def measure_runner(runner: OnnxRunner, given: Reference) -> dict[str, dict[str, float]]:
    """The same for a runner; every graph is opened once and dropped before the next, so that the largest fits alone."""
    shape = Shape(len(given.inputs.images_VHWC), len(given.inputs.prompt_L))
    tokens = runner.vision(given.inputs)
    runner.drop()
    parity = {'vision': compare(runner.host(tokens), given.tokens)}
    whole = runner.prefix(shape, tokens, given.inputs)
    cached = runner.prefix(shape, runner.on_device(given.tokens, like=tokens), given.inputs)
    runner.drop()
    pairs = list(zip(cached, (given.keys, given.values), strict=False))
    valid = [(runner.host(found)[:, given.valid_S], expected[:, given.valid_S]) for found, expected in pairs]
    parity['prefix'] = compare(*(np.concatenate(each) for each in zip(*valid, strict=True)))
    # Keys and values as torch has them; rotary tables and masks are the graph's own.
    ours = [runner.on_device(expected, like=found) for found, expected in pairs] + cached[2:]
    for kind, expected_HA in given.chunks.items():
        parity[kind] = compare(runner.denoise(shape, ours, given.noise_HA, given.carried(kind)), expected_HA)
        if kind == 'plain':
            parity['chunk'] = compare(runner.denoise(shape, whole, given.noise_HA, None), expected_HA)
        runner.drop()
    return parity
