"""What a run leaves to read: metrics.jsonl, TensorBoard, wandb, curves as PNG, and where it comes from."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ki_common.files import write_text
from training.errors import TrainingError

if TYPE_CHECKING:
    from training.train.config import Run
    from training.train.tracking import Tracker

LOSSES = ('text', 'fast', 'flow', 'dense')  # parts of the loss, in the order of `collator.Counts`
METRICS = 'metrics.jsonl'
CURVES = 'curves.png'


class Journal:
    """Metrics of one stage: a line of JSON each, TensorBoard where it is installed, wandb where the run asks for it.

    Args:
        folder: of the stage.
        step: where the run goes on; lines of later steps are of a life that was lost, and are dropped.
        quiet: write nothing (every process but the first).
        run: whose stage, where it may ask for wandb.
        warn: told once when the disk takes no more; the run goes on without what it could not write.

    Raises:
        TrainingError: wandb was asked for and cannot be had, or the folder cannot be written from the start.
    """

    def __init__(
        self,
        folder: Path,
        step: int = 0,
        quiet: bool = False,
        run: Run | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.folder, self.quiet, self.warn = folder, quiet, warn
        self._file: Any = None
        self._board: Any = None
        self._tracker: Tracker | None = None
        if quiet:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            kept = [line for line in read_metrics(folder) if line['step'] <= step]
            # Beside the file and not over it: a disk that is full must not take the lines that are there.
            write_text(folder / METRICS, ''.join(json.dumps(line) + '\n' for line in kept))
            self._file = (folder / METRICS).open('ab', buffering=0)
        except OSError as error:
            raise TrainingError(f'{folder} cannot be written: {error}; free space there.') from error
        with self._disk():
            try:
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(folder / 'tensorboard'), purge_step=step)
            except ImportError:
                self._board = None
        if run is not None and run.wandb:
            from training.train.tracking import Tracker

            self._tracker = Tracker(run, folder)

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """One line: kind is `train` or `validation`."""
        if self.quiet:
            return
        with self._disk():
            line, end = (json.dumps({'step': step, 'kind': kind, **values}) + '\n').encode(), self._file.seek(0, 2)
            if self._file.write(line) < len(line):
                self._file.truncate(end)  # half a line would hide those after it
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with self._disk():
            if self._board is not None:
                for name, value in values.items():
                    self._board.add_scalar(f'{kind}/{name}', value, step)
        if self._tracker is not None:
            self._tracker.write(step, kind, values)

    def close(self) -> None:
        """Ends the files and draws the curves."""
        if self.quiet:
            return
        with self._disk():
            self._file.close()
        with self._disk():
            if self._board is not None:
                self._board.close()
        if self._tracker is not None:
            self._tracker.close()
        with self._disk():
            draw_curves(self.folder)

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        """What is written here is for reading: a disk that takes no more costs it, and not the run."""
        try:
            yield
        except OSError as error:
            warn, self.warn = self.warn, None
            if warn is not None:
                text = f'{self.folder}: metrics cannot be written: {error}; free space there. Training goes on.'
                warn(text)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line that was cut off is left out."""
    path, lines = folder / METRICS, []
    if path.is_file():
        for line in path.read_text(encoding='utf-8').splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
    return lines


def draw_curves(folder: Path) -> Path | None:
    """curves.png: every loss over steps, trained and held out; None without matplotlib or without lines."""
    lines = read_metrics(folder)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter
    except ImportError:
        return None
    if not lines:
        return None
    names = [name for name in LOSSES if any(line.get(name) for line in lines)]
    width = 4.2 * max(1, len(names))
    figure = Figure(figsize=(width, 3.2))
    figure.subplots_adjust(left=0.6 / width, right=1 - 0.1 / width, bottom=0.16, top=0.9, wspace=0.2)
    FigureCanvasAgg(figure)
    for place, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), place + 1)
        for kind, style in (('train', '-'), ('validation', 'o-')):
            rows = [(line['step'], line[name]) for line in lines if line['kind'] == kind and line.get(name)]
            if rows:
                axes.plot(*zip(*rows, strict=True), style, label=kind, markersize=3, linewidth=1)
        axes.set(title=f'{name} loss', xlabel='step', yscale='log')
        # 0.02, not a power of ten: those take matplotlib longer to set than all the rest.
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter('{x:g}')
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.legend(frameon=False)
    figure.savefig(folder / CURVES, dpi=110)
    return folder / CURVES


def origin(data_hash: str) -> dict[str, Any]:
    """Where a run comes from: code, data, versions, machine."""
    import torch

    from ki_vla import __file__ as here

    def git(*words: str) -> str:
        try:
            done = subprocess.run(
                ['git', '-C', str(Path(here).parent), *words], capture_output=True, text=True, timeout=10, check=True
            )
            return done.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return ''

    return {
        'git': git('rev-parse', 'HEAD'),
        'changed_files': len([line for line in git('status', '--porcelain', '-uno').splitlines() if line]),
        'data_hash': data_hash,
        'torch': torch.__version__,
        'python': platform.python_version(),
        'machine': torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or 'cpu',
    }


def write_json(path: Path, data: Any) -> None:
    """JSON for people and tools, whole or not at all."""
    write_text(path, json.dumps(data, indent=1, sort_keys=True) + '\n')
