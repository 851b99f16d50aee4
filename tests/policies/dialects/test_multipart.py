"""Reading a multipart form's plain fields, and changing one."""

from __future__ import annotations

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_policies.dialects import multipart
from steer_policies.dialects.multipart import form_fields, form_takes, set_form_field

TYPE = "multipart/form-data; boundary=xyz"


def part(disposition: str, content: bytes, *headers: str) -> bytes:
    lines = [f"Content-Disposition: form-data; {disposition}", *headers]
    return b"--xyz\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n" + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--xyz--\r\n"


FILE = part('name="file"; filename="a.mp3"', b"\x00\r\n\xff--xy", "Content-Type: audio/mpeg")
MODEL = part('name="model"', b"whisper-1")


def test_only_the_field_changes() -> None:
    """Every other byte stays, before and after it."""
    after = part('name="language"', b"de")
    made = set_form_field(TYPE, form(FILE, MODEL, after), "model", "gpt-4o-transcribe")
    assert made == form(FILE, part('name="model"', b"gpt-4o-transcribe"), after)


@pytest.mark.parametrize(
    "head",
    [
        'name="model"',
        "name=model",
        'NAME="model"',
        'foo=bar; name="model"',
        'foo="; name=\\"x\\""; name="model"',
    ],
)
def test_forms_of_a_name(head: str) -> None:
    """Quoted or not, and among other parameters."""
    assert set_form_field(TYPE, form(part(head, b"a")), "model", "b") == form(part(head, b"b"))


@pytest.mark.parametrize(
    "head",
    [
        'name="file"; filename="; name=model"',
        'filename="x; name=\\"model\\""; name="file"',
        'name="models"',
        'name="model"; filename="model.txt"',
        "name*=UTF-8''model",
        "",
    ],
)
def test_no_field_of_that_name(head: str) -> None:
    """Then it is added in front."""
    raw = form(part(head, b"a"))
    assert set_form_field(TYPE, raw, "model", "b") == part('name="model"', b"b") + raw


def test_every_field_of_the_name_changes() -> None:
    """Which one a server takes is not known."""
    made = set_form_field(TYPE, form(MODEL, FILE, MODEL), "model", "b")
    assert made == form(part('name="model"', b"b"), FILE, part('name="model"', b"b"))


def test_odd_parts_are_passed_over() -> None:
    """Without a head, without a disposition, without an end."""
    odd = b"--xyz\r\n--xyz\r\nX: y\r\n\r\nz\r\n" + MODEL + b"--xyz\r\nrest"
    made = set_form_field(TYPE, odd, "model", "b")
    assert made == odd.replace(b"whisper-1", b"b")


@pytest.mark.parametrize(
    ("content_type", "raw", "value"),
    [
        ("multipart/form-data", form(MODEL), "b"),
        ("multipart/form-data; boundary=abc", form(MODEL), "b"),
        (TYPE, b"preamble" + form(MODEL), "b"),
        (TYPE, b"", "b"),
        (TYPE, form(MODEL), "b\r\nc"),
        (TYPE, form(MODEL), "--xyz"),
    ],
)
def test_what_cannot_be_done(content_type: str, raw: bytes, value: str) -> None:
    """No boundary, another one, no form, or a value that would break it."""
    assert set_form_field(content_type, raw, "model", value) is None


@pytest.mark.parametrize(
    "content_type", ['multipart/form-data; boundary="xyz"', "Multipart/Form-Data;Boundary=xyz; a=b"]
)
def test_forms_of_a_boundary(content_type: str) -> None:
    """Quoted, in another case, and among other parameters."""
    assert form_fields(content_type, form(MODEL)) == {"model": "whisper-1"}


def test_fields() -> None:
    """Plain fields only, the last of each name; also an empty one."""
    raw = form(FILE, MODEL, part('name="a"', b""), part('name="model"', b"\xff"), part("", b"x"))
    assert form_fields(TYPE, raw) == {"model": "\N{REPLACEMENT CHARACTER}", "a": ""}
    assert form_fields("multipart/form-data", raw) is None
    assert form_fields(TYPE, b"x" + raw) is None


def test_fields_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In number and in size."""
    monkeypatch.setattr(multipart, "MAX_FIELDS", 2)
    monkeypatch.setattr(multipart, "MAX_FIELD", 60)
    raw = form(part('name="a"', b"x" * 61), part('name="b"', b"1"), part('name="c"', b"2"))
    assert form_fields(TYPE, raw) == {"b": "1"}
    assert form_fields(TYPE, form(part(f'name="a"; b={"c" * 99}', b"1"))) == {}


@given(st.binary(max_size=200), st.text(max_size=60))
def test_any_form_is_taken(raw: bytes, content_type: str) -> None:
    """Neither reading nor changing raises."""
    for kind in (TYPE, content_type):
        for body in (raw, b"--xyz" + raw):
            form_fields(kind, body)
            set_form_field(kind, body, "model", "b")


@given(
    st.dictionaries(
        st.sampled_from(["model", "language", 'quo"ted', "ä"]),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=20),
        min_size=1,
    ),
    st.binary(max_size=50),
)
def test_a_form_as_the_sdks_write_it(fields: dict[str, str], content: bytes) -> None:
    """What httpx writes is read back, and a changed model is all that changes."""
    request = httpx2.Request("POST", "http://x", data=fields, files={"file": ("f", content)})
    content_type, raw = request.headers["content-type"], request.read()
    read = form_fields(content_type, raw)
    assert read is not None
    assert {name: read.get(name) for name in ("model", "language")} == {
        name: fields.get(name) for name in ("model", "language")
    }
    made = set_form_field(content_type, raw, "model", "new")
    assert made is not None
    assert form_fields(content_type, made) == {**read, "model": "new"}
    if "model" in fields:
        changed = {**fields, "model": "new"}
        again = httpx2.Request(
            "POST",
            "http://x",
            data=changed,
            files={"file": ("f", content)},
            headers={"content-type": content_type},
        )
        assert again.read() == made


def test_values_that_a_form_can_take() -> None:
    """The boundary, which the caller chooses, and line ends rule some out."""
    kind = "multipart/form-data; boundary=mini"
    assert form_takes(kind, "gpt-4o-mini")
    assert not form_takes(kind, "gpt-4o--mini")
    assert not form_takes(kind, "a\r\nb")
    assert not form_takes("multipart/form-data", "m")
