"""Local variables of a failed task's frames, as text: what is masked, and what is not sent at all."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from ipytaskfarm.serialization.tracebacks import Places, show_values


@pytest.fixture(autouse=True)
def usual() -> Iterator[None]:
    yield
    show_values("masked")


class Settings:
    def __repr__(self) -> str:
        return "Settings(user='ann', api_key='k-123', password: b'x\\'y')"


def fail() -> None:
    password, db_password, API_KEY, auth_token, secretKey = "p1", "p2", "p3", "p4", "p5"  # noqa: F841, N806
    token, tokens, tokenizer, n_tokens = "the", ["the", "cat"], "words", 2  # noqa: F841
    config = {"user": "ann", "db_password": "p6", "port": 3, "nested": {"access_key": "p7, p8"}}  # noqa: F841
    settings = Settings()  # noqa: F841
    raise ValueError("no")


def fail_with_token() -> None:
    token = b"eyJhbGciOiJIUzI1NiJ9.e30"  # noqa: F841
    raise ValueError("no")


def values(function: object = fail) -> dict[str, str]:
    places = Places()
    try:
        function()  # type: ignore[operator]
    except ValueError:
        index = places.frames(sys.exc_info()[2])[-1]
    return dict(places.found[index].values)


def test_what_looks_like_a_secret_is_masked() -> None:
    found = values()
    for name in ("password", "db_password", "API_KEY", "auth_token", "secretKey"):
        assert found[name] == "<masked>", name
    assert [found[name] for name in ("token", "tokens", "tokenizer", "n_tokens")] == [
        "'the'", "['the', 'cat']", "'words'", "2"
    ]  # fmt: skip
    assert values(fail_with_token)["token"] == "<masked>"
    config = "{'user': 'ann', 'db_password': <masked>, 'port': 3, 'nested': {'access_key': <masked>}}"
    assert found["config"] == config
    assert found["settings"] == "Settings(user='ann', api_key=<masked>, password: <masked>)"


def test_all_and_none() -> None:
    show_values("all")
    assert values()["password"] == "'p1'"
    assert "p6" in values()["config"]
    show_values("none")
    assert values() == {}


def test_an_attribute_of_a_cell_is_no_variable_of_the_same_name() -> None:
    def cell() -> None:
        names = {"mean": "another one", "total": 3}
        exec(compile("import math\nshare = total\nmath.mean(share)", "<cell>", "exec"), names)

    places = Places()
    try:
        cell()
    except AttributeError:
        index = places.frames(sys.exc_info()[2])[-1]
    assert dict(places.found[index].values) == {"total": "3", "share": "3"}
