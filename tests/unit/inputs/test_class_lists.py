import json
from pathlib import Path
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyce_runtime.errors import DataError
from dyce_runtime.inputs.class_lists import read_classes

NAMES = ["café", "dog", "ant", "Ångström"]


def written(folder: Path, content: bytes, name: str = "classes.txt") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["no mark", "byte-order mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("after", ["", "\n", "\n\n\n", "  \n\t\n"])
def test_what_editors_leave_in_a_list_does_not_matter(tmp_path: Path, mark: bytes, end: str, after: str):
    text = "\n".join(NAMES[:1] + [f"{name}  " for name in NAMES[1:]]) + after
    file = written(tmp_path, mark + text.replace("\n", end).encode())
    assert read_classes(file, NAMES) == {name: index for index, name in enumerate(NAMES)}


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["no mark", "byte-order mark"])
def test_json_may_have_a_byte_order_mark(tmp_path: Path, mark: bytes):
    file = written(tmp_path, mark + json.dumps({"b": 1, "a": 0}).encode(), "classes.json")
    assert read_classes(file, []) == {"a": 0, "b": 1}


@given(
    listed=st.sampled_from(["NFC", "NFD"]),
    folders=st.sampled_from(["NFC", "NFD"]),
    ending=st.sampled_from(["txt", "json"]),
)
def test_a_name_in_another_unicode_form_is_the_same_name(
    tmp_path_factory: pytest.TempPathFactory, listed: str, folders: str, ending: str
):
    names = [normalize(listed, name) for name in NAMES]
    text = "\n".join(names) if ending == "txt" else json.dumps({name: index for index, name in enumerate(names)})
    file = written(tmp_path_factory.mktemp("lists"), text.encode(), f"classes.{ending}")
    found = read_classes(file, [normalize(folders, name) for name in NAMES])
    assert [found[normalize(folders, name)] for name in NAMES] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"),
    [
        ("c.txt", b"cat\n\ndog\n", "line 2 is blank", ""),
        ("c.txt", b"cat\ndog\ncat \n", "found twice: cat", ""),
        ("c.txt", "caf\u00e9\ncafe\u0301\n".encode(), "found twice: café", ""),
        ("c.txt", "café".encode("latin-1"), "cannot be read as a list of classes", "save it as UTF-8"),
        ("c.txt", "cat\ndog".encode("utf-16"), "cannot be read as a list of classes", "save it as UTF-8"),
        ("c.json", b'{"cat": 0, "cat": 1}', "found twice: cat", ""),
        ("c.json", b'{"cat": true}', "expected JSON that maps folder names to class indices", '{"cat": 0}'),
        ("c.json", b"[" * 100_000, "cannot be read as a list of classes", ""),
        ("c.json", b"", "cannot be read as a list of classes", ""),
    ],
)
def test_a_list_that_says_no_order_is_refused(tmp_path: Path, name: str, content: bytes, message: str, hint: str):
    with pytest.raises(DataError, match=message) as caught:
        read_classes(written(tmp_path, content, name), [])
    assert hint in caught.value.hint


def test_a_folder_is_no_list(tmp_path: Path):
    with pytest.raises(DataError, match="cannot be read as a list of classes"):
        read_classes(tmp_path, [])
