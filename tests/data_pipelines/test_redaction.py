"""Credentials in addresses never come through, however they are written; what holds none stays as it is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.errors import UserError
from data_pipelines.locations import expand
from data_pipelines.redaction import redact, redacted

SECRETS = st.text(
    st.characters(codec="ascii", categories=("L", "N", "P", "S"), exclude_characters="&#;'\"?/@:$*"), min_size=4
)
SURROUNDINGS = st.sampled_from(["{}", "cannot read {}: refused", "'{}'", "{}, {}", "<a href={}>"])


@given(SECRETS, SURROUNDINGS, st.sampled_from(["http", "https", "postgresql+psycopg", "s3", "mysql"]))
def test_passwords_of_addresses_are_hidden(secret: str, text: str, scheme: str) -> None:
    for address in (
        f"{scheme}://user:Q{secret}@host:80/x",
        f"{scheme}://:Q{secret}@host",
        f"{scheme}://u:Q@/{secret}@h/x",
    ):
        assert f"Q{secret}" not in redact(text.replace("{}", address)).replace("%", "")


@given(
    SECRETS,
    st.sampled_from(["token", "sig", "X-Amz-Signature", "api_key", "AWSAccessKeyId", "Password", "sessionToken"]),
)
def test_tokens_in_queries_are_hidden(secret: str, name: str) -> None:
    assert redact(f"https://host/x?part=1&{name}=Q{secret}&b=2") == f"https://host/x?part=1&{name}=***&b=2"
    assert redact(f"https://Q{secret.replace('/', '')}@host/x") == "https://***@host/x"


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/logs/part-?.parquet",
        "http://host:8080/a@b.csv",
        "http://[::1]:80/x",
        "abfss://container@account.dfs.core.windows.net/x",
        "https://host/x?version=3&part=2",
        "postgresql://user@host/name",
        "https://me:${PASSWORD}@host/x?sig=${SIGNATURE}",
        "C:/logs/a@b: nothing there",
        "",
    ],
)
def test_what_holds_no_credential_stays(text: str) -> None:
    assert redact(text) == text


def test_plain_values_are_redacted_through_and_through() -> None:
    value = {"a": ["http://u:hush@h", {"b": ("x?token=hush", 1)}], "c": None}
    assert "hush" not in json.dumps(redacted(value))
    assert redacted(value)["a"][1]["b"][1] == 1


def test_error_sentences_name_the_variable_and_not_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIDDEN_DIR", "/somewhere/hush")
    monkeypatch.setenv("HIDDEN_WORD", "abc")
    assert expand("${HIDDEN_DIR}/${HIDDEN_WORD}") == "/somewhere/hush/abc"
    assert (
        str(UserError("/somewhere/hush/abc is not there, abcd is"))
        == "${HIDDEN_DIR}/${HIDDEN_WORD} is not there, abcd is"
    )
    assert "hush" not in str(UserError("s3://me:hush@bucket cannot be reached"))
