from collections.abc import Sequence

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
    ) -> None: ...
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

def pool_empty(shape: Sequence[int], code: int, bits: int) -> object: ...
def pool_set_limit(bytes: int) -> None: ...
def pool_limit() -> int: ...
def pool_kept() -> int: ...
def pool_clear() -> None: ...
