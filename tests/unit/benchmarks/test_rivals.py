"""The peers that overload is measured with: what they need is named, and what is written for them says what was meant."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from beaconry.workload.prompts import VOCABULARY, WORDS
from beaconry.workload.sample import Sample
from benchmarks.overload_peers import SMOKE, Cell, beside, summarise
from benchmarks.rival import BANDS, ENGINES, TENANTS, Rival, Site
from benchmarks.rival_dynamo import model_folder
from benchmarks.rival_routers import RIVALS


def test_each_name_stands_for_one_setting():
    assert len({rival.name for rival in RIVALS}) == len(RIVALS)


def test_what_is_not_installed_is_named(tmp_path: Path):
    for rival in RIVALS:
        if "/" in rival.program:
            assert rival.missing(tmp_path) == str(tmp_path / rival.program)
    assert Rival("x", "no-such-program", lambda _: ()).missing(tmp_path) == "no-such-program on the PATH"
    assert Rival("ours", "", lambda _: ()).missing(tmp_path) is None


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.name)
def test_a_command_names_the_door_and_every_engine(rival: Rival, tmp_path: Path):
    site = Site(port=20002, engines=tuple(range(20100, 20100 + ENGINES)), folder=tmp_path, peers=tmp_path)
    words = [*(word for command in rival.beside(site) for word in command), *rival.command(site)]
    said = " ".join([*words, *(file.read_text() for file in tmp_path.iterdir() if file.is_file())])
    assert all(str(port) in said for port in (site.port, *site.engines))


def test_a_router_of_queues_by_band_is_told_each_band():
    told = [rival for rival in RIVALS if rival.hints("interactive")]
    assert [rival.name for rival in told] == ["Dynamo, queues by band"]
    assert len({told[0].hints(band) for band in BANDS}) == len(BANDS)


def test_each_word_of_a_prompt_is_a_token_for_dynamo(tmp_path: Path):
    model_folder(tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    ids = tokenizer.encode(VOCABULARY).ids
    assert len(ids) == len(WORDS) == len(set(ids))
    assert tokenizer.token_to_id("<unk>") not in ids
    assert tokenizer.decode(ids) == VOCABULARY.strip()


def test_a_router_measured_again_leaves_nothing_of_its_earlier_runs_under_that_load():
    sent = {(band, tenant): [Sample(index=0, planned_s=9, sent_s=9, end_s=9)] for band in BANDS for tenant in TENANTS}

    def run(router: Rival, load: int, seed: int):
        return summarise(Cell(rival=router, load=load, seed=seed), sent, SMOKE, busy=0.0)

    first, second = RIVALS[:2]
    kept = [run(first, 150, 1), run(first, 150, 2), run(first, 70, 1), run(second, 150, 1)]
    runs = beside([run(first, 150, 3)], kept)
    assert [(one.router, one.load, one.seed) for one in runs] == [
        (first.name, 150, 3),
        (first.name, 70, 1),
        (second.name, 150, 1),
    ]
