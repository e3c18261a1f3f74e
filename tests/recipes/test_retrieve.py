"""The recipe retrieve: data, model, training, the index on disk and its command."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mmcore
from mmcore.errors import DecodeError
from mmcore.models import save
from mmcore.recipes import retrieve
from mmcore.recipes.retrieve import training
from mmcore.recipes.retrieve.attributes import CHOICES, Attributes, split_combinations
from mmcore.recipes.retrieve.captions import Vocabulary, caption, partial_caption, vocabulary
from mmcore.recipes.retrieve.media import write_clips
from mmcore.recipes.retrieve.metrics import recall
from mmcore.recipes.retrieve.model import RetrievalModel
from mmcore.recipes.retrieve.pairs import MEL, Pairs, SoundPool
from mmcore.recipes.retrieve.sounds import SAMPLE_RATE, SOUNDS, synthesize_sounds

Index = retrieve.ClipIndex


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_model(seed: int = 0, **options: Any) -> RetrievalModel:
    torch.manual_seed(seed)
    return RetrievalModel.preset(vocabulary().words, width=32, dim=16, **options).eval()


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> retrieve.Retriever:
    return retrieve.load(save(small_model(), tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def pool() -> SoundPool:
    return SoundPool(2, 0, keep_waves=True)


@pytest.fixture(scope="module")
def pairs(pool: SoundPool) -> Pairs:
    return Pairs(split_combinations(0).test[:24], vocabulary(), pool)


@pytest.fixture(scope="module")
def media(pairs: Pairs, pool: SoundPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips of 2 s, one of 5 s, a sound alone and a video without sound."""
    folder = tmp_path_factory.mktemp("media")
    write_clips(folder, [pairs.draw(i, i) for i in range(3)], pool)
    waves = torch.cat(list(pool.waves[:3]), 0)[: 5 * SAMPLE_RATE]
    frames = torch.arange(60).view(-1, 1, 1, 1).expand(-1, 3, 48, 64).to(torch.uint8) * 4
    mmcore.encode(folder / "long.mp4", frames=frames, fps=12, audio=waves, sample_rate=SAMPLE_RATE)
    mmcore.encode(folder / "sound.wav", audio=pool.waves[5], sample_rate=SAMPLE_RATE)
    mmcore.encode(folder / "silent.mp4", frames=frames[:24], fps=12)
    return folder


# --- what there is to be found


def test_no_combination_is_in_two_parts() -> None:
    assert Attributes._fields == tuple(CHOICES)
    split = split_combinations(3, held_out=100)
    train, validation, test = map(set, split)
    assert (len(validation), len(test)) == (100, 100)
    assert not (train | validation) & test
    assert not train & validation
    every = math.prod(map(len, CHOICES.values()))
    assert len(train) == round((every - 200) / 2)
    # each single value has been seen
    assert all({a[i] for a in train} == set(values) for i, values in enumerate(CHOICES.values()))


def test_captions_say_all_attributes_in_known_words() -> None:
    words, rng = vocabulary(), random.Random(0)
    combinations = split_combinations(0).train
    for attributes in rng.sample(combinations, 300):
        whole, (part, kept) = caption(attributes, rng), partial_caption(attributes, rng, 0.5)
        for text in (whole, part):
            assert words.unknown(text) == [], text
            assert "{" not in text
            assert "  " not in text
            assert ",," not in text
        assert any(kept)
        assert kept[0] == ("something" not in part)  # the shape
    # two combinations that differ are never said alike
    said: dict[str, Attributes] = {}
    for attributes in rng.sample(combinations, 2000):
        assert said.setdefault(caption(attributes, rng), attributes) == attributes


def test_vocabulary_numbers_words() -> None:
    words = Vocabulary(["blue", "red"])
    ids, mask = words.encode(["Red, blue!", "red green red"])
    assert ids.tolist() == [[3, 2, 0], [3, 1, 3]]
    assert mask.tolist() == [[True, True, False], [True, True, True]]
    assert words.unknown("red green") == ["green"]
    with pytest.raises(ValueError, match="expected words, got ' ,'"):
        words.encode(["red", " ,"])


def test_sounds_differ_and_repeat() -> None:
    waves = synthesize_sounds(SOUNDS, 1.0, torch.Generator().manual_seed(0))
    assert waves.shape == (8, SAMPLE_RATE)
    assert waves.abs().max() <= 1
    assert torch.equal(waves, synthesize_sounds(SOUNDS, 1.0, torch.Generator().manual_seed(0)))
    pitch = mmcore.log_mel(waves, SAMPLE_RATE, MEL).argmax(-1).float()  # loudest mel of each frame
    rising, falling, hum, whistle = (pitch[SOUNDS.index(s)] for s in SOUNDS[:4])
    assert rising[-10:].mean() > rising[:10].mean() + 3
    assert falling[-10:].mean() < falling[:10].mean() - 3
    assert whistle.mean() > hum.mean() + 10
    with pytest.raises(ValueError, match="sound: expected one of rising tone"):
        synthesize_sounds(["barking"], 1.0)


def test_pairs_depend_on_the_seed_alone(pairs: Pairs, pool: SoundPool) -> None:
    assert pairs.draw(4, 7) == pairs.draw(4, 7) != pairs.draw(4, 8)
    first, second = (pairs.collate([pairs.draw(i, i) for i in range(4)]) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    assert first.video.shape == (4, 8, 3, 32, 32)
    assert first.sound.shape == (4, 100, 40)
    assert first.attributes[0].tolist() == pairs.combinations[0].numbers()
    shuffled = Pairs(pairs.combinations, pairs.vocabulary, pool, shuffled=True)
    said = [shuffled.draw(i, i).caption == pairs.draw(i, i).caption for i in range(len(pairs))]
    assert sum(said) < 5


# --- the model


def test_recall_counts_ranks() -> None:
    eye = torch.eye(8)
    assert recall(eye, eye) == {"R@1": 1.0, "R@5": 1.0, "MdR": 1.0}
    assert recall(torch.ones(8, 2), torch.ones(8, 2)) == {"R@1": 0.0, "R@5": 0.0, "MdR": 8.0}
    targets = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    queries = torch.tensor(
        [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    )  # the second finds the first one before its own
    assert recall(queries, targets) == {"R@1": 2 / 3, "R@5": 1.0, "MdR": 1.0}


def test_what_is_missing_is_not_read(pairs: Pairs) -> None:
    model = small_model()
    batch = pairs.collate([pairs.draw(i, i) for i in range(4)])
    with torch.inference_mode():
        views = model.views(batch)
        features = model.encode({"video": batch.video, "audio": batch.sound * torch.nan})
        seen = model.embed(features, torch.tensor([[True, False]] * 4))
        one = model.encode({"video": batch.video[:, batch.picture[0], None]})
    torch.testing.assert_close(seen, views["video"])
    torch.testing.assert_close(model.embed(one)[0], views["picture"][0])
    for view in views.values():
        torch.testing.assert_close(view.norm(dim=1), torch.ones(4))
    assert (views["clip"] - views["video"]).abs().max() > 1e-3


def test_losses_fall_and_eager_agrees(pairs: Pairs) -> None:
    batch = pairs.collate([pairs.draw(i, i) for i in range(8)])

    def curve() -> list[float]:
        model = small_model(attribute_weight=0.2).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
        totals = []
        for _ in range(8):
            total, losses = model.losses(batch)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            totals.append(total.item())
        assert list(losses) == ["clip", "video", "sound", "picture", *(f"name_{name}" for name in CHOICES)]
        return totals

    fused = curve()
    with mmcore.backend("reference"):
        eager = curve()
    assert fused[-1] < 0.85 * fused[0]
    assert fused == pytest.approx(eager, rel=2e-3)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    size = dataclasses.replace(training._SIZES["smallest"], steps=4, batch_size=16, variants=2, files=2)
    monkeypatch.setitem(training._SIZES, "smallest", size)
    monkeypatch.setattr(training, "split_combinations", partial(split_combinations, held_out=24))


@pytest.mark.usefixtures("tiny")
def test_train_writes_all_that_load_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = retrieve.train(tmp_path / "run", size="smallest", progress=False)
    assert [len(result.history.steps), result.report] == [4, tmp_path / "run/report.html"]
    assert {"clip", "video", "sound", "picture"} < set(result.history.steps[0].losses)
    assert "data:image/png" in result.report.read_text()
    assert json.loads((tmp_path / "run/metrics.json").read_text())["metrics"] == result.metrics
    # a clip embeds the same as a file as it does in memory
    assert result.metrics["files/cosine_to_memory"] > 0.99
    # a finished training that is resumed has nothing left to do, and ends in the same place
    monkeypatch.setattr(training, "write_report", lambda folder, *_, **__: folder / "report.html")
    again = retrieve.train(tmp_path / "run", size="smallest", progress=False, resume=True)
    assert again.metrics == pytest.approx(result.metrics)
    shutil.move(tmp_path / "run", tmp_path / "moved")
    found = retrieve.load(tmp_path / "moved").embed_text(["a red circle", "a blue ring"])
    assert found.shape == (2, 64)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))


def test_train_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size: expected one of full, smallest, got 'huge'"):
        retrieve.train(tmp_path, size="huge")
    with pytest.raises(ValueError, match="backend: expected fused or eager"):
        retrieve.train(tmp_path, backend="fast")


def test_load_refuses_other_models(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        retrieve.load(tmp_path)
    save(mmcore.models.CNN(8, widths=(4,)), tmp_path / "cnn")
    with pytest.raises(mmcore.MMCoreError, match="expected a model of the retrieve recipe, got CNN"):
        retrieve.load(tmp_path / "cnn")


# --- embeddings of files


def test_windows_cut_long_files(retriever: retrieve.Retriever, media: Path) -> None:
    windows = list(retriever.windows(media / "long.mp4"))
    assert [(round(w.start, 1), round(w.stop, 1)) for w in windows] == [(0, 2), (2, 4), (3, 5)]
    assert all(w.modalities == ("video", "audio") for w in windows)
    half = list(retriever.windows(media / "long.mp4", hop_seconds=0.5, start=1, stop=4))
    assert [w.start for w in half] == [1.0, 1.5, 2.0]
    torch.testing.assert_close(half[2].embedding, windows[1].embedding)
    assert [w.modalities for w in retriever.windows(media / "sound.wav")] == [("audio",)]
    assert [w.modalities for w in retriever.windows(media / "silent.mp4")] == [("video",)]
    with pytest.raises(ValueError, match="window_seconds: expected more than 0"):
        list(retriever.windows(media / "long.mp4", window_seconds=0))


def test_files_embed_as_tensors_do(
    retriever: retrieve.Retriever, pairs: Pairs, pool: SoundPool, media: Path, tmp_path: Path
) -> None:
    pytest.importorskip("PIL")
    from PIL import Image

    sound = retriever.embed_sound(pool.waves[5], SAMPLE_RATE)
    assert sound @ retriever.embed_sound(media / "sound.wav") > 0.999
    assert sound @ retriever.embed_clip(media / "sound.wav") > 0.999
    stereo = mmcore.AudioSamples(pool.waves[5].expand(2, -1), 0.0, 2.0, SAMPLE_RATE)
    torch.testing.assert_close(retriever.embed_sound(stereo), sound)

    picture = pairs.collate([pairs.draw(0, 0)]).video[0, 3]
    large = picture.repeat_interleave(4, 1).repeat_interleave(4, 2)
    pixels = Image.fromarray(large.permute(1, 2, 0).numpy())
    pixels.save(tmp_path / "a.png")
    first, *others = (retriever.embed_picture(p) for p in (large, pixels, tmp_path / "a.png"))
    for other in others:
        torch.testing.assert_close(first, other)
    assert first @ retriever.embed_picture(picture) > 0.98  # blurred a little by resizing


def test_bad_queries_are_refused(retriever: retrieve.Retriever, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sample_rate: expected 16000, got 8000"):
        retriever.embed_sound(torch.zeros(8000), 8000)
    with pytest.raises(TypeError, match="sound: expected a path"):
        retriever.embed_sound([0.0])
    with pytest.raises(ValueError, match=r"picture: expected uint8 \(3, H, W\)"):
        retriever.embed_picture(torch.zeros(3, 8, 8))
    with pytest.raises(TypeError, match="picture: expected a path"):
        retriever.embed_picture(3)
    (tmp_path / "no.png").write_bytes(b"no picture")
    with pytest.raises(DecodeError, match=r"no\.png: cannot be read as a picture"):
        retriever.embed_picture(tmp_path / "no.png")
    with pytest.raises(DecodeError, match=r"missing\.mp4"):
        retriever.embed_clip(tmp_path / "missing.mp4")


# --- nearest


def unit(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("chunk_rows", [1, 7, 64, 1000])
def test_exact_search_is_exact(chunk_rows: int) -> None:
    data, queries = unit(101, 24), unit(5, 24, 1)
    data[[40, 90, 3]] = data[17]  # ties, in several chunks
    queries[0] = data[17]
    scores, rows = retrieve.exact_nearest(queries, data, 9, chunk_rows=chunk_rows)
    products = queries.astype(np.float64) @ data.T.astype(np.float64)
    assert rows[0, :4].tolist() == [3, 17, 40, 90]
    for q in range(5):
        expected = sorted(range(101), key=lambda i: (-products[q, i].round(12), i))[:9]
        assert rows[q].tolist() == expected
    np.testing.assert_allclose(scores, np.take_along_axis(products, rows, 1), rtol=1e-6)
    assert retrieve.exact_nearest(queries, data, 500)[1].shape == (5, 101)
    assert retrieve.exact_nearest(queries, data[:0], 3)[1].shape == (5, 0)


def test_approximate_search_finds_nearly_all(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    data, queries = unit(1500, 16), unit(40, 16, 1)
    graph = retrieve.ApproximateNeighbors.build(data[:1000])
    graph.add(data[1000:])
    _, exact = retrieve.exact_nearest(queries, data, 10)
    _, found = graph.search(queries, 10)
    shared = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, found, strict=True)])
    assert shared > 0.95
    graph.save(tmp_path / "graph")
    again = retrieve.ApproximateNeighbors.load(tmp_path / "graph")
    np.testing.assert_array_equal(again.search(queries, 10)[1], found)
    (tmp_path / "graph").write_bytes(b"no graph")
    with pytest.raises(mmcore.MMCoreError, match="no graph of neighbours"):
        retrieve.ApproximateNeighbors.load(tmp_path / "graph")


# --- the index


@pytest.fixture(scope="module")
def saved(retriever: retrieve.Retriever, media: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    index = Index(retriever)
    index.add([*sorted(media.glob("*.mp4")), media / "sound.wav"], metadata=lambda path: {"n": len(path)})
    index.save(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the saved index, to be spoiled."""
    return Path(shutil.copytree(saved, tmp_path / "index"))


def test_every_clip_finds_itself(retriever: retrieve.Retriever, saved: Path, media: Path) -> None:
    index = Index.load(saved, retriever)
    assert isinstance(index.embeddings, np.memmap)
    assert (len(index), len(index.paths)) == (8, 6)
    for file in ("clip-000.mp4", "clip-002.mp4", "silent.mp4", "sound.wav"):
        best = index.search(clip=media / file, k=2)[0]
        assert (best.path, best.start) == (str(media / file), 0.0)
        assert best.score == pytest.approx(1, abs=1e-5)
        assert best.metadata["n"] == len(best.path)
    text = index.search("a red circle", k=3)
    expected = index.embeddings @ retriever.embed_text("a red circle").numpy()
    assert [hit.score for hit in text] == pytest.approx(sorted(expected)[::-1][:3], abs=1e-6)
    both = index.search("a red circle", clip=media / "clip-001.mp4", k=8)
    assert len(both) == 8
    assert both[0].score < 1


def test_index_follows_the_files(retriever: retrieve.Retriever, media: Path, tmp_path: Path) -> None:
    clip = tmp_path / "a.mp4"
    shutil.copy(media / "clip-000.mp4", clip)
    index = Index(retriever)
    done: list[str] = []
    assert index.add([clip, media / "long.mp4", clip], on_file=done.append).windows == 4
    assert done == [str(clip), str(media / "long.mp4")]
    assert index.add([clip, media / "long.mp4"]).unchanged == done
    index.save(tmp_path / "index")
    shutil.copy(media / "clip-001.mp4", clip)
    index = Index.load(tmp_path / "index", retriever)
    changes = index.add([clip, media / "long.mp4", media / "silent.mp4"], on_error="raise")
    assert (changes.replaced, changes.added) == ([str(clip)], [str(media / "silent.mp4")])
    assert index.search(clip=media / "clip-001.mp4", k=1)[0].path == str(clip)
    assert index.add([media / "long.mp4"], window_seconds=5).replaced == [str(media / "long.mp4")]
    assert index.remove([media / "long.mp4"]) == 1
    assert index.paths == [str(clip), str(media / "silent.mp4")]
    with pytest.raises(ValueError, match=r"long\.mp4: is not in the index"):
        index.remove([media / "long.mp4", clip])
    assert len(index) == 2
    index.save(tmp_path / "index")
    assert len(list((tmp_path / "index").iterdir())) == 2  # nothing of the old one is left
    assert len(Index.load(tmp_path / "index", retriever)) == 2


def test_bad_files_are_skipped_or_raise(retriever: retrieve.Retriever, media: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no media")
    index = Index(retriever)
    files = [media / "silent.mp4", tmp_path / "bad.mp4", tmp_path / "gone.mp4", media / "sound.wav"]
    changes = index.add(files, on_error="skip")
    assert sorted(changes.errors) == [str(tmp_path / "bad.mp4"), str(tmp_path / "gone.mp4")]
    assert index.paths == [str(media / "silent.mp4"), str(media / "sound.wav")]
    index = Index(retriever)
    with pytest.raises(DecodeError, match=r"bad\.mp4"):
        index.add(files)
    assert index.paths == [str(media / "silent.mp4")]


def test_saving_is_all_or_nothing(
    retriever: retrieve.Retriever, folder: Path, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    index = Index.load(folder, retriever)
    index.remove([media / "long.mp4"])
    write = Path.write_text

    def full_disk(self: Path, *args: Any, **kwargs: Any) -> int:
        write(self, "half")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full_disk)
        with pytest.raises(OSError, match="no space left"):
            index.save(folder)
    kept = {path.name: path.read_bytes() for path in folder.iterdir() if path.name in before}
    assert kept == before
    assert not list(folder.glob(".*"))
    assert len(Index.load(folder, retriever)) == 8
    index.save(folder)
    assert len(Index.load(folder, retriever)) == 5


def spoil_listing(folder: Path, **changes: Any) -> None:
    path = folder / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_damage_is_a_typed_error(retriever: retrieve.Retriever, folder: Path, tmp_path: Path) -> None:
    listing, data = folder / "index.json", next(folder.glob("*.npy"))
    text, content = listing.read_text(), data.read_bytes()

    def refused(match: str, **options: Any) -> None:
        with pytest.raises(retrieve.ClipIndexError, match=match):
            Index.load(folder, retriever, **options)
        listing.write_text(text)
        data.write_bytes(content)

    data.write_bytes(content[:-8])
    refused("damaged")
    data.write_bytes(content[:-8])
    refused("cannot be read as an array", verify=False)
    data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused("damaged, its content is not what was written")
    data.unlink()
    refused("is missing, though the index names it")
    listing.write_text(text[: len(text) // 2])
    refused("damaged, expected JSON")
    listing.write_text("[]")
    refused("expected the list")
    spoil_listing(folder, version=2)
    refused("of version 2, this mmcore reads 1")
    spoil_listing(folder, entries=json.loads(text)["entries"][1:])
    refused("8 embeddings, but 7 entries")
    spoil_listing(folder, entries=[{"path": 3}] * 8)
    refused("entry 0: 'path' is missing or of a wrong type")
    spoil_listing(folder, embeddings="../" + data.name)
    refused("expected the name of a file beside it")
    spoil_listing(folder, shape=[8, 17])
    refused("expected float32 of shape")
    listing.unlink()
    refused("no index there")
    with pytest.raises(retrieve.ClipIndexError, match="expected an index's folder, got a file"):
        Index.load(listing, retriever)


def test_another_model_is_refused(retriever: retrieve.Retriever, saved: Path, tmp_path: Path) -> None:
    assert Index.made_by(saved) == {
        "fingerprint": retriever.fingerprint,
        "folder": str(retriever.folder.absolute()),
    }
    other = retrieve.load(save(small_model(seed=1), tmp_path))
    with pytest.raises(retrieve.ModelMismatchError, match="index the files again"):
        Index.load(saved, other)


def test_approximate_index(retriever: retrieve.Retriever, folder: Path, media: Path) -> None:
    pytest.importorskip("faiss")
    index = Index.load(folder, retriever)
    with pytest.raises(ValueError, match=r"needs link_neighbors\(\) first"):
        index.search("a ring", method="approximate")
    index.link_neighbors()
    index.save(folder)
    index = Index.load(folder, retriever)
    assert index.has_neighbors
    exact = index.search("a ring", k=5, method="exact")
    assert index.search("a ring", k=5, method="approximate") == exact == index.search("a ring", k=5)
    graph = next(folder.glob("*.faiss"))
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(retrieve.ClipIndexError, match=r"\.faiss: damaged"):
        Index.load(folder, retriever)
    index.remove([media / "sound.wav"])
    assert not index.has_neighbors


def test_bad_searches_are_refused(retriever: retrieve.Retriever, saved: Path) -> None:
    index = Index.load(saved, retriever)
    with pytest.raises(ValueError, match="expected a query"):
        index.search()
    with pytest.raises(ValueError, match="k: expected 1 or more"):
        index.search("a ring", k=0)
    with pytest.raises(ValueError, match="method: expected one of auto"):
        index.search("a ring", method="fast")
    with pytest.raises(ValueError, match=r"expected one embedding \(16,\)"):
        index.search(embedding=torch.zeros(3))
    with pytest.raises(ValueError, match="finite numbers"):
        index.search(embedding=torch.zeros(16))
    assert Index(retriever).search("a ring") == []


# --- the command


def test_command(
    retriever: retrieve.Retriever, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from mmcore.cli.app import app

    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(media)
    (media / "bad.mkv").write_bytes(b"no media")

    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, ["retrieve", *map(str, arguments)])

    index = tmp_path / "index"
    made = run("index", media, "-o", index, "--model", retriever.folder)
    assert made.exit_code == 0, made.output
    assert "8 pieces of 6 files; 6 files new, 0 changed, 0 as they were, 1 left out" in made.output
    assert "warning: left out" in made.output
    assert "6 as they were" in run("index", media, "-o", index).output

    found = run("search", "a large red circle", "--index", index, "-k", "2")
    assert found.exit_code == 0, found.output
    assert "a large red circle" in found.output
    assert "│ 2 │" in found.output
    assert "│ 3 │" not in found.output
    best = run("search", "--clip", media / "clip-001.mp4", "-i", index, "-k", "1").output
    assert "1.000" in best
    assert "clip-001.mp4" in best.split("1.000")[1]
    assert "sound.wav" in run("search", "--sound", media / "sound.wav", "-i", index, "-k", "1").output
    assert "does not know: flubber" in run("search", "a flubber", "-i", index).output

    for arguments, message in (
        (("search", "-i", index), "give a text"),
        (("search", "a ring", "-i", tmp_path / "none"), "no index there"),
        (("index", media, "-o", tmp_path / "new"), "a new index needs a model"),
        (("search", "--picture", "none.png", "-i", index), "cannot be read as a picture"),
    ):
        result = run(*arguments)
        assert result.exit_code != 0
        assert message in result.output
