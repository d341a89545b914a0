"""The documentation builds strictly and without network, and README says what is so."""

from __future__ import annotations

import re
import runpy
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from mora.config import compose
from mora.config.hardware_schema import Hardware
from mora.config.method_schema import Restart
from mora.config.schema import RunConfig
from mora.config.train_schema import Train
from mora.models.load import load_model

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
HOOKS = runpy.run_path(str(ROOT / "scripts/docs_hooks.py"))


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_):
        raise AssertionError("the site asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")


def built(folder, **options):
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True, **options)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)


def test_the_site_builds_strictly_and_offline(tmp_path, offline):
    built(tmp_path)
    pages = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.html")}
    assert {"architecture.html", "reference/configuration.html", "reference/api.html", "contributing.html"} <= pages
    assert "repository/results/claims.html" in pages, "a page outside docs/ that a page links to"
    assert "RestartFailed" in (tmp_path / "reference/api.html").read_text()


@pytest.mark.parametrize(
    "line", ["[a](no/such/page.md)", "[a](../no_such_file.yaml)", "`mora.train.loop.no_such`", "`mora/no_such.py`"]
)
def test_a_dead_link_or_an_unknown_name_is_warned_of(line, caplog):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    HOOKS["on_page_markdown"]("[fine](../README.md), `mora.train.loop.fit`, [b](https://x.org/y.md)", page, None, None)
    assert caplog.records == []
    HOOKS["on_page_markdown"](line, page, None, None)
    (record,) = caplog.records
    assert "does not exist" in record.getMessage()
    assert record.name.startswith("mkdocs."), "strict mode counts the warnings of these"


@pytest.mark.parametrize("name", ["mora.train", "mora.adapter.operators.Decouple.compress", "mora/adapter"])
def test_docs_hook_finds_existing_names(name):
    assert HOOKS["exists"](name)


def test_the_map_has_every_package_in_the_order_of_imports():
    page = (ROOT / "docs/architecture.md").read_text()
    cells = re.findall(r"^\| (`mora/.*?) \|", page.partition("Outside the package")[0], re.MULTILINE)
    packages = re.findall(r"`mora/(\w+)(?:\.py)?`", " ".join(cells))
    layer_of = runpy.run_path(str(ROOT / "tests/unit/test_architecture.py"))["LAYER_OF"]
    assert sorted(packages) == sorted(layer_of)
    assert packages == sorted(packages, key=layer_of.get), "a package stands above one that it imports"


def test_the_configuration_reference_has_every_field_with_type_value_and_source():
    page = HOOKS["config_reference"].page()
    for section, path in ((Train, "task.train"), (Hardware, "hardware"), (Restart, "method.restart")):
        for name in section.model_fields:
            assert f"| `{path}.{name}` | " in page
    assert "| `task.train.warmup_steps` | integer >= 0 | " in page
    assert "`300`: metamath (paper: Table 5; differs: official ratio 0.03" in page
    assert re.search(r"\| `lr` \| number > 0 or null \| Peak learning rate\. .* \| `null` \|", page)


def test_every_field_of_the_schema_has_a_meaning_and_every_section_a_reader():
    reference, pending, seen = HOOKS["config_reference"], [RunConfig], []
    while pending:
        section = pending.pop()
        texts = reference.field_texts(section)
        missing = [name for name in section.model_fields if not texts.get(name, "").endswith(".")]
        assert missing == [], f"{section.__name__}: a sentence below the field is its meaning"
        assert section is RunConfig or "Read by `mora/" in section.__doc__, f"{section.__name__}: who reads it?"
        seen.append(section)
        nested = [one for field in section.model_fields.values() for one in reference.sections(field.annotation)]
        pending += [one for one in dict.fromkeys(nested) if one not in (*seen, *pending)]
    assert len(seen) > 20


def test_what_the_scales_change_is_listed():
    page = HOOKS["config_reference"].scales_page()
    assert "## uuid at scale lite" in page
    assert "| `task.data.pairs` | `1000` | ours: a tenth of the paper's" in page


def test_readme_is_short_and_names_ci_s_command():
    assert len(README.splitlines()) <= 120
    assert "\nmake test " in README
    assert "\nmake test " in (ROOT / ".ci/run").read_text()


def test_every_link_of_readme_leads_somewhere():
    links = HOOKS["LINK"].findall(README)
    assert len(links) > 20
    assert [target for target, _ in links if not (ROOT / target).exists()] == []


def test_the_snippet_of_readme_runs(tmp_path, monkeypatch):
    snippet = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    model, _ = load_model(compose(["task=uuid", "method=none", "scale=smoke"]).model, "fp32")
    model.save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    hub_id = "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert hub_id in snippet
    exec(snippet.replace(hub_id, str(tmp_path / "base")), {})
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    assert (tmp_path / "merged" / "config.json").is_file()
