"""The command as a program: exit codes, one-line errors, and the commands that report on mmcore itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import mmcore
from mmcore.sample import SampleClip


def python(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *args]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=os.environ | env, check=False
    )


def mmcore_process(*args: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "mmcore", *map(str, args), **env)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "notes.mp4"
    path.write_text("these are words, not pictures\n" * 50, encoding="utf-8")
    return path


def test_info_in_a_process(clip: SampleClip) -> None:
    result = mmcore_process("info", clip.path, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["video"][0]["num_frames"] == 60


def test_an_error_in_a_process(text_file: Path) -> None:
    result = mmcore_process("decode", text_file, "-o", text_file.with_name("out.pt"))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert str(text_file) in result.stderr
    assert result.stderr.count("\n") == 1
    debugged = mmcore_process("info", text_file, MMCORE_DEBUG="1")
    assert debugged.returncode == 1
    assert "Traceback" in debugged.stderr
    assert "DecodeError" in debugged.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_interrupt(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mmcore", "demo", "-o", str(tmp_path / "demo")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while process.poll() is None and "1" not in process.stdout.readline():
            time.sleep(0.01)  # the first step's headline: it is at work
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr


def test_without_the_extra() -> None:
    code = "import sys; sys.modules['rich'] = None; from mmcore.cli import main; main()"
    result = python("-c", code)
    assert result.returncode == 2
    assert "pip install 'mmcore[cli]'" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [("info",), ("decode", "-o", "out.pt")])
@pytest.mark.parametrize("kind", ["missing", "directory", "empty", "text"])
def test_bad_files(command: Any, kind: str, run: Any, text_file: Path, tmp_path: Path) -> None:
    path = {
        "missing": tmp_path / "none.mp4",
        "directory": tmp_path,
        "empty": tmp_path / "empty.mp4",
        "text": text_file,
    }[kind]
    (tmp_path / "empty.mp4").touch()
    result = run(command[0], path, *command[1:])
    assert result.exit_code == 1
    assert result.output.startswith(f"error: {path}")
    assert result.output.count("\n") == 1


def test_usage(run: Any) -> None:
    assert run("--version").output == f"mmcore {mmcore.__version__}\n"
    assert run("nonsense").exit_code == 2
    assert run("info").exit_code == 2
    for command in ("info", "decode", "demo", "bench", "env"):
        result = run(command, "--help")
        assert result.exit_code == 0
        assert "Usage" in result.output


def test_env(run: Any) -> None:
    facts = json.loads(run("env", "--json").output)
    assert facts["mmcore"] == json.loads(json.dumps(mmcore.build_info(), default=str))
    assert facts["packages"]["torch"]
    assert "libavcodec" in facts["ffmpeg"]
    assert facts["machine"]["mmcore threads"] == mmcore.get_num_threads()
    decoding = facts["gpu_decoding"]
    assert bool(decoding["NVDEC codecs"]) == ("cuda" in decoding["device types"])
    assert decoding["NVDEC"]
    shown = run("env")
    assert shown.exit_code == 0, shown.output
    assert facts["packages"]["av"] in shown.output


def test_bench_needs_the_source_tree(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mmcore.cli.bench

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        mmcore.cli.bench, "__file__", str(tmp_path / "a" / "b" / "c" / "bench.py"), raising=True
    )
    result = run("bench", "frames")
    assert result.exit_code == 2
    assert "source tree" in result.output


def test_bench_runs_the_suite_it_finds(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "bench"
    package.mkdir()
    (package / "__init__.py").write_text("def run(suite, **options): print(suite, sorted(options.items()))\n")
    (package / "bench_frames.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "bench", raising=False)
    result = run("bench", "decode", "--quick", "--plot", "x.png")
    sys.modules.pop("bench", None)
    assert result.exit_code == 0, result.output
    assert "decode [('clock', 'wall'), ('files', ()), ('json', None), ('plot'" in result.output
    assert "('quick', True)" in result.output


def test_demo(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmcore.cli.demo.ROUNDS", 1)
    result = run("demo", "--no-train", "-o", tmp_path / "demo")
    assert result.exit_code == 0, result.output
    assert "bit for bit those of step 2" in result.output
    assert "click at 0.500 s" in result.output
    assert "one, two, three, four, five, six; 22 byte tokens" in result.output
    assert "(80, 600)" in result.output
    assert sorted(p.name for p in (tmp_path / "demo").iterdir()) == ["demo.png", "sample.mp4"]
    with Image.open(tmp_path / "demo" / "demo.png") as image:
        assert min(image.size) > 500
        assert len(image.convert("RGB").resize((64, 64)).getcolors(4096)) > 500
