"""Inception v1 (GoogLeNet): the topology of the onnx package's test data for any number of images, with weights drawn anew."""

from __future__ import annotations

from onnx import ModelProto, numpy_helper

from knapper.isa.errors import UsageError

from .light import drawn

SIZE = 224


def inception_v1(batch: int = 1, size: int = SIZE) -> ModelProto:
    """The network for 224×224 images, the only size that its last pooling window fits.

    Raises UsageError E707 for another size, or if the onnx package has no such file.
    """
    if size != SIZE:
        raise UsageError("E707", f"inception_v1 takes images of {SIZE}×{SIZE}, not {size}×{size}")
    model = drawn("inception_v1")
    _set_batch(model, batch)
    return model


def _set_batch(model: ModelProto, batch: int) -> None:
    """Another number of images: in the input, the output, and the Reshape before the classifier."""
    for port in (*model.graph.input, *model.graph.output):
        port.type.tensor_type.shape.dim[0].dim_value = batch
    reshape = next(n for n in model.graph.node if n.op_type == "Reshape")
    target = next(t for t in model.graph.initializer if t.name == reshape.input[1])
    shape = numpy_helper.to_array(target).copy()
    shape[0] = batch
    target.CopyFrom(numpy_helper.from_array(shape, target.name))
