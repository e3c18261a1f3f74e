from collections.abc import Callable, Sequence

from numpy import float64
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Parameter
from typing_extensions import Buffer

__version__: str
compiler: str

def isa() -> str: ...
def available_isas() -> list[str]: ...

class _PyBindType(type): ...  # the metaclass that pybind11 gives its classes

class FramesPlan(metaclass=_PyBindType):
    def __init__(
        self,
        *,
        family: int,
        components: Sequence[tuple[int, int, int]],
        bits: int,
        shift: int,
        log2_chroma: tuple[int, int],
        source: tuple[int, int],
        resize: tuple[int, int],
        crop: tuple[int, int, int, int],
        interpolation: int,
        antialias: bool,
        chroma: int,
        kr_kb: tuple[float, float],
        full_range: bool,
        accuracy: int,
        dtype: int,
        mul: Sequence[float],
        add: Sequence[float],
        sub_div: tuple[Sequence[float], Sequence[float]] | None,
        scale: float,
        color: Sequence[Sequence[float]] | None = None,
        horizontal_flip: bool = False,
    ) -> None: ...
    def device_tables(self) -> bytes: ...
    def regions(self) -> list[tuple[int, int, int, int, int]]: ...
    def convert_frame(
        self, planes: Sequence[object], output: tuple[int, int, int, int, int, int, int, int], index: int
    ) -> None: ...
    def convert(
        self,
        frames: Sequence[Sequence[tuple[int, int]]],
        output: tuple[int, int, int, int, int, int, int, int],
        first: int,
        threads: int,
    ) -> None: ...

def copy_rows(blocks: Sequence[tuple[int, int, int, int, int, int]]) -> None: ...

class LogMelPlan(metaclass=_PyBindType):
    def __init__(
        self,
        *,
        window: NDArray[float64],
        mel: NDArray[float64],
        n_fft: int,
        hop_length: int,
        framing: int,
        edge: int,
        remove_dc: bool,
        preemphasis: float,
        magnitude: bool,
        logarithm: bool,
        log_scale: float,
        floor: float,
        offset: float,
        dynamic_range: float,
        mean: float,
        std: float,
        pad_with_silence: bool,
        pad_value: float,
        time_major: bool,
    ) -> None: ...

def log_mel(
    plan: LogMelPlan,
    waveform: int,
    dtype: int,
    rows: int,
    samples: int,
    row_stride: int,
    lengths: int,
    pad_to: int,
    frames: int,
    out: int,
    out_dtype: int,
    threads: int,
) -> None: ...
def tensor_to_planes(
    *,
    tensor: tuple[int, int, int, int, int, int],
    size: tuple[int, int],
    frames: Sequence[Sequence[tuple[int, int]]],
    family: int,
    components: Sequence[tuple[int, int, int]],
    bits: int,
    shift: int,
    log2_chroma: tuple[int, int],
    opaque: bool,
    chroma: int,
    kr_kb: tuple[float, float],
    full_range: bool,
    mul: Sequence[float],
    add: Sequence[float],
    threads: int,
) -> int: ...
def pool_empty(shape: Sequence[int], code: int, bits: int) -> object: ...
def pool_set_limit(bytes: int) -> None: ...
def pool_limit() -> int: ...
def pool_kept() -> int: ...
def pool_clear() -> None: ...
def weighted_fusion(
    extents: tuple[int, int, int],
    features: tuple[tuple[int, int, int, int, int, int], ...],
    gates: tuple[int, int, int, int, int, int],
    mask: tuple[int, int, int, int],
    norm: tuple[int, float, int, int],
    mode: int,
    compute: int,
    out_dtype: int,
    out: int,
    threads: int,
) -> None: ...
def weighted_fusion_backward(
    extents: tuple[int, int, int],
    features: tuple[tuple[int, int, int, int, int, int], ...],
    gates: tuple[int, int, int, int, int, int],
    mask: tuple[int, int, int, int],
    norm: tuple[int, float, int, int],
    mode: int,
    compute: int,
    out_dtype: int,
    grad: tuple[int, int, int],
    feature_gradients: tuple[int, ...],
    other_gradients: tuple[int, int, int, int],
    threads: int,
) -> None: ...

class PacketParser(metaclass=_PyBindType):
    def __init__(self, codec: str, extradata: bytes) -> None: ...
    def pictures(self, address: int, size: int) -> list[int]: ...
    def droppable(self, address: int, size: int) -> bool: ...
    def intra(self, address: int, size: int) -> bool: ...

def needed_pictures(
    pictures: Buffer, counts: Buffer, first: int, targets: Sequence[int], keep_references: bool = False
) -> list[int]: ...
def keep_av1_pictures(address: int, size: int, keep: int) -> bytes: ...
def tensors_ready() -> bool: ...
def tensors_kind(
    tensors: tuple[Tensor | None, ...], tensor: type[Tensor], parameter: type[Parameter], /
) -> int: ...
def tensors_key(tensors: tuple[Tensor | None, ...], /) -> tuple[bytes, list[int]] | None: ...
def fusion_forward(
    tensors: tuple[Tensor | None, ...],
    mode: str,
    norm: str | None,
    align: str | Sequence[str | None] | None,
    eps: float,
    length: int | None,
    budget: Callable[[], int],
    /,
) -> Tensor | None: ...
def fusion_backward(
    grad: Tensor,
    needs: tuple[bool, ...],
    tensors: tuple[Tensor | None, ...],
    mode: str,
    norm: str | None,
    align: str | Sequence[str | None] | None,
    eps: float,
    length: int | None,
    budget: Callable[[], int],
    /,
) -> tuple[Tensor | None, ...] | None: ...

class LossTask(metaclass=_PyBindType):
    def __init__(
        self,
        *,
        kind: int,
        reduction: int,
        label_smoothing: float,
        ignore_index: int,
        z_loss: float,
        focal_gamma: float,
        class_dim: int,
        beta: float,
        temperature: float,
        uncertainty_scale: float,
    ) -> None: ...

def multi_task_loss(
    heads: tuple[tuple[object, ...], ...],
    vectors: tuple[int, int, int],
    grad_total: float,
    compute: int,
    results: tuple[int, int, int, int],
    threads: int,
) -> None: ...
def losses_with_tensors(
    tasks: tuple[object, ...],
    tensors: tuple[Tensor | None, ...],
    targets: tuple[Tensor | None, ...],
    masks: tuple[Tensor | None, ...] | None,
    needs: tuple[bool, ...] | None,
    inplace: bool,
    budget: Callable[[], int],
    /,
) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...] | None] | None: ...
def is_one(tensor: Tensor, /) -> bool: ...

CLIP_STATES: int

def clip_statistics(
    y: int,
    first: int,
    rows: int,
    batch: int,
    compute: int,
    scale: float,
    states: int,
    keep: bool,
    threads: int,
) -> None: ...
def clip_sums(states: int, batch: int, scale: float) -> tuple[float, float, float]: ...
def clip_gradient(
    y: int,
    first: int,
    rows: int,
    batch: int,
    compute: int,
    scale: float,
    states: int,
    kept: bool,
    threads: int,
) -> None: ...
def siglip(
    y: int,
    first: int,
    rows: int,
    batch: int,
    compute: int,
    scale: float,
    bias: float,
    gradient: bool,
    threads: int,
) -> tuple[float, float, float]: ...
