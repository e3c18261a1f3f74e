"""Which devices frames can be had on, and what is said of the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
