"""Which devices frames can be had on, and what is said of the others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import mmcore
from mmcore.cli.train import train
from mmcore.ops import devices
from mmcore.ops.devices import check_cuda_device, check_device
from mmcore.recipes.train_settings import TrainSettings
from mmcore.recipes.trainer import Trainer


def refuses(device: object, message: str) -> None:
    with pytest.raises(mmcore.UnsupportedError, match=message) as caught:
        check_device(device)  # type: ignore[arg-type]
    assert repr(str(device)) in str(caught.value)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A torch that is built for CUDA and finds two GPUs."""
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: False)
    return monkeypatch


def test_the_cpu_can_be_used() -> None:
    assert check_device("cpu") == check_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("device", ["gpu", "", None, 1.5, "cuda:x"])
def test_what_is_no_device(device: object) -> None:
    with pytest.raises(ValueError, match=r"device: .* is not a device"):
        check_device(device)  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["meta", "mps", torch.device("xpu", 0)])
def test_other_kinds_of_devices(device: object) -> None:
    refuses(device, "can be had on 'cpu' and 'cuda'; use device='cpu' and .to")


def test_a_model_is_not_put_where_it_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_why_no_cuda", lambda index: "no driver")
    model = torch.nn.Linear(2, 2)
    settings = TrainSettings(steps=1)
    calls: list[Callable[[], object]] = [
        lambda: Trainer(
            model, lambda m, b: m(b), lambda s: iter(()), settings, folder=tmp_path, device="cuda"
        ),
        lambda: mmcore.models.load(tmp_path, device="cuda:1"),
        lambda: train(recipe="classify", output=tmp_path, device="cuda"),
    ]
    for call in calls:
        with pytest.raises(mmcore.UnsupportedError, match=r"device 'cuda.*': no driver; use device='cpu'"):
            call()
    check_cuda_device("mps")  # torch's matter


def test_torch_without_cuda(cuda: pytest.MonkeyPatch) -> None:
    cuda.setattr(torch.backends.cuda, "is_built", lambda: False)
    refuses("cuda", r"built without CUDA: install .*; use device='cpu'")


def test_no_driver_or_gpu(cuda: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system.\nPlease check")

    cuda.setattr(torch.cuda, "device_count", lambda: 0)
    cuda.setattr(torch.cuda, "init", init)
    refuses("cuda:0", r"no CUDA device was found \(Found no NVIDIA driver on your system\); use device='cpu'")
    cuda.setattr(torch.cuda, "init", lambda: None)
    refuses("cuda", "no CUDA device was found; use device='cpu'")


def test_number_of_the_gpu(cuda: pytest.MonkeyPatch) -> None:
    assert check_device("cuda") == torch.device("cuda")
    assert check_device(torch.device("cuda", 1)) == torch.device("cuda:1")
    refuses("cuda:2", "there is no GPU of this number, but 0 to 1; use device='cpu'")
    cuda.setattr(torch.cuda, "device_count", lambda: 1)
    refuses("cuda:1", "there is no GPU of this number, but 0; use device='cpu'")


def test_process_forked_from_one_that_uses_cuda(cuda: pytest.MonkeyPatch) -> None:
    cuda.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    refuses("cuda", "forked from one that uses CUDA.* multiprocessing_context='spawn', or decode on the CPU")


# --- a call's streams


class Calls:
    """Stands for ``torch.cuda``'s streams and events, and notes what is done with them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.log: list[tuple[object, ...]] = []
        self.current = ["main"]
        self.is_capturing = False

        class Event:
            def __init__(event, blocking: bool) -> None:
                self.log.append(("event", blocking))

            def record(event, stream: object) -> None:
                self.log.append(("record", stream))

        for name, fake in {
            "current_device": lambda: 1,
            "current_stream": lambda device: f"{self.current[-1]} of {device}",
            "default_stream": lambda device: f"default of {device}",
            "is_current_stream_capturing": lambda: self.is_capturing,
            "Stream": lambda device: SimpleNamespace(device=device, wait_event=self.noting("wait")),
            "stream": self.stream,
            "Event": Event,
        }.items():
            patch.setattr(torch.cuda, name, fake)
        patch.setattr(devices, "_uploads", {})

    def noting(self, what: str) -> Callable[[object], None]:
        return lambda value: self.log.append((what, value))

    @contextlib.contextmanager
    def stream(self, stream: str) -> Iterator[None]:
        self.current.append(stream)
        yield
        self.current.pop()


def test_a_queue_goes_by_the_streams_of_its_caller(cuda: pytest.MonkeyPatch) -> None:
    calls = Calls(cuda)
    assert devices.open_queue("cpu") is None
    queue, other = devices.open_queue("cuda"), devices.open_queue(torch.device("cuda", 0))
    again = devices.open_queue("cuda:1")
    assert queue is not None
    assert other is not None
    assert again is not None
    assert (queue.device, other.device) == (torch.device("cuda:1"), torch.device("cuda:0"))
    assert queue.stream == "main of cuda:1"  # type: ignore[comparison-overlap]
    assert queue.uploads is again.uploads
    assert queue.shared is again.shared
    assert queue.uploads is not other.uploads
    assert queue.uploads.device == queue.device
    seen: list[str] = []
    queue.do(queue.uploads, lambda: seen.append(calls.current[-1]))
    assert seen == [queue.uploads]
    event = queue.record(queue.stream)
    queue.wait(queue.uploads, event)
    assert calls.log == [("event", True), ("record", queue.stream), ("wait", event)]


def test_threads_get_the_streams_of_their_caller(cuda: pytest.MonkeyPatch) -> None:
    calls = Calls(cuda)
    with devices.current_streams("cpu")():
        assert calls.current == ["main"]
    streams = devices.current_streams("cuda")
    for _ in range(2):
        with streams():
            assert calls.current[-1] == "main of cuda:1"
        assert calls.current == ["main"]


def test_nothing_is_uploaded_while_a_graph_is_captured(cuda: pytest.MonkeyPatch) -> None:
    Calls(cuda).is_capturing = True
    with pytest.raises(mmcore.UnsupportedError, match="while a CUDA graph is captured; decode before"):
        devices.open_queue("cuda")
    assert devices.open_queue("cpu") is None
