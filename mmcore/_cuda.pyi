__version__: str

_Frame = tuple[DeviceTables, list[tuple[int, int]], int]

class DeviceTables:
    """A plan's tables on one device."""

    def __init__(self, tables: bytes, address: int) -> None: ...
    @property
    def streams(self) -> bool: ...

def scratch_bytes(frames: list[_Frame]) -> int: ...
def frames_to_tensor(
    frames: list[_Frame],
    output: tuple[int, int, int, int, int, int, int, int],
    scratch: int,
    stream: int,
    method: int = 0,
) -> None: ...
