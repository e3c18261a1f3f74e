"""log_mel against formulas written out in float64 numpy, frame by frame, and against transformers."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mmcore
from mmcore import LogMelSettings

WHISPER, AST, KALDI = LogMelSettings.whisper(), LogMelSettings.ast(), LogMelSettings.kaldi()


def speech(samples: int, seed: int = 0, rows: int | None = None) -> Tensor:
    """Something with harmonics, noise, loud and quiet parts, and a constant offset."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(samples, dtype=torch.float64) / 16000
    shape = (samples,) if rows is None else (rows, samples)
    pitch = 110 + 30 * torch.sin(2 * torch.pi * 1.5 * t)
    phase = 2 * torch.pi * torch.cumsum(pitch, 0) / 16000
    voice = sum(torch.sin(k * phase) / k for k in range(1, 25)) * (1 + torch.sin(2 * torch.pi * 3 * t)) * 0.1
    noise = 0.01 * torch.randn(shape, dtype=torch.float64, generator=generator)
    return (voice + noise + 0.02).float()


# ---- the oracle: nothing of it is shared with the package


def _mel_of(hertz: float, scale: str) -> float:
    if scale != "slaney":
        return 2595.0 * math.log10(1 + hertz / 700.0)
    return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def _hertz_of(mel: float, scale: str) -> float:
    if scale != "slaney":
        return 700.0 * (10 ** (mel / 2595.0) - 1)
    return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)


def _oracle_filters(s: LogMelSettings) -> np.ndarray:
    top = s.sample_rate / 2 if s.f_max is None else s.f_max
    low, high = _mel_of(s.f_min, s.mel_scale), _mel_of(top, s.mel_scale)
    filters = np.zeros((s.n_mels, s.n_fft // 2 + 1))
    for m in range(s.n_mels):
        a, b, c = (low + (high - low) * (m + i) / (s.n_mels + 1) for i in range(3))
        ends = [_hertz_of(v, s.mel_scale) for v in (a, b, c)]
        if s.mel_scale != "kaldi":
            a, b, c = ends
        for k in range(filters.shape[1]):
            f = k * s.sample_rate / s.n_fft
            v = _mel_of(f, s.mel_scale) if s.mel_scale == "kaldi" else f
            if a < v < c:
                filters[m, k] = (v - a) / (b - a) if v <= b else (c - v) / (c - b)
        if s.mel_norm == "slaney":
            filters[m] *= 2 / (ends[2] - ends[0])
    return filters


def _oracle_window(s: LogMelSettings) -> np.ndarray:
    n = s.win_length + (1 if s.periodic else 0)
    name = {"povey": "hann", "rectangular": "ones", "hann": "hann"}.get(s.window, s.window)
    made = np.ones(n) if name == "ones" else {"hann": np.hanning}.get(name, getattr(np, name, None))(n)
    return (made**0.85 if s.window == "povey" else made)[: s.win_length]


def oracle(waveform: Tensor, s: LogMelSettings) -> np.ndarray:
    """(n_mels, frames) or (frames, n_mels) of one waveform, as it stands."""
    x = waveform.double().numpy()
    window, filters = _oracle_window(s), _oracle_filters(s)
    hop, n, total = s.hop_length, s.win_length, len(x)
    margin = 2 * s.n_fft + hop
    mode: Any = s.pad_mode
    padded = np.pad(x, margin, mode=mode)
    if s.framing.startswith("center"):
        starts = [i * hop - s.n_fft // 2 + (s.n_fft - n) // 2 for i in range(total // hop + 1)]
        starts = starts[:-1] if s.framing == "center_drop_last" else starts
    elif s.framing == "snip_edges":
        starts = list(range(0, total - n + 1, hop))
    else:
        starts = [i * hop + hop // 2 - n // 2 for i in range((total + hop // 2) // hop)]
    rows = []
    for start in starts:
        frame = padded[start + margin : start + margin + n].copy()
        if s.remove_dc:
            frame -= frame.mean()
        frame[1:] -= s.preemphasis * frame[:-1]
        frame[0] *= 1 - s.preemphasis
        rows.append(filters @ np.abs(np.fft.rfft(frame * window, s.n_fft)) ** s.power)
    value = np.array(rows).reshape(len(starts), s.n_mels)
    if s.log is not None:
        value = np.log(np.maximum(s.floor, value + s.log_offset))
        tens = {"log10": 1, "db": 10 if s.power == 2 else 20}
        value = value * (tens[s.log] / math.log(10) if s.log in tens else 1)
    if s.dynamic_range is not None:
        value = np.maximum(value, value.max() - s.dynamic_range)
    value = (value - s.mean) / s.std
    return value if s.layout == "time_mel" else value.T


OTHERS = {
    "librosa": WHISPER.replace(
        sample_rate=22050,
        n_fft=2048,
        win_length=2048,
        hop_length=512,
        n_mels=128,
        framing="center",
        pad_mode="constant",
        log="db",
        dynamic_range=80.0,
        mean=0.0,
        std=1.0,
    ),
    "vggish": WHISPER.replace(
        n_fft=512,
        n_mels=64,
        f_min=125.0,
        f_max=7500.0,
        mel_scale="htk",
        mel_norm=None,
        framing="snip_edges",
        power=1,
        log="ln",
        log_offset=0.01,
        dynamic_range=None,
        layout="time_mel",
    ),
    "vocoder": WHISPER.replace(
        sample_rate=22050,
        n_fft=1024,
        win_length=1024,
        hop_length=256,
        framing="center",
        power=1,
        log="ln",
        floor=1e-5,
        dynamic_range=None,
        mean=0.0,
        std=1.0,
    ),
    "odd": WHISPER.replace(n_fft=375, win_length=301, hop_length=97, n_mels=13, framing="center"),
    "prime": WHISPER.replace(n_fft=2 * 11 * 7, win_length=150, hop_length=41, n_mels=17, window="hamming"),
    "large prime": KALDI.replace(n_fft=211, win_length=211, hop_length=300, n_mels=5, window="blackman"),
    "no log": WHISPER.replace(log=None, dynamic_range=None, mean=0.0, std=2.0, n_mels=40),
    "rectangular": KALDI.replace(window="rectangular", preemphasis=0.0, mel_scale="htk", n_mels=21),
    "tiny": WHISPER.replace(n_fft=8, win_length=6, hop_length=1, n_mels=2, framing="center"),
    "one point": WHISPER.replace(
        n_fft=1, win_length=1, hop_length=2, n_mels=1, mel_norm=None, window="rectangular"
    ),
}
SETTINGS = {
    "whisper": WHISPER,
    "whisper 128": LogMelSettings.whisper(128),
    "ast": AST,
    "kaldi": KALDI,
    "kaldi whole": LogMelSettings.kaldi(23, snip_edges=False),
    "kaldi 8 kHz": LogMelSettings.kaldi(40, sample_rate=8000, window="hamming"),
    **OTHERS,
}
# Of float32, against float64: without the mean, and with preemphasis, low filters sum next to nothing.
TOLERANCES = {
    "kaldi": 1e-3,
    "kaldi whole": 1e-3,
    "kaldi 8 kHz": 1e-3,
    "rectangular": 1e-3,
    "large prime": 1e-3,
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_equals_the_formulas(name: str, backend: str) -> None:
    s = SETTINGS[name]
    for samples in (s.win_length + 3, 70 * s.hop_length + s.win_length // 3):
        x = speech(samples)
        expected = torch.from_numpy(oracle(x, s))
        with mmcore.backend(backend):
            got = mmcore.log_mel(x, s.sample_rate, s)
            precise = mmcore.log_mel(x.double(), s.sample_rate, s)
        assert got.dtype == torch.float32
        assert got.is_contiguous()
        assert precise.dtype == torch.float64
        torch.testing.assert_close(precise, expected, rtol=1e-9, atol=1e-9)
        atol = TOLERANCES.get(name, 1e-4)
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=atol)


@pytest.mark.parametrize(
    "samples", [1, 2, 159, 160, 161, 399, 400, 401, 1000, 10239, 10240, 10241, 10399, 20500]
)
@pytest.mark.parametrize("framing", ["center", "center_drop_last", "snip_edges", "no_snip_edges"])
@pytest.mark.parametrize("pad_mode", ["reflect", "symmetric", "constant"])
def test_every_length_and_edge(samples: int, framing: str, pad_mode: str) -> None:
    s = WHISPER.replace(
        framing=framing, pad_mode=pad_mode, n_mels=10, log="ln", floor=1e-7, dynamic_range=None
    )
    x = speech(samples)
    if s.num_frames(samples) == 0:
        with pytest.raises(ValueError, match=f"waveform: {samples} samples have no frame"):
            mmcore.log_mel(x, 16000, s)
        return
    expected = torch.from_numpy(oracle(x, s))
    assert expected.shape == (10, s.num_frames(samples))
    torch.testing.assert_close(mmcore.log_mel(x, 16000, s).double(), expected, rtol=0, atol=1e-4)


def test_equals_torch_stft() -> None:
    x = speech(30000)
    stft = torch.stft(
        x.double(), 512, 100, 400, torch.hann_window(400, dtype=torch.float64), return_complex=True
    )
    s = WHISPER.replace(
        n_fft=512, hop_length=100, framing="center", log=None, dynamic_range=None, mean=0.0, std=1.0
    )
    expected = torch.from_numpy(_oracle_filters(s)) @ stft.abs().square()
    torch.testing.assert_close(mmcore.log_mel(x.double(), 16000, s), expected)


# ---- transformers, where it is installed


@pytest.fixture(scope="module")
def transformers() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("transformers")
        try:
            module.WhisperFeatureExtractor, module.ASTFeatureExtractor  # noqa: B018
        except Exception as e:
            pytest.skip(f"transformers' feature extractors do not import: {e}")
    return module


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.filterwarnings("ignore")
def test_equals_transformers_whisper(transformers: Any, n_mels: int) -> None:
    extractor = transformers.WhisperFeatureExtractor(feature_size=n_mels)
    rows = [speech(n, seed=n) for n in (16000, 48123, 500_000)]
    expected = extractor(
        [r.numpy() for r in rows], sampling_rate=16000, return_tensors="pt", return_attention_mask=True
    )
    lengths = torch.tensor([len(r) for r in rows])
    batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=float("nan"))
    s = LogMelSettings.whisper(n_mels)
    got = mmcore.log_mel(batch, 16000, s, lengths=lengths, pad_to=480_000)
    torch.testing.assert_close(got, expected["input_features"], rtol=0, atol=1e-4)
    mask = s.frame_mask(lengths, got.shape[-1], padded=True)
    assert torch.equal(mask, expected["attention_mask"].bool())


@pytest.mark.filterwarnings("ignore")
def test_equals_transformers_ast(transformers: Any) -> None:
    extractor = transformers.ASTFeatureExtractor()
    rows = [speech(n, seed=n) for n in (16000, 48123, 200_000)]
    expected = extractor([r.numpy() for r in rows], sampling_rate=16000, return_tensors="pt")["input_values"]
    lengths = [len(r) for r in rows]
    batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=float("nan"))
    got = mmcore.log_mel(batch, 16000, AST, lengths=lengths, num_frames=1024)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


# ---- shapes, types, memory


def test_shapes() -> None:
    assert mmcore.log_mel(speech(16000)).shape == (80, 100)
    assert mmcore.log_mel(speech(16000, rows=2)).shape == (2, 80, 100)
    assert mmcore.log_mel(speech(16000, rows=6).view(3, 2, 16000), 16000, AST).shape == (3, 2, 98, 128)
    assert mmcore.log_mel(torch.zeros(0, 16000)).shape == (0, 80, 100)
    assert mmcore.log_mel(torch.zeros(2, 0, 16000), 16000, AST).shape == (2, 0, 98, 128)
    assert mmcore.log_mel(torch.zeros(2, 0), pad_to=1600).shape == (2, 80, 10)
    assert mmcore.log_mel(speech(16000), num_frames=7).shape == (80, 7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("settings", [WHISPER, AST], ids=["whisper", "ast"])
def test_half_results_are_rounded_ones(settings: LogMelSettings, dtype: torch.dtype) -> None:
    x = speech(30011, rows=3)
    whole = mmcore.log_mel(x, 16000, settings)
    got = mmcore.log_mel(x, 16000, settings, dtype=dtype)
    assert got.dtype == dtype
    assert torch.equal(got, whole.to(dtype))
    assert torch.equal(mmcore.log_mel(x.double(), 16000, settings, dtype=dtype).isnan(), got.isnan())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_samples_are_those_numbers(dtype: torch.dtype) -> None:
    x = speech(9999, rows=2).to(dtype)
    assert torch.equal(mmcore.log_mel(x), mmcore.log_mel(x.float()))


def test_strides_and_inputs_stay() -> None:
    x = speech(20000, rows=4)
    kept = x.clone()
    expected = mmcore.log_mel(x)
    assert torch.equal(mmcore.log_mel(x.t().contiguous().t()), expected)  # samples apart
    wide = torch.full((8, 20100), float("nan"))
    wide[::2, 50:20050] = x
    assert torch.equal(mmcore.log_mel(wide[::2, 50:20050]), expected)  # rows apart
    assert torch.equal(mmcore.log_mel(x[:1].expand(3, -1)), expected[:1].expand(3, -1, -1))
    assert torch.equal(mmcore.log_mel(torch._neg_view(-x)), expected)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("settings", [WHISPER, AST], ids=["whisper", "ast"])
def test_threads_and_batches_do_not_matter(settings: LogMelSettings) -> None:
    x = speech(90000, rows=3)
    before = mmcore.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            mmcore.set_num_threads(threads)
            results.append(mmcore.log_mel(x, 16000, settings))
    finally:
        mmcore.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[0], torch.stack([mmcore.log_mel(row, 16000, settings) for row in x]))


# ---- lengths, padding, numbers that are none


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    "settings",
    [WHISPER, WHISPER.replace(pad_value=-3.0), AST, KALDI],
    ids=["whisper", "value", "ast", "kaldi"],
)
def test_each_waveform_is_as_alone(settings: LogMelSettings, backend: str) -> None:
    lengths = torch.tensor([[16000, 0, 400], [15840, 12345, 1]])
    x = torch.full((2, 3, 16000), float("nan"))
    for i, n in np.ndenumerate(lengths.numpy()):
        x[i][:n] = speech(int(n), seed=int(n))
    with mmcore.backend(backend):
        got = mmcore.log_mel(x, 16000, settings, lengths=lengths)
        frames = got.shape[-1 if settings.layout == "mel_time" else -2]
        mask = settings.frame_mask(lengths, frames)
        for i, n in np.ndenumerate(lengths.numpy()):
            row = got[i] if settings.layout == "time_mel" else got[i].T
            own = settings.num_frames(int(n))
            assert mask[i].tolist() == [True] * own + [False] * (frames - own)
            silence = math.log(settings.floor) * settings.log_scale
            fill = (
                (silence if settings.pad_value is None else settings.pad_value) - settings.mean
            ) / settings.std
            if own:
                alone = mmcore.log_mel(x[i][:n], 16000, settings)
                alone = alone if settings.layout == "time_mel" else alone.T
                torch.testing.assert_close(row[:own], alone, rtol=0, atol=0 if backend == "cpu" else 1e-5)
                if settings.dynamic_range is not None:
                    fill = max(fill, alone.max().item() - settings.dynamic_range / settings.std)
            expected = torch.full((frames - own, settings.n_mels), fill)
            torch.testing.assert_close(row[own:], expected)


@pytest.mark.parametrize("settings", [WHISPER, AST], ids=["whisper", "ast"])
def test_pad_to_is_zeros_or_a_cut(settings: LogMelSettings) -> None:
    x = speech(12345, rows=2)
    for total in (5000, 12345, 12400, 40000):
        padded = torch.nn.functional.pad(x, (0, total - 12345))
        torch.testing.assert_close(
            mmcore.log_mel(x, 16000, settings, pad_to=total),
            mmcore.log_mel(padded, 16000, settings),
            rtol=0,
            atol=1e-5,
        )
    got = mmcore.log_mel(x, 16000, settings, pad_to=40000, lengths=[5000, 12345])
    alone = mmcore.log_mel(x[0, :5000], 16000, settings, pad_to=40000)
    assert torch.equal(got[0], alone)


def test_num_frames_cuts_and_fills() -> None:
    x = speech(16000)
    whole = mmcore.log_mel(x, 16000, AST)
    cut, filled = (mmcore.log_mel(x, 16000, AST, num_frames=n) for n in (40, 130))
    assert torch.equal(cut, whole[:40])
    assert torch.equal(filled[:98], whole)
    torch.testing.assert_close(filled[98:], torch.full((32, 128), -AST.mean / AST.std))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_stays_in_its_frames(bad: float, backend: str) -> None:
    x = speech(16000)
    # quiet enough that nothing is raised to the dynamic range
    s = WHISPER.replace(dynamic_range=30.0, floor=1e-20)
    with mmcore.backend(backend):
        clean = mmcore.log_mel(x, 16000, s)
        x[8000] = bad
        got = mmcore.log_mel(x, 16000, s)
    hit = torch.zeros(100, dtype=torch.bool)
    hit[[i for i in range(100) if -200 <= 8000 - i * 160 < 200]] = True
    # the window's first weight is 0: of infinity that makes NaN, too
    assert got[:, hit].isnan().all()
    assert torch.equal(got[:, ~hit], clean[:, ~hit])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_silence_and_loudness(backend: str) -> None:
    with mmcore.backend(backend):
        assert mmcore.log_mel(torch.zeros(16000)).unique().tolist() == [-1.5]  # (log10(1e-10) + 4) / 4
        loud = mmcore.log_mel(torch.full((16000,), 3e4), 16000, WHISPER.replace(dynamic_range=None))
        assert loud.isfinite().all()
        whole = mmcore.log_mel(torch.full((4000,), 1e25), 16000, KALDI.replace(remove_dc=False))
        assert not whole.isfinite().any()  # powers beyond float32


def test_the_dynamic_range_is_each_waveforms_own() -> None:
    x = torch.stack((speech(16000), speech(16000) * 1e-4))
    got = mmcore.log_mel(x)
    for row in got:
        assert row.min() >= row.max() - 2
    assert torch.equal(got[1], mmcore.log_mel(x[1]))


# ---- autograd, torch.compile, torch.library


@pytest.mark.parametrize("name", ["ast", "vggish", "no log"])
def test_gradients(name: str) -> None:
    s = SETTINGS[name].replace(n_fft=64, win_length=50, hop_length=20, n_mels=6)
    x = speech(333, rows=2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda w: mmcore.log_mel(w, 16000, s, lengths=[333, 200]), (x,))
    with torch.no_grad():
        assert not mmcore.log_mel(x, 16000, s).requires_grad


@pytest.mark.parametrize("settings", [WHISPER, AST], ids=["whisper", "ast"])
def test_compiles_whole(settings: LogMelSettings) -> None:
    torch._dynamo.reset()

    def features(x: Tensor, lengths: Tensor | None) -> Tensor:
        return mmcore.log_mel(x, 16000, settings, lengths=lengths, num_frames=60) * 2

    compiled = torch.compile(features, fullgraph=True, backend="aot_eager")
    x, lengths = speech(9000, rows=2), torch.tensor([9000, 4000])
    assert torch.equal(compiled(x, lengths), features(x, lengths))
    x = speech(9000, rows=3)
    assert torch.equal(compiled(x, None), features(x, None))


def test_compiles_for_any_length() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(mmcore.log_mel, fullgraph=True, dynamic=True, backend="aot_eager")
    for samples in (9000, 9333, 16000):
        x = speech(samples)
        assert torch.equal(compiled(x), mmcore.log_mel(x))


def test_compiles_with_gradient() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: mmcore.log_mel(x, 16000, AST).sum(), fullgraph=True, backend="aot_eager"
    )
    x = speech(4000).requires_grad_()
    (got,) = torch.autograd.grad(compiled(x), x)
    (expected,) = torch.autograd.grad(mmcore.log_mel(x, 16000, AST).sum(), x)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("settings", [WHISPER, AST], ids=["whisper", "ast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(settings: LogMelSettings, dtype: torch.dtype) -> None:
    x = speech(4000, rows=2)
    for lengths, pad_to, num_frames in ((None, None, None), (torch.tensor([4000, 900]), 6000, 50)):
        arguments = (x, lengths, pad_to, num_frames, dtype, settings.spec)
        torch.library.opcheck(torch.ops.mmcore.log_mel.default, arguments)


def test_the_bare_op_refuses_a_gradient() -> None:
    x = speech(4000).requires_grad_()
    out = torch.ops.mmcore.log_mel(x, None, None, None, torch.float32, WHISPER.spec)
    with pytest.raises(NotImplementedError, match=r"mmcore\.log_mel of a waveform that requires one does"):
        out.sum().backward()


# ---- settings


def test_settings_are_values() -> None:
    for s in SETTINGS.values():
        assert LogMelSettings.from_spec(s.spec) == s
        for again in (pickle.loads(pickle.dumps(s)), copy.deepcopy(s), s.replace()):
            assert again == s
            assert hash(again) == hash(s)
            assert again.spec == s.spec
    assert AST != KALDI
    with pytest.raises(AttributeError):
        WHISPER.n_mels = 3  # type: ignore[misc]


def test_filters_and_windows() -> None:
    for s in SETTINGS.values():
        np.testing.assert_allclose(s.mel_filters(), _oracle_filters(s), atol=1e-12)
        np.testing.assert_allclose(s.window_weights(), _oracle_window(s), atol=1e-12)


def test_frame_times() -> None:
    assert WHISPER.frame_rate == 100
    torch.testing.assert_close(WHISPER.frame_centers(3), torch.tensor([0, 0.01, 0.02], dtype=torch.float64))
    torch.testing.assert_close(KALDI.frame_centers(2), torch.tensor([0.0125, 0.0225], dtype=torch.float64))
    whole = LogMelSettings.kaldi(snip_edges=False)
    torch.testing.assert_close(whole.frame_centers(2), torch.tensor([0.005, 0.015], dtype=torch.float64))
    # a click is loudest in the frame whose middle is nearest
    for s in (WHISPER, KALDI, whole):
        x = torch.zeros(16000)
        x[8320] = 1.0
        y = mmcore.log_mel(x, 16000, s.replace(dynamic_range=None, preemphasis=0.0))
        loudest = int((y.sum(0) if s.layout == "mel_time" else y.sum(1)).argmax())
        assert abs(s.frame_centers(100)[loudest] - 0.52) <= 0.005 + 1e-9


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"n_fft": 0}, ValueError, "n_fft: expected at least 1"),
        ({"n_fft": 1 << 15}, ValueError, "n_fft: expected at most 16384"),
        ({"n_fft": 399}, ValueError, "win_length: expected at most n_fft, 399, got 400"),
        ({"hop_length": 1.5}, TypeError, "hop_length: expected an int, got float"),
        ({"n_mels": True}, TypeError, "n_mels: expected an int, got bool"),
        ({"f_max": 8001.0}, ValueError, "f_min, f_max: .*8000"),
        ({"f_min": -1.0}, ValueError, "f_min, f_max"),
        ({"f_min": "0"}, TypeError, "f_min: expected a number, got str"),
        (
            {"mel_scale": "bark"},
            ValueError,
            "mel_scale: expected one of 'slaney', 'htk', 'kaldi', got 'bark'",
        ),
        ({"window": "kaiser"}, ValueError, "window: expected one of"),
        ({"power": 3}, ValueError, "power: expected one of 1, 2"),
        ({"log": "log2"}, ValueError, "log: expected one of"),
        ({"floor": 0.0}, ValueError, "floor: a logarithm needs"),
        ({"std": 0.0}, ValueError, "std: expected more than 0"),
        ({"mean": math.nan}, ValueError, "mean: expected a finite number"),
        ({"dynamic_range": 0.0}, ValueError, "dynamic_range"),
        ({"log": None}, ValueError, "dynamic_range: expected None, or more than 0 and a logarithm"),
        ({"remove_dc": 1}, TypeError, "remove_dc: expected a bool"),
    ],
)
def test_bad_settings(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        WHISPER.replace(**changes)


# ---- bad input

X = torch.zeros(2, 1600)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"waveform": [0.0] * 1600}, TypeError, "waveform: expected a tensor, got list"),
        ({"waveform": X.to(torch.int16)}, TypeError, r"torch.int16; scale it .* waveform\.float\(\) / 32768"),
        ({"waveform": X.bool()}, TypeError, "got torch.bool$"),
        ({"waveform": X.to(torch.complex64)}, TypeError, "got torch.complex64$"),
        ({"waveform": torch.tensor(1.0)}, ValueError, "expected shape .*samples.*0-dim"),
        ({"waveform": X[:, :0]}, ValueError, "waveform: 0 samples have no frame"),
        (
            {"waveform": X[:, :100]},
            ValueError,
            "waveform: 100 samples have no frame .* expected at least 160",
        ),
        ({"waveform": X[:, :399], "settings": AST}, ValueError, "399 samples .* expected at least 400"),
        (
            {"sample_rate": 44100},
            ValueError,
            "settings are for 16000 Hz, got 44100; decode with AudioDecoder",
        ),
        ({"settings": "whisper"}, TypeError, "settings: expected LogMelSettings, got str"),
        ({"lengths": [1, 2, 3]}, ValueError, r"lengths: expected shape \(2,\)"),
        ({"lengths": [1, 1601]}, ValueError, "lengths: item 1: expected 0 to 1600, got 1601"),
        ({"lengths": [-1, 2]}, ValueError, "lengths: item 0: expected 0 to 1600, got -1"),
        ({"lengths": [1.0, 2.0]}, TypeError, "lengths: item 0: expected an int, got float"),
        ({"lengths": 5}, TypeError, "lengths: expected an int64 tensor or a sequence of int, got int"),
        ({"lengths": torch.ones(2)}, TypeError, "lengths: expected an int64 tensor, got torch.float32"),
        ({"pad_to": 0}, ValueError, "pad_to: expected at least 1"),
        ({"pad_to": 1.0}, TypeError, "pad_to: expected an int or None, got float"),
        ({"num_frames": -1}, ValueError, "num_frames: expected at least 1"),
        ({"dtype": torch.int8}, TypeError, "dtype: expected float32, bfloat16, float16 or float64"),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mmcore.log_mel(**{"waveform": X, **arguments})


def test_frame_mask_refuses_floats() -> None:
    with pytest.raises(TypeError, match=r"lengths: expected an int64 tensor, got torch\.float32"):
        WHISPER.frame_mask(torch.ones(2), 3)
