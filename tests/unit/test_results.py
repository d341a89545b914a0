"""Results as files: whatever they hold, a result comes out or one line that names the file and the field."""

import json
import random

import pytest

from mora import digests, results
from mora.config.cached_composition import compose_cached as compose
from mora.config.run_id import result_path
from mora.config.source import ROOT
from mora.errors import DamagedFileError, MoraError
from mora.evaluate import metrics
from mora.results import Metric, ResultStore, RunResult

COMMITTED = ROOT / "results/runs/uuid-mora-r1-lr3e-3-s0-af9f52f0b5.json"


@pytest.fixture(scope="module")
def old():
    return json.loads(COMMITTED.read_text())


@pytest.fixture(scope="module")
def new():
    return json.loads(results.read(COMMITTED).text())


def test_a_result_of_format_1_becomes_one_of_today_and_is_read_again_as_it_was_written(tmp_path):
    result = results.read(COMMITTED)
    accuracy = result.metrics[1000]["uuid_char_acc"]
    assert (accuracy.value, accuracy.stderr, accuracy.documents) == (0.376, 0.00880919932, 1000)
    assert accuracy.higher_is_better
    assert result.metrics[1000]["value_nll"] == Metric(value=14.4109275, higher_is_better=False)
    assert result.more == {}
    (tmp_path / "again.json").write_text(result.text())
    assert results.read(tmp_path / "again.json") == result


def test_numbers_that_are_none_are_read_again_as_they_were_written(tmp_path):
    result = results.read(COMMITTED)
    values = {"a": Metric(value=float("inf"), stderr=float("nan"))}
    (tmp_path / "a.json").write_text(result.model_copy(update={"metrics": {1: values}}).text())
    again = results.read(tmp_path / "a.json").metrics[1]["a"]
    assert again.value == float("inf")
    assert again.stderr != again.stderr
    assert not again.finite


def changed(values, field, value):
    copy = json.loads(json.dumps(values))
    *above, last = field.split(".")
    section = copy
    for name in above:
        section = section[name]
    section[last] = value
    return json.dumps(copy)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda old, new: changed(old, "format", 3), "format=3: expected 1 or 2"),
        (lambda old, new: changed(new, "colour", 1), "colour: there is no such field"),
        (lambda old, new: changed(new, "status", "fine"), "status='fine'"),
        (lambda old, new: changed(new, "parameters.trainable", "many"), "parameters.trainable='many'"),
        (lambda old, new: changed(new, "metrics.1000.value_nll", 3.0), "metrics.1000.value_nll='3.0'"),
        (
            lambda old, new: changed(new, "metrics.1000.value_nll.error", 3.0),
            "metrics.1000.value_nll.error: there is no such",
        ),
        (lambda old, new: changed(old, "metrics", [1, 2]), "metrics: expected an object of steps"),
        (lambda old, new: changed(old, "metrics.1000", 3), "metrics: expected an object of steps"),
        (lambda old, new: changed(old, "metrics.1000.value_nll", "low"), "value"),
        (lambda old, new: changed(old, "source", None), "no field source.dirty"),
        (lambda old, new: changed(new, "config", {}), "no field scale.name"),
        (lambda old, new: changed(new, "last_step", 10**400), "last_step="),
        (lambda old, new: "9" * 5000, "."),
        (lambda old, new: "[" * 100_000, "."),
        (lambda old, new: "\x00\xff", "."),
        (lambda old, new: "null", "expected an object"),
    ],
)
def test_a_file_that_is_no_result_is_said_in_one_line_with_the_field(tmp_path, old, new, damage, complaint):
    path = tmp_path / "run.json"
    path.write_text(damage(old, new))
    before = path.read_bytes()
    with pytest.raises(DamagedFileError) as error:
        results.read(path)
    text = str(error.value)
    assert text.startswith(f"{path} is damaged (")
    assert complaint in text
    assert "\n" not in text
    assert len(text) < 600
    assert path.read_bytes() == before


def test_bytes_that_are_no_text_are_said_in_one_line(tmp_path):
    (tmp_path / "run.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(DamagedFileError, match="is damaged"):
        results.read(tmp_path / "run.json")


@pytest.mark.parametrize("version", ["old", "new"])
def test_whatever_is_cut_or_swapped_gives_a_result_or_one_line(tmp_path, old, new, version):
    values, rng, path = {"old": old, "new": new}[version], random.Random(0), tmp_path / "run.json"
    text = json.dumps(values)
    junk = [None, True, -1, 1e308, "x", [], {}, [[]], {"a": {}}, "NaN"]
    damaged = [text[: rng.randrange(len(text))] for _ in range(30)]
    damaged += [changed(values, name, rng.choice(junk)) for name in values for _ in range(5)]
    damaged += [changed(values, f"{part}.{name}", rng.choice(junk)) for part in ("source", "parameters", "config", "metrics")
                for name in values[part]]  # fmt: skip
    read, said = 0, []
    for content in damaged:
        path.write_text(content)
        try:
            read += isinstance(results.read(path), RunResult)
        except MoraError as error:
            said.append(str(error))
    assert not any("\n" in text for text in said)
    assert 0 < read < len(damaged)


def test_a_result_is_parsed_once_and_again_where_its_file_changed(tmp_path, monkeypatch, old):
    store, path, parsed = ResultStore(), tmp_path / "run.json", []
    read = results.read
    monkeypatch.setattr(results, "read", lambda p: parsed.append(p) or read(p))
    assert store.at(path) is None
    path.write_text(json.dumps(old))
    assert store.at(path) is store.at(path)
    assert len(parsed) == 1
    path.write_text(changed(old, "status", "diverged"))
    assert store.at(path).status == "diverged"
    assert [result.status for result in store.all(tmp_path)] == ["diverged"]
    assert len(parsed) == 2


def test_what_a_worker_knows_and_no_field_has_is_kept(old):
    known = {k: v for k, v in old.items() if k != "metrics"}
    result = results.of_facts(known | {"metrics": {}, "weather": "fine"})
    assert result.more == {"weather": "fine"}


def test_the_direction_of_a_metric_is_its_tasks():
    assert metrics.facts("metamath_gsm8k.score").higher_is_better
    assert metrics.facts("c4_perplexity.score").higher_is_better is False
    assert metrics.facts("biomed_local.score").higher_is_better, "of a group, as of its members"
    assert metrics.facts("bio_mmlu.gold_nll").higher_is_better is False
    assert metrics.facts("validation_loss").higher_is_better is False
    assert metrics.facts("none_such.score").higher_is_better is None
    assert metrics.key("uuid", "uuid_char_acc") == "uuid_char_acc"
    assert metrics.key("bio_mmlu", "score") == "bio_mmlu.score"


def test_the_metrics_of_a_runs_tasks_are_known_unless_one_is_lm_evals_own():
    assert {"uuid_char_acc", "value_nll", "merged_value_nll"} <= metrics.of_tasks(["uuid"])
    assert {"biomed_local.score", "bio_mmlu.score"} <= metrics.of_tasks(["biomed_local"])
    assert metrics.of_tasks(["uuid", "arc_easy"]) is None


def test_every_metric_of_the_committed_results_has_a_direction():
    folders = [ROOT / "results/runs", *(ROOT / "results/outdated").iterdir()]
    committed = [result for folder in folders for result in results.STORE.all(folder)]
    names = {name for result in committed for at in result.metrics.values() for name in at}
    assert len(names) > 20
    assert [
        name
        for name in names
        if metrics.facts(name).higher_is_better is None and not name.endswith(f".{metrics.IF_ANSWERED}")
    ] == []


def test_the_result_of_another_run_in_its_place_is_refused(tmp_path):
    config = compose(["task=uuid", "method=lora", "r=8", "scale=smoke", f"scale.results_dir={tmp_path}"])
    result_path(config).write_text(COMMITTED.read_text())
    with pytest.raises(DamagedFileError, match=rf"is the result of {COMMITTED.stem}: bring back the file of that name"):
        ResultStore().of(config)


def test_committed_evidence_has_a_digest_in_its_result_or_in_the_file_of_digests():
    folder = ROOT / "results"
    paths = sorted((folder / "runs").glob("*.json"))
    old = {f"runs/{path.stem}.log.jsonl" for path in paths if results.STORE.at(path).log_sha256 is None}
    measured = [*paths, *(folder / "bench").glob("*.json")]
    old |= {f"{path.parent.name}/{path.name}" for path in measured if "sha256" not in json.loads(path.read_text())}
    named = digests.read(folder / digests.FILE)
    assert named.keys() == old | {
        f"{d}/{path.name}" for d in ("documents", "spectra") for path in (folder / d).iterdir()
    }
    assert list(named) == sorted(named)
    for name in named:
        digests.check(folder / name)
