"""Strict key mapping: every tensor of a foreign checkpoint is used, known to be unused, or known to be a tied copy.

An `ImportPlan` says where each of our tensors comes from. `convert` compares it with the checkpoint, refuses any
difference with a list, and only then writes: no model is ever partly imported and partly random. What a plan
initialises afresh is listed in its report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ki_vla.errors import VlaError
from ki_vla.importers.stream import Pieces, TensorSource, write_tensors
from ki_vla.model.config import ModelConfig
from ki_vla.model.initial_weights import initialise
from ki_vla.model.kivla import skeleton

# Buffers that some library versions save although they hold nothing that was learned.
DEAD_SUFFIXES = ('.rotary_emb.inv_freq', '.embeddings.position_ids')
SHOWN = 12
MAX_DEPTH = 1000

VISION_PARTS = {
    'norm1': 'layer_norm1',
    'norm2': 'layer_norm2',
    'q': 'self_attn.q_proj',
    'k': 'self_attn.k_proj',
    'v': 'self_attn.v_proj',
    'out': 'self_attn.out_proj',
    'fc1': 'mlp.fc1',
    'fc2': 'mlp.fc2',
}
GEMMA_PARTS = {
    'input_norm': 'input_layernorm',
    'mlp_norm': 'post_attention_layernorm',
    'q': 'self_attn.q_proj',
    'k': 'self_attn.k_proj',
    'v': 'self_attn.v_proj',
    'o': 'self_attn.o_proj',
    'gate': 'mlp.gate_proj',
    'up': 'mlp.up_proj',
    'down': 'mlp.down_proj',
}


@dataclass(frozen=True)
class ImportPlan:
    """Where every tensor of our model comes from.

    Attributes:
        sources: our name -> the foreign names it may have; all that are present must be equal (tied copies).
        dead: foreign names that hold nothing we need and may be absent.
        rows: our name -> how many rows of the foreign tensor are dropped at its end at most (padding of a vocabulary).
        fresh: our names that the checkpoint does not have and that are initialised anew, on purpose.
    """

    sources: dict[str, tuple[str, ...]]
    dead: frozenset[str] = frozenset()
    rows: dict[str, int] = field(default_factory=dict)
    fresh: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImportReport:
    """What became of every tensor.

    Attributes:
        config: the structure of the model that was written.
        path: the file.
        used: foreign names whose numbers are in the model.
        tied: foreign names found equal to one that was used.
        dead: foreign names left out because nothing reads them.
        dropped_rows: our name -> padding rows left out at the end.
        fresh: our names initialised anew because the checkpoint has no such part; empty means a complete policy.
    """

    config: ModelConfig
    path: Path
    used: tuple[str, ...]
    tied: tuple[str, ...]
    dead: tuple[str, ...]
    dropped_rows: dict[str, int]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        """A few lines for a terminal."""
        counts = f'{len(self.used)} tensors used, {len(self.tied)} tied copies, {len(self.dead)} dead ones left out'
        lines = [f'{self.path}: {counts}.']
        lines += [f'{name}: {count} padding rows dropped.' for name, count in self.dropped_rows.items()]
        if self.fresh:
            lines.append(
                f'{len(self.fresh)} tensors are FRESHLY INITIALISED ({", ".join(sorted(_parts(self.fresh)))}): '
                'the checkpoint has no such part. Train before use.'
            )
        return '\n'.join(lines)


def our_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of our model, without its memory.

    Raises:
        VlaError: the configuration describes a model that no machine could hold.
    """
    depth = max(config.vision.depth, config.backbone.depth, config.expert.depth)
    if depth > MAX_DEPTH:
        raise VlaError(f'the configuration {config.name!r} has {depth} layers; at most {MAX_DEPTH} are possible.')
    try:
        return {name: tuple(value.shape) for name, value in skeleton(config).state_dict().items()}
    except (RuntimeError, TypeError, OverflowError) as error:
        raise VlaError(f'the configuration {config.name!r} cannot be built: {error}.') from error


def vision_name(ours: str, prefix: str) -> str:
    """'vision....' -> the name transformers gives it, below `prefix`."""
    _, part, *rest = ours.split('.')
    if part == 'patch':
        return f'{prefix}embeddings.patch_embedding.{rest[0]}'
    if part == 'position':
        return f'{prefix}embeddings.position_embedding.weight'
    if part == 'norm':
        return f'{prefix}post_layernorm.{rest[0]}'
    layer, piece, kind = rest
    return f'{prefix}encoder.layers.{layer}.{VISION_PARTS[piece]}.{kind}'


def gemma_name(ours: str, prefix: str) -> str:
    """'backbone....' or 'expert....' (layers and last norm) -> the name transformers gives it, below `prefix`."""
    _, part, *rest = ours.split('.')
    if part == 'norm':
        return f'{prefix}norm.{".".join(rest)}'
    layer, piece, *kind = rest
    return f'{prefix}layers.{layer}.{GEMMA_PARTS[piece]}.{".".join(kind)}'


def convert(
    checkpoint: TensorSource, plan: ImportPlan, config: ModelConfig, path: str | Path, dtype: torch.dtype
) -> ImportReport:
    """Check a checkpoint against a plan and write our model, one piece of a tensor in memory at a time.

    Raises:
        VlaError: lists what is missing, unexpected or of the wrong shape; or names a tensor that holds NaN or infinity,
            or copies that should be tied and differ. Nothing is written then.
    """
    shapes = our_shapes(config)
    if Path(path).resolve() in {file.resolve() for file in checkpoint.files()}:
        raise VlaError(f'{path}: is the checkpoint itself; write the weights to another file.')
    report = account(checkpoint, plan, config, shapes, Path(path))
    for ours, copies in tied_copies(checkpoint, plan).items():
        for copy in copies[1:]:
            if not equal(checkpoint, copies[0], copy):
                raise VlaError(f'{checkpoint.path}: {copies[0]} and {copy} should be copies ({ours}) and differ.')
    fresh = _fresh_tensors(config, plan.fresh) if plan.fresh else {}

    found = {
        ours: next(name for name in plan.sources[ours] if name in checkpoint.tensors)
        for ours in shapes
        if ours not in fresh
    }

    def pieces(ours: str) -> Iterable[torch.Tensor]:
        if ours in fresh:
            return [fresh[ours]]
        return finite(checkpoint, found[ours], shapes[ours][0] if ours in plan.rows else None)

    together = sorted(shapes, key=lambda ours: checkpoint.order(found[ours]) if ours in found else ())
    write_tensors(Path(path), {ours: shapes[ours] for ours in together}, dtype, pieces)
    return report


def account(
    checkpoint: TensorSource, plan: ImportPlan, config: ModelConfig, shapes: dict[str, tuple[int, ...]], path: Path
) -> ImportReport:
    """Compare plan and checkpoint by names and shapes alone; the report, or an error with every difference."""
    found = checkpoint.tensors
    missing, wrong, used, tied, dropped = [], [], [], [], {}
    for ours, shape in shapes.items():
        if ours in plan.fresh:
            continue
        names = [name for name in plan.sources.get(ours, ()) if name in found]
        if not names:
            missing.append(' or '.join(plan.sources.get(ours, (f'(nothing for {ours})',))))
            continue
        used.append(names[0])
        tied += names[1:]
        for name in names:
            extra = _extra_rows(found[name].shape, shape, plan.rows.get(ours, 0))
            if extra is None:
                wrong.append(f'{name} is {list(found[name].shape)}, should be {list(shape)}')
            elif extra:
                dropped[ours] = extra
    dead = sorted(name for name in found if name in plan.dead or name.endswith(DEAD_SUFFIXES))
    unexpected = sorted(set(found) - set(used) - set(tied) - set(dead))
    problems = {'missing': missing, 'unexpected': unexpected, 'wrong shape': wrong}
    if any(problems.values()):
        listed = '; '.join(f'{len(keys)} {kind}: {_some(keys)}' for kind, keys in problems.items() if keys)
        raise VlaError(f'{checkpoint.path}: not the checkpoint that was asked for. {listed}.')
    return ImportReport(config, path, tuple(used), tuple(tied), tuple(dead), dropped, plan.fresh)


def tied_copies(checkpoint: TensorSource, plan: ImportPlan) -> dict[str, list[str]]:
    """Our name -> the foreign names present, for those with more than one."""
    present = {ours: [n for n in names if n in checkpoint.tensors] for ours, names in plan.sources.items()}
    return {ours: names for ours, names in present.items() if len(names) > 1}


def equal(checkpoint: TensorSource, first: str, second: str) -> bool:
    """Whether two tensors hold the same numbers."""
    if checkpoint.tensors[first].shape != checkpoint.tensors[second].shape:
        return False
    pairs = zip(checkpoint.pieces(first), checkpoint.pieces(second), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def finite(checkpoint: TensorSource, name: str, rows: int | None = None) -> Pieces:
    """The pieces of a tensor, refused where they hold NaN or infinity."""
    for piece in checkpoint.pieces(name, rows):
        if not torch.isfinite(piece).all():
            raise VlaError(f'{checkpoint.path}: {name} holds NaN or infinity; the file is damaged.')
        yield piece


def pick(checkpoint: TensorSource, candidates: Iterable[str], probe: Callable[[str], str], what: str) -> str:
    """The first candidate prefix under which the probe tensor exists.

    Raises:
        VlaError: none has it: this is not a checkpoint of that kind.
    """
    tried = []
    for candidate in candidates:
        if probe(candidate) in checkpoint.tensors:
            return candidate
        tried.append(probe(candidate))
    some = ', '.join(sorted(checkpoint.tensors)[:3])
    raise VlaError(f'{checkpoint.path}: no {what}; looked for {" or ".join(tried)}; it begins with {some}.')


def _extra_rows(found: tuple[int, ...], wanted: tuple[int, ...], allowed: int) -> int | None:
    """Rows beyond the wanted ones (0 for an exact fit), or None where the shapes do not fit."""
    if found == wanted:
        return 0
    if allowed and found[1:] == wanted[1:] and found and 0 < found[0] - wanted[0] <= allowed:
        return found[0] - wanted[0]
    return None


def _fresh_tensors(config: ModelConfig, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """New parameters for parts that a checkpoint does not have, from a fixed seed; only those take memory."""
    model = skeleton(config)
    for part in _parts(names):
        getattr(model, part).to_empty(device='cpu')
    initialise(model, torch.Generator().manual_seed(0))
    state = model.state_dict()
    return {name: state[name] for name in names}


def _parts(names: tuple[str, ...]) -> set[str]:
    """The top-level modules that names belong to."""
    return {name.split('.')[0] for name in names}


def _some(keys: list[str]) -> str:
    """A list that stays readable."""
    more = f', and {len(keys) - SHOWN} more' if len(keys) > SHOWN else ''
    return ', '.join(keys[:SHOWN]) + more
