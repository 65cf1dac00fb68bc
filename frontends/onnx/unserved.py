"""What is not served yet, family by family, and what a model's author can do instead. A family leaves when its ops arrive."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Operators that are missing for one reason."""

    ops: frozenset[str]
    instead: str


def _family(ops: str, instead: str) -> Family:
    return Family(frozenset(ops.split()), instead)


FAMILIES = (
    _family(
        "SequenceConstruct SequenceEmpty SequenceInsert SequenceErase SequenceAt SequenceLength SequenceMap "
        "SplitToSequence ConcatFromSequence Optional",
        "sequences and optionals are not served: use tensors, Split and Concat",
    ),
    _family(
        "StringNormalizer StringSplit StringConcat RegexFullMatch LabelEncoder",
        "strings are not served: tokenize outside of the network",
    ),
    _family(
        "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike",
        "random numbers are not served: make them an input",
    ),
    _family(
        "DynamicQuantizeLSTM",
        'keep LSTM in float: quantize_dynamic(…, op_types_to_quantize=["MatMul"]), or compile the float model with --quantize',
    ),
    _family(
        "ImageDecoder", "compressed pictures are not served: decode them outside of the network"
    ),
)
INSTEAD = {op: family.instead for family in FAMILIES for op in family.ops}
