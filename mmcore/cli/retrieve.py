"""``mmcore retrieve``: an index of media files, and what is like a text, picture, sound or clip in it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec

import typer

from mmcore.cli.render import console, fail, guarded, table, warn

if TYPE_CHECKING:
    from rich.progress import Progress

    from mmcore.recipes.retrieve import Hit, Retriever

__all__ = ["retrieve"]

P = ParamSpec("P")

retrieve = typer.Typer(
    name="retrieve",
    help="Find videos by text, picture, sound or clip, with a model that the recipe retrieve trained.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_VIDEO = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".mpeg", ".flv", ".ogv")
_AUDIO = (".wav", ".flac", ".mp3", ".m4a", ".mka", ".ogg", ".opus")
_LARGE = 200_000
"""Pieces from which on an exact search takes several milliseconds."""


def index(
    sources: Annotated[
        list[Path], typer.Argument(help="Media files, or folders to search for them.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder of the index; one that is there is extended."),
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            "-m",
            help="Folder that `mmcore train retrieve` wrote; of an index, its own by default.",
        ),
    ] = None,
    window: Annotated[
        float, typer.Option(help="Seconds of a piece into which longer files are cut.", show_default=True)
    ] = 2.0,
    hop: Annotated[
        float | None, typer.Option(help="Seconds from one piece to the next; by default they touch.")
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Forget what the index holds.")] = False,
    approximate: Annotated[
        bool | None,
        typer.Option(
            "--approximate/--exact",
            help="Link neighbours for approximate search; by default from 200,000 pieces on. Needs faiss.",
        ),
    ] = None,
) -> None:
    """Embed media files and keep the embeddings in an index on disk.

    Files that the index has already are embedded again only if they have changed.
    """
    from mmcore.recipes.retrieve import ClipIndex
    from mmcore.recipes.retrieve.nearest import faiss_installed

    files = _media_files(sources)
    exists = (output / "index.json").exists() and not rebuild
    if model is None and not exists:
        raise typer.BadParameter("a new index needs a model", param_hint="--model")
    retriever = _load_model(model, output)
    found = ClipIndex.load(output, retriever) if exists else ClipIndex(retriever)
    began = time.perf_counter()
    with _progress() as bar:
        task = bar.add_task("embedding", total=len(files))
        changes = found.add(
            files,
            window_seconds=window,
            hop_seconds=hop,
            on_error="skip",
            on_file=lambda _: bar.advance(task),
        )
    for path, error in changes.errors.items():
        warn(f"left out: {error}" if path in str(error) else f"left out: {path}: {error}")
    if not len(found):
        fail("none of the files could be embedded, so that there is nothing to keep")
    large = len(found) >= _LARGE and faiss_installed()
    if approximate or (approximate is None and large and not found.has_neighbors):
        found.link_neighbors()
    found.save(output)
    seconds = time.perf_counter() - began
    console().print(
        f"{output}: {len(found)} pieces of {len(found.paths)} files; {len(changes.added)} files new,"
        f" {len(changes.replaced)} changed, {len(changes.unchanged)} as they were,"
        f" {len(changes.errors)} left out; {seconds:.1f} s",
        markup=False,
    )


def search(
    text: Annotated[
        str | None, typer.Argument(help="What to look for, in words.", show_default=False)
    ] = None,
    index: Annotated[
        Path, typer.Option("--index", "-i", help="Folder that `mmcore retrieve index` wrote.")
    ] = Path("index"),
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Look for what looks like this picture.")
    ] = None,
    sound: Annotated[
        Path | None, typer.Option("--sound", help="Look for what sounds like this file.")
    ] = None,
    clip: Annotated[
        Path | None, typer.Option("--clip", help="Look for what looks and sounds like this file.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many to show.")] = 10,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Folder of the model, if it has moved.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare with every piece, even if neighbours are linked.")
    ] = False,
) -> None:
    """Show what in an index is most like a text, a picture, a sound, a clip, or several of them together."""
    if text is None and picture is None and sound is None and clip is None:
        raise typer.BadParameter("give a text, --picture, --sound or --clip")
    from mmcore.recipes.retrieve import ClipIndex

    retriever = _load_model(model, index)
    found = ClipIndex.load(index, retriever)
    unknown = [] if text is None else retriever.unknown_words(text)
    if unknown:
        warn(f"words that the model does not know: {', '.join(unknown)}")
    began = time.perf_counter()
    hits = found.search(
        text, picture=picture, sound=sound, clip=clip, k=k, method="exact" if exact else "auto"
    )
    seconds = time.perf_counter() - began
    given = [text, *(source.name for source in (picture, sound, clip) if source is not None)]
    _show(
        " + ".join(part for part in given if part is not None), hits, f"{len(found)} pieces, {seconds:.3f} s"
    )


def _show(query: str, hits: list[Hit], footer: str) -> None:
    from rich.markup import escape
    from rich.text import Text

    shown = table("", "cosine", "file", "seconds", "has", title=escape(query))
    for rank, hit in enumerate(hits, 1):
        path = Path(hit.path)
        here = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        shown.add_row(
            str(rank),
            f"{hit.score:.3f}",
            Text(str(here)),
            f"{hit.start:.1f}–{hit.stop:.1f}",
            ", ".join(hit.metadata.get("modalities", ())),
        )
    console().print(shown)
    console(stderr=True).print(footer, style="dim", markup=False)


def _load_model(model: Path | None, folder: Path) -> Retriever:
    from mmcore.recipes.retrieve import ClipIndex, load

    if model is not None:
        return load(model)
    made_by = ClipIndex.made_by(folder)
    try:
        return load(made_by["folder"])
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; the index's model has moved: say where with --model") from error


def _media_files(sources: Iterable[Path]) -> list[Path]:
    files: list[Path] = []
    for source in sources:
        if not source.is_dir():
            files.append(source)
            continue
        found = sorted(p for p in source.rglob("*") if p.suffix.lower() in _VIDEO + _AUDIO and p.is_file())
        if not found:
            warn(f"{source}: holds no file with the suffix of a media file")
        files += found
    if not files:
        fail("no files to embed")
    return files


def _progress() -> Progress:
    """Progress bar on stderr, on a terminal only."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    c = console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=c, transient=True, disable=not c.is_terminal)


def _with_packages(command: Callable[P, None]) -> Callable[P, None]:
    """Turn the error of a package that is not installed into one line on stderr."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except ImportError as error:
            fail(str(error))

    return wrapper


for _command in (index, search):
    retrieve.command()(guarded(_with_packages(_command)))
