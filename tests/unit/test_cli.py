"""The command line: every verb explains itself; what an operator got wrong ends with status 2 and a sentence."""

import io

import pytest

from beaconry.cli import VERBS, main
from beaconry.tenancy.keys import KeyRing, hash_of


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert f"beaconry {verb}" in capsys.readouterr().out


def test_policies_are_listed_with_the_default_marked(capsys: pytest.CaptureFixture[str]):
    assert main(["policies"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "(default)" in line] == ["expected-cost"]
    assert {"round-robin", "random", "least-requests", "power-of-two", "prefix-only"} <= {
        line.split()[0] for line in lines
    }


def test_an_operators_error_is_one_sentence_and_status_2(tmp_path: object, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "gateway.yaml"
    file.write_text("polcy: expected-cost\n")
    assert main(["serve", "--config", str(file)]) == 2
    said = capsys.readouterr().err
    assert "polcy" in said
    assert '"policy"' in said
    assert "Traceback" not in said


def test_presets_are_listed_with_how_far_they_can_be_trusted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["presets"]) == 0
    said = capsys.readouterr().out
    assert "llama-3.1-70b-fp8/h100x2" in said
    assert "InferenceMAX" in said
    assert main(["presets", "llama-3.1-8b/l40s"]) == 0
    assert "guessed" in capsys.readouterr().out
    assert main(["presets", "llama-3.1-8b/h101"]) == 2


def test_a_key_is_made_with_the_hash_that_admits_it(capsys: pytest.CaptureFixture[str]):
    keys = set()
    for _ in range(2):
        assert main(["key"]) == 0
        (_, key), (_, stored) = (line.split() for line in capsys.readouterr().out.splitlines())
        ring = KeyRing({"acme": [stored]}, {"acme": "acme"}, "t.yaml")
        assert ring.owner(key.encode()) == "acme"
        keys.add(key)
    assert len(keys) == 2


def test_an_existing_key_is_hashed_from_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.stdin", io.StringIO("my key\n"))
    assert main(["key", "--existing"]) == 0
    assert capsys.readouterr().out == hash_of("my key") + "\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["key", "--existing"]) == 2
