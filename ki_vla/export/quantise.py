"""Dynamic int8: weights of matrix products as signed bytes, activations quantised as they come. For CPUs."""

from __future__ import annotations

from pathlib import Path

from ki_vla.engine.exported import WEIGHTS
from ki_vla.engine.stages import KINDS
from ki_vla.errors import VlaError

LARGEST_BYTES = 2**31 - 2**20  # a graph with its weights inside is one protobuf message


def quantise(folder: Path) -> None:
    """Replace the graphs of a float32 export by quantised ones, their weights inside.

    Raises:
        VlaError: the model is too large for that.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    weights = folder / WEIGHTS
    if weights.stat().st_size > LARGEST_BYTES:
        raise VlaError('int8: the model is too large for dynamic quantisation (2 GB); use fp16.')
    for name in ('vision', 'prefix', *KINDS):
        path = folder / f'{name}.onnx'
        if not path.exists():
            continue
        small = path.with_suffix('.int8')
        quantize_dynamic(
            str(path),
            str(small),
            op_types_to_quantize=['MatMul'],
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={'MatMulConstBOnly': True},
        )
        small.replace(path)
    weights.unlink()
