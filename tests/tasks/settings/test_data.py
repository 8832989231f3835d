"""The section `data`: its source, and the pins of that source."""

import pytest

from tasks.settings.changes import parse_assignment, read_preset, with_changes
from tasks.settings.data import DataSource
from tasks.settings.params import parse_params
from tasks.support.cli import InputError
from tests.helpers import ROOT
from tests.params import TEXT, changed

SHA256 = f"data.sha256={64 * 'a'}"


def test_fingerprint_of_phantoms_is_an_error_and_the_demo_removes_it() -> None:
    pin = f"data.fingerprint=f{31 * '0'}"
    with pytest.raises(InputError, match=r": data: phantom:// never changes .* set fingerprint to null$"):
        changed(pin, "data.source=phantom://9")
    pinned = with_changes(TEXT, {pin: parse_assignment(pin)})
    demo = with_changes(pinned, {"demo": read_preset(ROOT / "presets" / "demo.yaml")})
    assert parse_params(demo).data.fingerprint is None


def test_sha256_of_phantoms_is_an_error() -> None:
    with pytest.raises(InputError, match=r": data: phantom:// is not a zip file .*; set sha256 to null$"):
        changed(SHA256, "data.source=phantom://9")


def test_another_source_removes_the_previous_pins() -> None:
    pinned = with_changes(TEXT, {"pin": {"data": {"fingerprint": f"f{31 * '0'}"}}})
    assert parse_params(pinned).data.sha256
    data = parse_params(with_changes(pinned, {"test": {"data": {"source": "x.zip"}}})).data
    assert data == DataSource(source="x.zip")
    same = with_changes(pinned, {"test": {"data": {"source": parse_params(pinned).data.source}}})
    assert parse_params(same) == parse_params(pinned)


def test_pin_set_together_with_a_source_is_kept_in_any_order() -> None:
    for order in (("data.source=x.zip", SHA256), (SHA256, "data.source=x.zip")):
        assert changed(*order).data == DataSource(source="x.zip", sha256=64 * "a")


@pytest.mark.parametrize("source", ["https://user:password@host/a.zip", "http://user@127.0.0.1/a.zip"])
def test_password_in_a_url_is_an_error_that_does_not_reveal_it(source: str) -> None:
    with pytest.raises(
        InputError,
        match=r": data: source: params.yaml must not contain credentials; put them into ~/\.netrc$",
    ) as caught:
        changed(f"data.source={source}")
    assert "password@" not in str(caught.value)
