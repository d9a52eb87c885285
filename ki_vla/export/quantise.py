"""Dynamic int8: weights of matrix products as signed bytes, activations quantised as they come. For CPUs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ki_vla.engine.exported import STAGES, TOKEN_GRAPHS, WEIGHTS
from ki_vla.engine.stages import KINDS
from ki_vla.errors import VlaError
from ki_vla.export.graphs import silence_exporter

LARGEST_BYTES = 2**31 - 2**20  # a graph with its weights inside is one protobuf message


def quantise(folder: Path, metadata: Mapping[str, str]) -> None:
    """Replace the graphs of a float32 export by quantised ones, their weights inside.

    Args:
        folder: holds the graphs and their weights.
        metadata: written into every graph.

    Raises:
        VlaError: the model is too large for that.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    weights = folder / WEIGHTS
    if weights.stat().st_size > LARGEST_BYTES:
        raise VlaError('int8: the model is too large for dynamic quantisation (2 GB); use fp16.')
    for name in (*STAGES, *KINDS, *TOKEN_GRAPHS):
        path = folder / f'{name}.onnx'
        if not path.exists():
            continue
        small = path.with_suffix('.int8')
        _forget_shapes(path)
        with silence_exporter():  # it advises a pre-processing that the exporter has done already
            quantize_dynamic(
                str(path),
                str(small),
                op_types_to_quantize=['MatMul'],
                per_channel=True,
                weight_type=QuantType.QInt8,
                extra_options={'MatMulConstBOnly': True},
            )
        model = onnx.load(small)
        onnx.helper.set_model_props(model, {**metadata, 'graph': name})
        onnx.save(model, path)
        small.unlink()
    weights.unlink()


def _forget_shapes(path: Path) -> None:
    """Drop what the exporter noted of shapes in between: it is inferred anew, and where both differ nothing is done."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    del model.graph.value_info[:]
    onnx.save(model, path)
