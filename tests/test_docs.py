"""Every Python snippet of the README and the documentation runs, in order, beside a ``sample.mp4``."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmcore
from mmcore.sample import write_sample

ROOT = Path(__file__).parents[1]
PAGES = [p for p in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if p.is_file()]
SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_sample(tmp_path_factory.mktemp("docs") / "sample.mp4", seconds=4).path)


@pytest.fixture
def threads() -> Iterator[None]:
    before = mmcore.get_num_threads()
    yield
    mmcore.set_num_threads(before)


@pytest.mark.skipif(not PAGES, reason="the documentation is in the source tree only")
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
@pytest.mark.usefixtures("threads")
def test_snippets_run(page: Path, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page.read_text(encoding="utf-8")
    shutil.copy(sample, tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for match in SNIPPET.finditer(text):
        # empty lines in front give errors the line numbers of the page
        code = "\n" * text.count("\n", 0, match.start(1)) + match[1]
        exec(compile(code, str(page), "exec"), names)


@pytest.mark.skipif(not PAGES, reason="the documentation is in the source tree only")
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
