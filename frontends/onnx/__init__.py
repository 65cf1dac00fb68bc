"""The ONNX door: a model file becomes a Graph, or every reason why it cannot is said at once.

    bytes ─ file ─► ModelProto + weights left in the file ─ door ─► Graph
                                                             ├─ forms      older and other spellings → today's
                                                             ├─ inline     functions and constant `If`s opened up
                                                             └─ tensors    TensorProto, attributes → numpy, Python

The model is walked once, in order. Whatever is already known is computed on the way, because real exports compute their
shapes: Shape of a static tensor is a constant, and so is the Gather, Concat, … of it, until it ends as the shape of a
Reshape. So the Graph has static types everywhere and the tensors that decided shapes have become attributes.
"""

from .door import read

__all__ = ["read"]
