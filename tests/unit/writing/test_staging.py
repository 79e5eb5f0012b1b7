from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from threading import Event, Thread

import pytest

from dyce_export.writing import exchange
from dyce_export.writing.staging import check_destination, staged
from dyce_runtime.errors import DestinationError


def write(folder: Path, text: str = "new") -> None:
    (folder / "manifest.json").write_text(text)
    (folder / "segments").mkdir()
    (folder / "segments" / "segment_00.onnx").write_bytes(b"weights")


def stage(destination: Path, *, force: bool = False, error: BaseException | None = None) -> None:
    """Write a bundle, and raise ``error`` when it is almost done."""
    with staged(destination, force=force) as folder:
        write(folder)
        if error:
            raise error


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A bundle that stands at the destination."""
    destination = tmp_path / "model.dyce"
    destination.mkdir()
    write(destination, "old")
    (destination / "only_in_the_old_one").touch()
    return destination


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that cannot exchange two names at once."""
    monkeypatch.setattr(exchange, "_renameat2", lambda: None)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_destination_appears_complete_or_not_at_all(tmp_path: Path):
    destination = tmp_path / "model.dyce"
    with staged(destination, force=False) as folder:
        write(folder)
        assert folder.parent == tmp_path, "moving is only safe on the same disk"
        assert not destination.exists()
    assert names(tmp_path) == ["model.dyce"]
    assert names(destination) == ["manifest.json", "segments"]
    assert destination.stat().st_mode & 0o777 == 0o755


def test_folders_on_the_way_are_made(tmp_path: Path):
    stage(tmp_path / "a" / "b" / "model.dyce")
    assert names(tmp_path / "a" / "b") == ["model.dyce"]


def test_an_empty_folder_is_no_obstacle(tmp_path: Path):
    destination = tmp_path / "model.dyce"
    destination.mkdir()
    stage(destination)
    assert names(tmp_path) == ["model.dyce"]
    assert (destination / "manifest.json").read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_if_the_block_raises(tmp_path: Path, error):
    with pytest.raises(error):
        stage(tmp_path / "model.dyce", error=error())
    assert names(tmp_path) == []


# --- something stands there already ----------------------------------------------------------------------------------


def test_a_bundle_is_not_replaced_without_force(old: Path):
    with pytest.raises(DestinationError, match="already exists") as caught:
        stage(old)
    assert "--force" in caught.value.hint
    assert names(old.parent) == ["model.dyce"]
    assert (old / "manifest.json").read_text() == "old"


def test_a_bundle_that_another_process_wrote_meanwhile_is_not_replaced_without_force(tmp_path: Path):
    destination = tmp_path / "model.dyce"

    def write_both() -> None:
        with staged(destination, force=False) as folder:
            write(folder)
            stage(destination)

    with pytest.raises(DestinationError, match="already exists"):
        write_both()
    assert names(tmp_path) == ["model.dyce"]


def test_force_replaces_a_bundle_as_a_whole(old: Path):
    with staged(old, force=True) as folder:
        write(folder)
        assert (old / "manifest.json").read_text() == "old", "the old one stays until the new one is complete"
    assert names(old.parent) == ["model.dyce"]
    assert names(old) == ["manifest.json", "segments"]
    assert (old / "manifest.json").read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_old_bundle_stays_if_the_block_raises(old: Path, error):
    with pytest.raises(error):
        stage(old, force=True, error=error())
    assert names(old.parent) == ["model.dyce"]
    assert (old / "manifest.json").read_text() == "old"
    assert (old / "only_in_the_old_one").exists()


@pytest.mark.usefixtures("no_exchange")
def test_the_old_bundle_comes_back_if_the_new_one_cannot_be_moved(old: Path, monkeypatch: pytest.MonkeyPatch):
    replace = os.replace

    def fails_for_the_new_one(source: Path, destination: Path) -> None:
        if destination == old and not Path(source).name.endswith(".old"):
            raise OSError(errno.EIO, "broken disk")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", fails_for_the_new_one)
    with pytest.raises(OSError, match="broken disk"):
        stage(old, force=True)
    assert names(old.parent) == ["model.dyce"]
    assert (old / "manifest.json").read_text() == "old"


def test_at_every_instant_the_old_or_the_new_one_stands_there(old: Path):
    """Looked at by another thread while bundles are replaced all the time."""
    stop, seen, missing = Event(), set(), 0

    def look() -> None:
        nonlocal missing
        while not stop.is_set():
            try:
                seen.add((old / "manifest.json").read_text())
            except FileNotFoundError:
                missing += 1

    looking = Thread(target=look)
    looking.start()
    for turn in range(200):
        with staged(old, force=True) as folder:
            write(folder, f"{turn}")
    stop.set()
    looking.join()
    assert missing == 0
    assert len(seen) > 1
    assert names(old.parent) == ["model.dyce"]


@pytest.mark.usefixtures("no_exchange")
def test_without_an_exchange_bundles_are_replaced_all_the_same(old: Path):
    stage(old, force=True)
    assert names(old.parent) == ["model.dyce"]
    assert (old / "manifest.json").read_text() == "new"


def test_of_two_that_replace_a_bundle_at_once_the_second_is_refused(old: Path):
    with staged(old, force=True) as folder:
        write(folder)
        with pytest.raises(DestinationError, match="another command writes in"):
            stage(old, force=True)
    assert (old / "manifest.json").read_text() == "new"


def test_what_a_killed_command_has_left_is_removed_by_the_next_and_nothing_else(tmp_path: Path):
    destination = tmp_path / "a[b]*.dyce"
    code = (
        "import os, signal, sys; from pathlib import Path; from dyce_export.writing.staging import staged\n"
        "with staged(Path(sys.argv[1]), force=False) as folder:\n"
        "    (folder / 'half').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(destination)], check=False)
    (left,) = tmp_path.iterdir()
    mine = tmp_path / ".a[b]*.dyce.mine"
    mine.mkdir()
    with staged(tmp_path / "another.dyce", force=False) as folder:
        write(folder)
    assert left.exists()
    stage(destination)
    assert names(tmp_path) == sorted([mine.name, destination.name, "another.dyce"])


def test_force_does_not_replace_what_is_no_bundle(tmp_path: Path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").touch()
    with pytest.raises(DestinationError, match="is not a bundle, so --force does not replace it"):
        check_destination(photos, force=True)
    assert names(photos) == ["cat.jpg"]


@pytest.mark.parametrize("force", [False, True])
def test_a_file_is_never_replaced(tmp_path: Path, force):
    file = tmp_path / "model.dyce"
    file.write_text("mine")
    with pytest.raises(DestinationError):
        check_destination(file, force=force)
    assert file.read_text() == "mine"


@pytest.mark.parametrize("force", [False, True])
def test_a_dangling_link_is_never_replaced(tmp_path: Path, force):
    link = tmp_path / "model.dyce"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(DestinationError):
        check_destination(link, force=force)


def test_what_a_link_points_to_survives_a_replacement(old: Path):
    link = old.parent / "latest.dyce"
    link.symlink_to(old)
    stage(link, force=True)
    assert (link / "manifest.json").read_text() == "new"
    assert (old / "manifest.json").read_text() == "old"


# --- disks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_and_nothing_is_left(tmp_path: Path, code):
    with pytest.raises(DestinationError, match="is full; nothing was written"):
        stage(tmp_path / "model.dyce", error=OSError(code, os.strerror(code)))
    assert names(tmp_path) == []


def test_an_old_bundle_survives_a_full_disk(old: Path):
    with pytest.raises(DestinationError):
        stage(old, force=True, error=OSError(errno.ENOSPC, "no space left"))
    assert names(old.parent) == ["model.dyce"]
    assert (old / "manifest.json").read_text() == "old"


def test_another_operating_system_error_is_not_called_a_full_disk(tmp_path: Path):
    with pytest.raises(OSError, match="strange"):
        stage(tmp_path / "model.dyce", error=OSError(errno.EIO, "strange"))
    assert names(tmp_path) == []


@pytest.mark.usefixtures("no_exchange")
@pytest.mark.parametrize("failures", [1, 2], ids=["moving in", "moving in and putting back"])
def test_the_old_bundle_is_never_lost(old: Path, monkeypatch: pytest.MonkeyPatch, failures: int):
    real, left = os.replace, [failures]

    def replace(source: Path, destination: Path) -> None:
        if Path(destination) == old and left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "the disk is gone")
        real(source, destination)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError if failures == 1 else DestinationError) as caught:
        stage(old, force=True)
    if failures == 1:
        assert names(old.parent) == ["model.dyce"]
        assert (old / "manifest.json").read_text() == "old"
    else:
        (kept,) = old.parent.glob(".model.dyce.staged-*.old")
        assert (kept / "manifest.json").read_text() == "old"
        assert str(kept) in getattr(caught.value, "hint")  # noqa: B009


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable_is_said(tmp_path: Path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(DestinationError, match="cannot be written: Permission denied"):
            stage(tmp_path / "model.dyce")
    finally:
        tmp_path.chmod(0o700)


def test_a_parent_that_refuses_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(**_: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(DestinationError, match="cannot be written: Permission denied"):
        stage(tmp_path / "model.dyce")


def test_a_parent_that_is_a_file_is_said(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(DestinationError, match="cannot be written"):
        stage(tmp_path / "file/model.dyce")
    assert names(tmp_path) == ["file"]


def test_the_working_directory_cannot_be_the_destination_if_it_holds_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DestinationError):
        check_destination(Path(), force=True)


def test_an_empty_working_directory_may_become_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    empty = tmp_path / "model"
    empty.mkdir()
    monkeypatch.chdir(empty)
    with staged(Path("."), force=False) as folder:
        (folder / "manifest.json").write_text("{}")
    assert [path.name for path in empty.iterdir()] == ["manifest.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
