"""The scores of documents on disk: small, whole, and enough to compare two runs without anything else."""

import random

import pytest

from mora.errors import DataError
from mora.evaluate import compare, documents, samples
from mora.evaluate.logged import LoggedSamples


def scored(task, items, clusters=None, aggregation="mean", prompts="p", **header):
    clusters = clusters or [None] * len(items)
    rows = [
        {"id": i, "cluster": c, "filter": "none", "score": item}
        for i, (item, c) in enumerate(zip(items, clusters, strict=True))
    ]
    return LoggedSamples(
        {"task": task, "aggregation": aggregation, "headline": "score", "prompts": prompts, **header}, rows
    )


def test_scores_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "documents/run.jsonl.zst"
    logged = {
        "shares": scored("shares", [0.0, 1.0, 1.0]),
        "blocks": scored("blocks", [(-123.456789, 255), (-99.5, 255)], aggregation="perplexity"),
        "labels": scored("labels", [("a", "b"), ("b", "b")], clusters=["x", "y"], aggregation="weighted_f1"),
        "no headline": LoggedSamples({"task": "no headline", "headline": "score"}, [{"acc": 1.0}]),
    }
    documents.write(path, logged)
    read = documents.read(path)
    assert list(read) == ["shares", "blocks", "labels"]
    assert [row["score"] for row in read["shares"].rows] == [0, 1, 1]
    assert [row["score"] for row in read["blocks"].rows] == [[-123.4568, 255], [-99.5, 255]]
    assert [row["cluster"] for row in read["labels"].rows] == ["x", "y"]
    assert read["labels"].header == logged["labels"].header
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_written_where_no_task_has_a_headline(tmp_path):
    documents.write(
        tmp_path / "run.jsonl.zst", {"a": LoggedSamples({"task": "a", "headline": "score"}, [{"acc": 1.0}])}
    )
    assert list(tmp_path.iterdir()) == []


def test_fourteen_thousand_answers_take_a_few_kilobytes(tmp_path):
    rng = random.Random(0)
    documents.write(
        tmp_path / "run.jsonl.zst", {"mmlu": scored("mmlu", [float(rng.random() < 0.5) for _ in range(14_042)])}
    )
    assert (tmp_path / "run.jsonl.zst").stat().st_size < 8_000


@pytest.mark.parametrize("content", [b"", b"no zstd", None])
def test_a_damaged_file_is_said_in_one_line(tmp_path, content):
    path = tmp_path / "run.jsonl.zst"
    documents.write(path, {"a": scored("a", [1.0, 0.0])})
    path.write_bytes(path.read_bytes()[:-4] if content is None else content)
    with pytest.raises(
        DataError, match=r"run.jsonl.zst holds no document scores, or is truncated \([^\n]*\): score the model again$"
    ):
        documents.read(path)


def test_two_runs_are_compared_from_their_scores_alone(tmp_path):
    rng = random.Random(0)
    first = [float(rng.random() < 0.4) for _ in range(400)]
    second = [max(a, float(rng.random() < 0.3)) for a in first]
    for name, items in (("a", first), ("b", second)):
        documents.write(tmp_path / f"{name}.jsonl.zst", {"mmlu": scored("mmlu", items)})
    table = compare.table(str(tmp_path / "a.jsonl.zst"), [str(tmp_path / "b.jsonl.zst")])
    compared = compare.compare(scored("mmlu", first), scored("mmlu", second))
    assert f"{compared.difference:+.4f} [{compared.low:+.4f}, {compared.high:+.4f}]" in table
    assert "| mmlu | 400 |" in table


@pytest.mark.parametrize("name", ["documents.jsonl.zst", "samples/uuid.jsonl"])
def test_a_folder_in_place_of_scores_is_said_in_one_line(tmp_path, name):
    (tmp_path / name).mkdir(parents=True)
    read = documents.read if name.startswith("documents") else lambda path: samples.read(path.parent.parent)
    with pytest.raises(DataError, match=rf"{name} .*Is a directory.*: score the model again$"):
        read(tmp_path / name)
