"""A policy on disk: everything the node needs, in one folder, with the sha256 of every file.

    model.safetensors   weights
    config.json         structure of the model, how data are processed, how to serve it, the recipe it was trained with
    contract.yaml       the robot it was trained for
    stats.json          normalisation of state and actions
    fast.json           codec of the action tokens (absent for a policy without action tokens)
    tokenizer/          tokenizer.json, vocabulary.json
    manifest.json       name, format, sha256 of every file above
    onnx/ engines/ torch/  exports, made later and not part of the policy's identity

Safetensors, JSON and YAML only: loading a bundle executes no code from it. A TensorRT engine in `engines/` is code,
and only backend tensorrt opens it; see `ki_vla.export.tensorrt`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import torch
import yaml

from ki_common.errors import KiError, shown
from ki_common.files import atomic_folder, read_json, sha256_of
from ki_robot.contract.contract import Contract
from ki_robot.transforms import Stats, load_stats, save_stats
from ki_vla.errors import VlaError
from ki_vla.importers.mapping import our_shapes
from ki_vla.importers.stream import WEIGHTS_FILE, open_checkpoint, read_header, write_tensors
from ki_vla.model.config import HEAD, ModelConfig
from ki_vla.policy.bundle_files import FORMAT, ConfigFile, FileEntry, ManifestFile
from ki_vla.policy.processor import Processor
from ki_vla.policy.serving import Serving
from ki_vla.tokens.actions import load_codec, save_codec
from ki_vla.tokens.tokenizer import TOKENIZER_FILE, VOCABULARY_FILE, load_tokenizer

if TYPE_CHECKING:
    from ki_vla.model.kivla import KiVla

MANIFEST = 'manifest.json'
CONFIG, CONTRACT, STATS, CODEC = 'config.json', 'contract.yaml', 'stats.json', 'fast.json'
TOKENIZER = (f'tokenizer/{TOKENIZER_FILE}', f'tokenizer/{VOCABULARY_FILE}')
REQUIRED = (WEIGHTS_FILE, CONFIG, CONTRACT, STATS, *TOKENIZER)
READ_BYTES = 4 * 2**20
Weights = Union['KiVla', Mapping[str, torch.Tensor], str, Path, Callable[[Path], object]]


@dataclass(frozen=True, eq=False)
class Bundle:
    """A loaded bundle; the weights stay on disk until they are asked for.

    Attributes:
        folder: where it lies.
        name: what people call it.
        digest: sha256 over the manifest's entries: two bundles with equal digests are the same policy.
        processor: contract, statistics, tokenizer, codec and configuration, put together and checked.
        serving: how it was made to be served.
        recipe: how it was trained, as plain data.
        provenance: where it comes from: data, steps, versions; free, but for `trained` (see `trained_parts`).
    """

    folder: Path
    name: str
    digest: str
    processor: Processor
    serving: Serving
    recipe: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def policy_id(self) -> str:
        """Name and the first digits of the digest: what every chunk carries."""
        return f'{self.name}@{self.digest[:12]}'

    @property
    def config(self) -> ModelConfig:
        """The structure of the model."""
        return self.processor.config

    @property
    def contract(self) -> Contract:
        """The robot the policy was trained for."""
        return self.processor.contract

    @property
    def weights(self) -> Path:
        """The weights file."""
        return self.folder / WEIGHTS_FILE

    def check(self, robot: Contract) -> None:
        """Refuse a robot that the policy does not fit.

        Raises:
            VlaError: one sentence for each field that differs: cameras, columns, units, representation, rate, horizon.
        """
        found = self.contract.mismatches(robot)
        if found:
            raise VlaError(f'policy {self.policy_id} does not fit the robot {robot.name}: {"; ".join(found)}.')

    @property
    def trained_parts(self) -> tuple[str, ...] | None:
        """Parts of the model that some training has changed (`recipes.parts_of`); None where nothing says so."""
        parts = self.provenance.get('trained')
        return None if parts is None else tuple(parts)

    def check_trained(self) -> None:
        """Refuse a policy whose action head no step has trained; one that does not say counts as trained.

        Raises:
            VlaError: names what was trained, and what to do.
        """
        parts = self.trained_parts
        needed, name = (
            ('backbone', 'backbone, which says its actions as tokens')
            if self.serving.decode == 'tokens'
            else (HEAD, 'action head')
        )
        if parts is not None and needed not in parts:
            raise VlaError(
                f'policy {self.policy_id}: no training step has reached its {name} (provenance.trained of '
                f'{self.folder / MANIFEST} lists {", ".join(parts) or "nothing"}); train it with a recipe that has an '
                'action loss, or set allow_untrained: true where nothing can move.'
            )

    def model(self, device: torch.device | str = 'cpu', dtype: torch.dtype | None = None) -> KiVla:
        """The model with its weights; nothing is random and nothing is left out.

        Args:
            device: where to.
            dtype: convert the weights; as stored unless given.

        Raises:
            VlaError: the weights do not fit the configuration.
        """
        from safetensors.torch import load_file

        from ki_vla.model.kivla import skeleton

        model = skeleton(self.config)
        state = load_file(str(self.weights), device=str(device))
        if dtype is not None:
            state = {name: value.to(dtype) for name, value in state.items()}
        model.load_state_dict(state, strict=True, assign=True)
        return model.eval()


def write_bundle(
    folder: str | Path,
    *,
    name: str,
    weights: Weights,
    processor: Processor,
    serving: Serving | None = None,
    recipe: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle. It appears under its name complete and on disk, or not at all.

    Args:
        folder: where; its parent is made.
        name: what people call the policy.
        weights: a model, its state dict, a weights file (streamed, whatever its size), or a function that writes the
            weights file at the path it is given.
        processor: everything else the policy consists of.
        serving: how it was made to be served; the default of its horizon unless given.
        recipe: how it was trained.
        provenance: anything worth keeping, as plain JSON.
        dtype: convert the weights.
        overwrite: replace a bundle that is there; otherwise that is an error.

    Raises:
        VlaError: the weights do not fit the configuration, the folder exists, or the name is unusable.
    """
    folder = Path(folder)
    serving = serving or _default_serving(processor.config)
    serving.check_horizon(processor.config.horizon)
    if not name or set(name) & set('@/ \n'):
        raise VlaError(f'bundle name {name!r}: must not be empty nor contain "@", "/" or blanks.')
    if folder.exists() and not overwrite:
        raise VlaError(f'{folder} exists; choose another folder or ask for it to be overwritten.')
    with atomic_folder(folder) as partial:
        _write_weights(partial / WEIGHTS_FILE, weights, processor.config, dtype)
        write_parts(partial, processor, serving, recipe or {})
        files = {path: _entry(partial / path) for path in _parts(partial)}
        manifest = {'format': FORMAT, 'name': name, 'files': files, 'provenance': dict(provenance or {})}
        _write_json(partial / MANIFEST, manifest)
    return load_bundle(folder, verify=False)


def load_bundle(folder: str | Path, *, verify: bool = True) -> Bundle:
    """Read a bundle and check it against its manifest.

    Args:
        folder: the bundle.
        verify: compare the sha256 of every file (for 14 GB that takes some seconds); sizes are always compared.

    Raises:
        VlaError: a file is missing, changed, cut short or malformed, the parts do not fit each other, or the format
            is newer.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    for path, entry in manifest.files.items():
        _check_file(folder, path, entry, verify)
    processor, said = read_parts(folder, CODEC in manifest.files)
    _check_weights(folder / WEIGHTS_FILE, said.model)
    serving = said.serving or _default_serving(said.model)
    digest = _digest({path: entry.sha256 for path, entry in manifest.files.items()})
    return Bundle(folder, manifest.name, digest, processor, serving, said.recipe, manifest.provenance)


def read_parts(folder: Path, with_codec: bool) -> tuple[Processor, ConfigFile]:
    """Everything but the weights and the manifest, as `write_parts` wrote it.

    Raises:
        VlaError: a file is missing or malformed, or the parts do not fit each other.
    """
    said = ConfigFile.parse(read_json(folder / CONFIG, VlaError), str(folder / CONFIG))
    try:
        contract = Contract.load(folder / CONTRACT)
        codec = load_codec(folder / CODEC) if with_codec else None
        state, actions = _read_stats(folder / STATS)
        tokenizer = load_tokenizer(folder / 'tokenizer')
        return Processor(contract, state, actions, tokenizer, codec, said.model, said.processing), said
    except KiError as error:
        raise VlaError(f'{folder}: {error}') from error


def _default_serving(config: ModelConfig) -> Serving:
    """For a policy that does not say: a model without an action head says its actions."""
    return Serving.for_horizon(config.horizon, decode='tokens' if config.head == 'none' else 'actions')


def _write_weights(
    path: Path,
    weights: Weights,
    config: ModelConfig,
    dtype: torch.dtype | None,
) -> None:
    """Stream weights from wherever they are, checked against the configuration."""
    if callable(weights) and not isinstance(weights, torch.nn.Module):
        weights(path)
        _check_weights(path, config)
        return
    pieces: Callable[[str], Iterable[torch.Tensor]]
    if isinstance(weights, str | Path):
        checkpoint = open_checkpoint(weights)
        found = {name: info.shape for name, info in checkpoint.tensors.items()}
        kinds, pieces = {info.dtype for info in checkpoint.tensors.values()}, checkpoint.pieces
    else:
        state = weights if isinstance(weights, Mapping) else weights.state_dict()
        found = {name: tuple(value.shape) for name, value in state.items()}
        kinds = {value.dtype for value in state.values()}

        def pieces(name: str) -> Iterable[torch.Tensor]:
            return [state[name]]

    _compare(str(path.name), found, config)
    if dtype is None and len(kinds) > 1:
        raise VlaError(f'weights of several dtypes ({", ".join(sorted(map(str, kinds)))}): say which one to write.')
    write_tensors(path, found, dtype or kinds.pop(), pieces)


def write_parts(folder: Path, processor: Processor, serving: Serving, recipe: Mapping[str, Any]) -> None:
    """Everything but the weights and the manifest."""
    config = {
        'model': processor.config.to_dict(),
        'processing': processor.processing.to_dict(),
        'serving': serving.to_dict(),
        'recipe': dict(recipe),
    }
    _write_json(folder / CONFIG, config)
    text = yaml.safe_dump(processor.contract.to_dict(), sort_keys=False, allow_unicode=True)
    (folder / CONTRACT).write_text(text, encoding='utf-8')
    save_stats(folder / STATS, {'state': processor.state_stats, 'actions': processor.action_stats})
    if processor.codec is not None:
        save_codec(processor.codec, folder / CODEC)
    processor.tokenizer.save(folder / 'tokenizer')


def _read_manifest(folder: Path) -> ManifestFile:
    """The manifest, its structure checked and the required files named in it."""
    path = folder / MANIFEST
    if not path.is_file():
        raise VlaError(f'{folder}: no {MANIFEST} in it; this is not a bundle, or its writing was interrupted.')
    data = read_json(path, VlaError)
    if data.get('format') != FORMAT:
        raise VlaError(f'{path}: format {shown(data.get("format"))}; this version reads {FORMAT}.')
    manifest = ManifestFile.parse(data, str(path))
    missing = [part for part in REQUIRED if part not in manifest.files]
    if missing:
        raise VlaError(f'{path}: does not list {", ".join(missing)}.')
    unknown = sorted(set(manifest.files) - {*REQUIRED, CODEC})
    if unknown:
        raise VlaError(f'{path}: lists files that no bundle has: {", ".join(map(shown, unknown))}.')
    return manifest


def _check_file(folder: Path, path: str, entry: FileEntry, verify: bool) -> None:
    """One file against its entry."""
    file = folder / path
    if not file.is_file():
        raise VlaError(f'{folder}: {path} is missing.')
    size = file.stat().st_size
    if size != entry.bytes:
        raise VlaError(f'{file}: has {size} bytes, the manifest says {entry.bytes}; it was changed or cut short.')
    if verify and (found := sha256_of(file)) != entry.sha256:
        raise VlaError(f'{file}: sha256 {found[:12]}... is not the {entry.sha256[:12]}... of the manifest.')


def _check_weights(path: Path, config: ModelConfig) -> None:
    """Names and shapes of the weights against the configuration, from the header alone."""
    _compare(str(path), {name: info.shape for name, info in read_header(path).items()}, config)


def _compare(where: str, found: Mapping[str, tuple[int, ...]], config: ModelConfig) -> None:
    """Raise a VlaError that lists missing, unexpected and wrong-shaped weights."""
    wanted = our_shapes(config)
    problems = {
        'missing': sorted(set(wanted) - set(found)),
        'unexpected': sorted(set(found) - set(wanted)),
        'wrong shape': sorted(
            f'{name} {list(found[name])} for {list(wanted[name])}'
            for name in set(found) & set(wanted)
            if tuple(found[name]) != wanted[name]
        ),
    }
    if any(problems.values()):
        listed = '; '.join(f'{kind}: {", ".join(names[:8])}' for kind, names in problems.items() if names)
        raise VlaError(f'{where}: the weights do not fit the configuration {config.name!r}. {listed}.')


def _read_stats(path: Path) -> tuple[Stats, Stats]:
    """State and action statistics."""
    stats = load_stats(path)
    if set(stats) != {'state', 'actions'}:
        raise VlaError(f'{path}: holds {sorted(stats)}; state and actions are needed.')
    return stats['state'], stats['actions']


def _parts(folder: Path) -> list[str]:
    """Every file written so far, relative, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())


def _entry(path: Path) -> dict[str, Any]:
    return {'bytes': path.stat().st_size, 'sha256': sha256_of(path)}


def _digest(files: Mapping[str, str]) -> str:
    """sha256 over every file's name and sha256."""
    lines = ''.join(f'{path} {files[path]}\n' for path in sorted(files))
    return hashlib.sha256(lines.encode('utf-8')).hexdigest()


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + '\n', encoding='utf-8')
