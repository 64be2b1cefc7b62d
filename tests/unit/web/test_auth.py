"""Keys: the right one, for the right thing, and never shown."""

import pytest

from app.errors import Forbidden, Unauthorized
from app.web.auth import ApiKey, ApiKeys, Scope

MASTER, EARS = "correct-horse-battery", "correct-horse-listens"
API_KEYS = ApiKeys(
    ApiKey("API_KEY", MASTER, frozenset(Scope)),
    ApiKey("API_KEY_WS", EARS, frozenset({Scope.LISTEN})),
)


@pytest.mark.parametrize(
    ("shown", "scope", "name"),
    [
        (MASTER, Scope.INGEST, "API_KEY"),
        (MASTER, Scope.LISTEN, "API_KEY"),
        (EARS, Scope.LISTEN, "API_KEY_WS"),
    ],
)
def test_a_key_opens_what_it_is_for(shown: str, scope: Scope, name: str) -> None:
    assert API_KEYS.authorize(shown.encode(), scope) == name


@pytest.mark.parametrize(
    ("shown", "scope", "reason"),
    [
        (None, Scope.INGEST, "missing"),
        (b"", Scope.LISTEN, "missing"),
        (b"wrong", Scope.LISTEN, "unknown"),
        (MASTER[:-1].encode(), Scope.INGEST, "unknown"),
        (MASTER.encode() + b"x", Scope.INGEST, "unknown"),
        (MASTER.upper().encode(), Scope.INGEST, "unknown"),
        (b" " + MASTER.encode(), Scope.INGEST, "unknown"),
        (b"\xff\x00", Scope.INGEST, "unknown"),
    ],
)
def test_any_other_key_opens_nothing(shown: bytes | None, scope: Scope, reason: str) -> None:
    with pytest.raises(Unauthorized, match=reason) as refusal:
        API_KEYS.authorize(shown, scope)
    assert MASTER not in str(refusal.value)
    assert EARS not in str(refusal.value)


@pytest.mark.parametrize(
    ("scope", "words"), [(Scope.INGEST, "write readings"), (Scope.READ, "read readings and sensors")]
)
def test_key_without_the_scope(scope: Scope, words: str) -> None:
    """The error for a key without the scope says what the key may do."""
    with pytest.raises(
        Forbidden, match=f"^This API key, .*, may not {words}. It may listen to live readings.$"
    ) as refusal:
        API_KEYS.authorize(EARS.encode(), scope)
    assert EARS not in str(refusal.value)


@pytest.mark.parametrize("keys", [("a", "b"), ("b", "a")])
def test_one_secret_for_two_keys(keys: tuple[str, str]) -> None:
    """If two keys have the same secret, the one with the scope counts, in any order."""
    scopes = {"a": frozenset({Scope.LISTEN}), "b": frozenset({Scope.INGEST})}
    assert ApiKeys(*(ApiKey(key, MASTER, scopes[key]) for key in keys)).authorize(MASTER.encode(), Scope.INGEST) == "b"


@pytest.mark.parametrize(
    ("shown", "known"),
    [(MASTER, True), (EARS, True), ("wrong", False), (MASTER[:-1], False), ("", False), (None, False)],
)
def test_knows(shown: str | None, known: bool) -> None:
    """A key is known whatever its rights. An empty text is no key, even if a key is empty."""
    ring = ApiKeys(ApiKey("EMPTY", "", frozenset()), *(ApiKey(key, key, frozenset()) for key in (MASTER, EARS)))
    assert ring.knows(shown.encode() if shown is not None else None) is known


def test_without_keys_nothing_opens_not_even_to_nothing() -> None:
    with pytest.raises(Unauthorized):
        ApiKeys(ApiKey("API_KEY", "", frozenset(Scope))).authorize(b"", Scope.INGEST)


def test_no_key_is_shown_where_it_is_printed() -> None:
    key = ApiKey("API_KEY", MASTER, frozenset(Scope))
    assert repr(key) == str(key) == "ApiKey('API_KEY')"
