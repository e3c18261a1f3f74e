"""Encoders made of other libraries' models: tiny ones with random weights, nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import mmcore
from mmcore.models import (
    CNN,
    ClassificationHead,
    Encoder,
    FrameEncoder,
    Fusion,
    MultiTaskNet,
    from_timm,
    from_transformers,
    load,
    masked_mean,
    save,
)

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
PICTURES = {"image_size": 16, "patch_size": 8}
CONVOLUTIONS = {
    "conv_dim": (8, 8),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "apply_spec_augment": False,
}
WHISPER = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_mel_bins": 8,
    "max_source_positions": 20,
    "vocab_size": 10,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


def _first(lengths: list[int], steps: int) -> Tensor:
    return torch.arange(steps) < torch.tensor(lengths)[:, None]


class Adapted(NamedTuple):
    model: str
    config: str
    settings: dict[str, Any]
    inputs: Callable[[], Tensor]
    lengths: list[int]
    """Of the three inputs."""
    expected: list[int]
    """Steps that the features then have."""
    padding_changes_nothing: bool = True
    checkpoints: bool = True


def _video() -> Tensor:
    return torch.rand(3, 4, 3, 16, 16)


MODELS = {
    "bert": Adapted(
        "BertModel",
        "BertConfig",
        TINY | {"vocab_size": 50},
        lambda: torch.randint(50, (3, 6)),
        [6, 2, 0],
        [6, 2, 0],
    ),
    "vit": Adapted("ViTModel", "ViTConfig", TINY | PICTURES, _video, [4, 2, 0], [4, 2, 0]),
    "clip": Adapted("CLIPVisionModel", "CLIPVisionConfig", TINY | PICTURES, _video, [4, 2, 0], [4, 2, 0]),
    "resnet": Adapted(
        "ResNetModel",
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
        _video,
        [4, 2, 0],
        [4, 2, 0],
        padding_changes_nothing=False,  # of batch norm, in training
        checkpoints=False,
    ),
    "videomae": Adapted(
        "VideoMAEModel",
        "VideoMAEConfig",
        TINY | PICTURES | {"num_frames": 4},
        _video,
        [4, 2, 0],
        [2, 1, 0],
        padding_changes_nothing=False,
    ),
    "wav2vec2": Adapted(
        "Wav2Vec2Model",
        "Wav2Vec2Config",
        TINY | CONVOLUTIONS | {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
        lambda: torch.randn(3, 200),
        [200, 100, 0],
        [19, 9, 0],
    ),
    "hubert": Adapted(
        "HubertModel",
        "HubertConfig",
        TINY | CONVOLUTIONS,
        lambda: torch.randn(3, 200),
        [200, 100, 4],
        [19, 9, 0],
        padding_changes_nothing=False,  # of group norm over time
    ),
    "ast": Adapted(
        "ASTModel",
        "ASTConfig",
        TINY
        | {"num_mel_bins": 16, "max_length": 40, "patch_size": 8, "frequency_stride": 8, "time_stride": 8},
        lambda: torch.randn(3, 32, 16),
        [32, 16, 0],
        [4, 2, 0],
    ),
    "whisper": Adapted(
        "WhisperModel", "WhisperConfig", WHISPER, lambda: torch.randn(3, 30, 8), [30, 12, 0], [15, 6, 0]
    ),
}
KINDS = pytest.mark.parametrize("kind", MODELS)


def _imported(package: str, *names: str) -> Any:
    """Names of a package; a test skips where they cannot be imported, for whatever reason."""
    try:
        module = __import__(package)
        return [getattr(module, name) for name in names]
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"{package}: {error}")


def _made(kind: str) -> Encoder:
    adapted = MODELS[kind]
    model, config = _imported("transformers", adapted.model, adapted.config)
    torch.manual_seed(0)
    return from_transformers(model(config(**adapted.settings))).eval()


@KINDS
def test_transformers_model_as_encoder(kind: str) -> None:
    encoder, adapted = _made(kind), MODELS[kind]
    x = adapted.inputs()
    mask = _first(adapted.lengths, x.shape[1])
    found = encoder(x, mask)
    assert encoder.dim == 16
    assert found.data.shape == (3, max(adapted.expected), 16)
    assert found.mask is not None
    assert found.mask.sum(1).tolist() == adapted.expected
    assert encoder(x).data.shape == found.data.shape
    masked_mean(*found).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())
    if adapted.padding_changes_nothing:
        changed = x.clone()
        for row, length in zip(changed, adapted.lengths, strict=True):
            row[length:] = 1
        torch.testing.assert_close(masked_mean(*encoder(changed, mask)), masked_mean(*found))


@KINDS
def test_checkpointing_and_saving(kind: str, tmp_path: Path) -> None:
    encoder = _made(kind)
    x = MODELS[kind].inputs()
    expected = encoder(x)
    save(encoder, tmp_path)
    again = load(tmp_path)
    assert torch.equal(again(x).data, expected.data)
    if not MODELS[kind].checkpoints:
        with pytest.raises(mmcore.UnsupportedError, match="no gradient checkpointing"):
            encoder.gradient_checkpointing()
        return
    gradients = []
    for enabled in (False, True):
        encoder.train().gradient_checkpointing(enabled).zero_grad()
        torch.manual_seed(0)
        encoder(x).data.square().sum().backward()
        gradients.append([p.grad for p in encoder.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_ast_features_are_in_the_order_of_time() -> None:
    encoder = _made("ast")
    x = torch.zeros(1, 40, 16)
    changed = x.clone()
    changed[:, 24:32] = 5
    difference = (encoder(x).data - encoder(changed).data).abs().sum(2)[0]
    assert int(difference.argmax()) == 3


def test_videomae_features_are_in_the_order_of_time() -> None:
    encoder = _made("videomae")
    x = torch.zeros(1, 4, 3, 16, 16)
    changed = x.clone()
    changed[:, 2:] = 1
    difference = (encoder(x).data - encoder(changed).data).abs().sum(2)[0]
    assert difference[1] > difference[0]


def test_a_network_of_adapters_learns_and_is_saved(tmp_path: Path) -> None:
    encoders = {"video": _small_frames(), "text": _made("bert")}
    net = MultiTaskNet(
        encoders,
        Fusion({"video": 8, "text": 16}, 16, reference="video"),
        {"kind": ClassificationHead(16, 3)},
        mmcore.nn.MultiTaskLoss({"kind": mmcore.Task.cross_entropy()}),
    )
    inputs = {"video": _video(), "text": torch.randint(50, (3, 6))}
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    found = []
    for _ in range(10):
        total, _ = net.loss(net(inputs), {"kind": torch.tensor([0, 1, 2])})
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        found.append(float(total.detach()))
    assert found[-1] < found[0] / 2
    with pytest.raises(TypeError, match=r"MultiTaskNet\.encoders\.video\.module: Sequential has no config"):
        save(net, tmp_path)


def _small_frames() -> FrameEncoder:
    """As a torchvision network whose last layer was taken off."""
    layers = (nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return FrameEncoder(nn.Sequential(*layers), 8)


def test_any_module_for_pictures() -> None:
    encoder = _small_frames()
    video = _video()
    found = encoder(video, _first([4, 2, 0], 4))
    assert found.data.shape == (3, 4, 8)
    torch.testing.assert_close(found.data[1, 1], encoder.module(video[1, 1:2])[0])
    maps = FrameEncoder(nn.Conv2d(3, 8, 3), 8)
    assert maps(video).data.shape == (3, 4, 8)
    with pytest.raises(ValueError, match="dim: Linear does not say the width"):
        FrameEncoder(nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"module: expected vectors \(N, 5\), got \(12, 8, 14, 14\)"):
        FrameEncoder(nn.Conv2d(3, 8, 3), 5)(video)
    with pytest.raises(ValueError, match=r"video: expected shape \(B, T, C, H, W\)"):
        encoder(video[0])


def test_timm(tmp_path: Path) -> None:
    (create,) = _imported("timm", "create_model")
    video = torch.rand(1, 2, 3, 32, 32)
    options = {"img_size": 32, "embed_dim": 16, "num_heads": 2, "depth": 1}
    encoder = from_timm("vit_tiny_patch16_224", **options).eval()
    expected = encoder(video)
    assert expected.data.shape == (1, 2, 16)
    save(encoder, tmp_path / "named")
    assert torch.equal(load(tmp_path / "named")(video).data, expected.data)
    gradients = []
    for enabled in (False, True):
        encoder.train().gradient_checkpointing(enabled).zero_grad()
        encoder(video).data.square().sum().backward()
        gradients.append([p.grad for p in encoder.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])

    unusual = from_timm(create("vit_tiny_patch16_224", **options))
    with pytest.raises(TypeError, match="TimmModel has no config"):
        save(unusual, tmp_path / "unusual")
    with pytest.raises(ValueError, match="pretrained and other options are for a name"):
        from_timm(create("vit_tiny_patch16_224", **options), img_size=16)


def test_what_is_no_model() -> None:
    with pytest.raises(TypeError, match="model: expected one of transformers, got Linear"):
        from_transformers(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="model: expected one of timm, got Linear without reset_classifier"):
        from_timm(nn.Linear(2, 2))
    model, config = _imported("transformers", "ClapAudioModel", "ClapAudioConfig")
    tiny = config(
        patch_embeds_hidden_size=8, depths=[1], num_attention_heads=[1], hidden_size=8, num_mel_bins=32
    )
    with pytest.raises(mmcore.UnsupportedError, match="no adapter for ClapAudioModel"):
        from_transformers(model(tiny))


def test_too_long_or_too_short() -> None:
    with pytest.raises(ValueError, match="log-mel: 41 frames are more than the 40"):
        _made("whisper")(torch.zeros(1, 41, 8))
    with pytest.raises(ValueError, match="log-mel: 41 frames are more than the model's 40"):
        _made("ast")(torch.zeros(1, 41, 16))
    with pytest.raises(ValueError, match="video: expected 4 frames, got 3"):
        _made("videomae")(_video()[:, :3])
    with pytest.raises(ValueError, match=r"text: expected 2 dimensions, got shape \(1, 2, 3\)"):
        _made("bert")(torch.zeros(1, 2, 3))


def test_a_file_cannot_name_any_class(tmp_path: Path) -> None:
    _imported("transformers", "PreTrainedModel")
    save(CNN(8, widths=(4,)), tmp_path)
    for module, name in (("os", "system"), ("transformers.models.bert.modeling_bert", "logger")):
        config = json.loads((tmp_path / "config.json").read_text())
        model = {"module": module, "name": name, "settings": {}}
        config["model"] = {"class": "TransformersEncoder", "config": {"model": model, "dim": 4}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(mmcore.UnsupportedError, match=r"expected a (class of transformers|model)"):
            load(tmp_path)
