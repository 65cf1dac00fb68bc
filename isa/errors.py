"""Every error a user can meet: one tree, one line each, with a stable code.

`KnapperError` is what the command line prints (no traceback, exit code 1). Several problems of one kind are raised together
as one `Problems`. Codes live in `CODES`, one row each, which `knapper explain CODE` prints; a code never changes meaning.
"""

from collections.abc import Iterable

CODES: dict[str, str] = {
    # 1xx the graph and its text
    "E101": "A line of .ir text cannot be read. The message shows the place; the grammar is in compiler/ir.lark.",
    "E102": "A node is wrong: unknown op, missing operand, unknown attribute, or a type that its op does not produce.",
    "E103": "The encoding of a weight is none, or promises zeros that its content does not have: a pass that changes a weight drops it.",
    "E104": "A state is no input and output of one type, or two states share one. `--state past=present` names an input, then an output.",
    "E110": "A line of .plan text cannot be read. The message shows the place; the grammar is in compiler/plan.lark.",
    "E111": "A .plan does not fit its graph: a launch or buffer is missing, given twice, or names a value that the graph has not.",
    # 2xx model files
    "E201": "The file is not a model (ONNX, TFLite, an exported program of PyTorch): missing, empty, cut off, damaged, or of another kind.",
    "E202": "The model has something that is no dense tensor of a supported element type: strings, sequences, sparse initializers, 8-bit floats.",
    "E203": "An operator, or this use of it, is not supported. `knapper ops` lists operators; a plugin can add one.",
    "E204": "Something that must be known when compiling (a shape, axes, a branch) is computed from the network's inputs. Bind one with --const.",
    "E205": "An input has no static shape, or another number of dimensions than --shape gives. Bind open ones: --shape NAME=1,3,224,224.",
    "E206": "A node's operands or attributes do not fit its operator: shapes that do not match, a wrong count, an impossible value.",
    "E207": "External data of a model is missing, too short, or outside the model's folder.",
    "E208": "The model's opset is newer than the installed `onnx` package knows.",
    "E209": "The model file is inconsistent: a value used before it is defined, or twice; data that does not fill its tensor.",
    "E210": "A PyTorch or TFLite model needs packages that are not installed: pip install 'knapper[torch]', 'knapper[tflite]'.",
    "E211": "PyTorch cannot export a module, or its exporter to ONNX fails on what was exported; the message is PyTorch's.",
    # 3xx passes and pipelines
    "E301": "There is no pass of that name, or it is not in this pipeline. The hint lists those that are.",
    "E302": "A pass has no such option, or its value is of another type.",
    "E303": "There is no such precision. `knapper compile --precision` takes fp16, bf16 or fp32.",
    "E304": "A pass is asked for what the graph has not: place names no launch, or comes before there are any, or before other passes.",
    "E305": "Weights cannot be pruned as asked: a pattern, share or unit that is none, groups, scores or masks that do not fit the weights.",
    "E306": "A network cannot be quantized as asked: no such method or format, ranges that are missing or damaged, names of nothing.",
    # 4xx compiling: groups, plans, kernels, plugins
    "E410": "No kernel generator serves a group of nodes. The message has each generator's reason.",
    "E415": "No kernel generator serves a group of nodes on this machine, but on others, which the hint names: their ISA has what it takes.",
    "E416": "No kernel generator serves a group of nodes since a tensor of it has 2 GiB or more. Fewer samples at once, or a layer in parts.",
    "E411": "The groups of a graph cannot be launched: a node has no group, or groups wait for each other.",
    "E412": "A launch asks for a kind or for options that are not legal for its group on this machine. The message lists those that are.",
    "E413": "A memory plan is wrong: buffers that are needed at the same time overlap, or one is misplaced or too small.",
    "E414": "A kernel generator broke its contract with the plan: an unknown name in its parameters, or a wrong multiply-accumulate count.",
    "E420": "A plugin cannot be loaded, or declares what is declared already.",
    "E430": "Code generation gave an instruction an operand that does not fit its field.",
    "E431": "A label in generated code was placed twice, or never.",
    "E432": "A kernel needs more registers than a thread of the machine has.",
    "E433": "A block of a kernel needs more warps than an SM of the machine has, or more shared memory than a block may have.",
    "E440": "TVM does not lower a group of nodes to SIMD kernels. The message is TVM's own.",
    "E441": "A kernel from TVM holds a node, type or intrinsic that the SIMD code generator does not know.",
    "E442": "The TVM worker process did not start, ended early or gave no answer. The message is the last that it said.",
    "E443": "A SIMD kernel needs more than the machine or the ISA has: an index beyond 32 bits, shared memory, threads.",
    # 5xx the ISA, assembly, images, machine descriptions
    "E501": "An operand or suffix in assembly is not of the kind that the instruction takes.",
    "E502": "A field value does not fit its bits.",
    "E503": "A 128-bit word is not an instruction: unknown opcode, an unused bit set, or a field value without meaning.",
    "E504": "An instruction declaration is wrong: overlapping bits, or an opcode or name already taken.",
    "E505": "Every field fits, but there is no such instruction: a misaligned register tuple, or a type that it lacks.",
    "E510": "There is no target of that name. `knapper targets` lists those that are; a file's name ends in .toml.",
    "E511": "A machine description is wrong: an unknown or missing key, a bad number, or a number that does not say where it is from.",
    "E512": "A machine description cannot be read as TOML, or its bases form a circle.",
    "E520": "The file is not a knapper image: it is no ELF file, or one for another machine.",
    "E521": "An image is damaged: it is cut short, or its checksum does not match its content.",
    "E522": "An image, or a program that is to become one, contradicts itself: the message says where.",
    "E524": "A file is no record of a run, or a damaged one. `knapper run --record` writes them.",
    "E523": "An image has another major format version than this knapper reads. Compile the model again.",
    "E530": "A line of assembly cannot be read. The message shows the place and what was expected; the grammar is in isa/asm.lark.",
    "E531": "Assembly names an instruction, or a suffix of one, that does not exist.",
    "E532": "A label in assembly is missing, or defined twice.",
    "E533": "A directive in assembly is missing, repeated, or out of place.",
    "E534": "Bulk data of an assembly file is missing from the file beside it, or has another content than its hash says.",
    # 6xx the emulated machine stopped
    "E601": "A kernel holds an instruction that its target, its mode or its own resources do not allow.",
    "E602": "A memory access is not aligned to its own size.",
    "E603": "A memory access lies outside its space.",
    "E604": "A store to read-only memory: weights lie there.",
    "E605": "A kernel touched global memory that its launch does not declare, or wrote what it declares to read.",
    "E606": "A kernel read a register or memory that nothing had written.",
    "E607": "Two warps touched a byte of shared memory, one of them writing, with no barrier between.",
    "E608": "A block barrier that not all live threads of the block come to.",
    "E609": "Lanes that parted do not come together again: BSSY, BSYNC and EXIT do not match.",
    "E610": "A warp ran past the last instruction of its kernel.",
    "E611": "A warp executed more instructions than the limit.",
    "E612": "The program's memory does not fit into this computer's.",
    "E613": "A run is more work than its limit: too many blocks, which is seen before it begins, or too many instructions. --limit N sets another.",
    "E614": "A warp branches in too many ways for timing to keep track of. It runs without timing: --no-timing.",
    "E615": "AsyncHazard: a kernel touches what a pending systolic command still uses, or does not wait for one. Seen in checked runs.",
    "E616": "A systolic command by a part of a warp, or more of them pending than a queue holds.",
    "E617": "The recorded paths of a launch never end: its warps wait for others for ever.",
    "E618": "A descriptor of a convolution contradicts itself, or a command asks for what its descriptor has not.",
    "E619": "A product of systolic units on floats finds weights that were loaded as bytes, or the other way round.",
    # 7xx how knapper was called: the inputs of a run
    "E720": "An input is missing, or the network has none of that name.",
    "E721": "An input has another shape than the network expects.",
    "E722": "An input has another dtype than the network expects.",
    "E723": "There is no engine of that name: fast is the compiled one, reference the specification in plain Python.",
    "E725": "A run without timing has no record.",
    "E726": "A recorded run needs what the machine to time it on lacks: an extension, a host, units of one shape, registers, shared memory.",
    "E730": "Samples of eval or calibrate cannot be found in a file or folder: no array, or several, may be meant; there are none of an input.",
    "E731": "Labels are none, are not as many as samples, or name classes that the network does not have.",
    "E732": "A metric needs what is not there: labels, a reference, an output of that name or with samples along its first axis.",
    "E733": "A picture cannot be read, or Pillow, which reads pictures, is not installed: pip install 'knapper[images]'.",
    "E734": "Calibration in onnxruntime: passes made or changed a value that is to be observed. The emulator computes it.",
    "E735": "Samples of eval or calibrate are no numbers: what a network would say of them means nothing.",
    # 7xx how knapper was called
    "E701": "No input, or no open dimension, has that name; or an input was not given. The message lists those that the network has.",
    "E702": "An input or constant has the wrong shape or element type, or cannot be read.",
    "E703": "An input's shape, as --shape gives it, contradicts a size or a range that the model fixes. Only symbolic dimensions are open.",
    "E704": "An option has a value that it does not take, or does not apply beside the others: nothing is ignored silently.",
    "E705": "A file cannot be read or written.",
    "E706": "A check compared nothing, or found values that differ.",
    "E707": "There is no built-in network of that name or size, or a package that it comes from is not installed.",
    "E709": "Data that knapper writes beside an output would take the place of a file that knapper did not write.",
    "E710": "A frame of pandas is asked for, which is not installed: pip install 'knapper[frames]'.",
    "E708": "A reproduced number that counts as evidence is missed, or nothing was compared. `knapper reproduce` shows all rows.",
}


class KnapperError(Exception):
    """One problem: a stable code, where it is, what is wrong, what would be right.

    >>> print(KnapperError("E102", "expected 2 operands, got 1", where="net.onnx: node conv0", hint="add the weight"))
    E102: net.onnx: node conv0: expected 2 operands, got 1 (hint: add the weight)
    """

    def __init__(self, code: str, message: str, *, where: str = "", hint: str = "") -> None:
        if code not in CODES:
            raise ValueError(f"error code {code} has no row in CODES")
        self.code, self.message, self.where, self.hint = code, message, where, hint
        super().__init__(code, message, where, hint)

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        hint = f" (hint: {self.hint})" if self.hint else ""
        return f"{self.code}: {where}{self.message}{hint}"


class Problems(KnapperError):
    """Several problems at once; prints one line each."""

    def __init__(self, problems: Iterable[KnapperError]) -> None:
        self.problems = tuple(problems)
        first = self.problems[0]
        super().__init__(first.code, first.message, where=first.where, hint=first.hint)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


def reason(e: BaseException) -> str:
    """What Python or a library of it raised, in words: no class name, no quotes around a message.

    >>> reason(KeyError("weights")), reason(ValueError("a\\nb")), reason(RecursionError())
    ("there is no 'weights'", 'a', 'RecursionError')
    """
    if isinstance(e, OSError) and e.strerror:
        return e.strerror
    if isinstance(e, KeyError) and e.args:
        return f"there is no {e.args[0]!r}"
    if isinstance(e, AttributeError):
        return "what it holds is laid out in another way"
    return str(e).split("\n")[0] or type(e).__name__


def raise_all(problems: Iterable[KnapperError]) -> None:
    """Raise what was collected, if anything was: a single error bare, several as `Problems`."""
    found = list(problems)
    if len(found) == 1:
        raise found[0]
    if found:
        raise Problems(found)


class IRError(KnapperError):
    """The graph, the plan, or their text is wrong."""


class FrontendError(KnapperError):
    """A model file cannot be imported."""


class PassError(KnapperError):
    """A pass cannot do what it was asked."""


class CompileError(KnapperError):
    """Scheduling or code generation failed."""


class IsaError(KnapperError):
    """An instruction, a word, a line of assembly, an image or a machine description is wrong."""


class MachineFault(KnapperError):
    """The emulated machine stopped: kernel, block, warp, instruction and graph node are in `where`."""


class UsageError(KnapperError):
    """The command line or the Python call was wrong: an input's name, shape or dtype, a target, an option."""
