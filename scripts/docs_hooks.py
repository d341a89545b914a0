"""What `mkdocs build` does beside rendering: pages made from code, links into the repository, names that must exist.

The pages of docs/ are written to be read on a forge as well as on the site, so they link to files of the repository by
relative paths. On the site a linked page of Markdown (results/claims.md) becomes a page, any other file a download, and a
link to a folder plain text. A link to nothing, and a `mora.module.name` or `mora/file.py` in backquotes that does not
exist, is a warning, which `mkdocs build --strict` makes an error.
"""

from __future__ import annotations

import ast
import logging
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]  # mkdocs loads this file by its path

import config_reference  # noqa: E402
import data_sets_reference  # noqa: E402

DOCS = ROOT / "docs"
MOUNT = "repository"  # the folder of the site that holds files from outside docs/
GENERATED = {
    "reference/configuration.md": config_reference.page,
    "reference/scales.md": config_reference.scales_page,
    "reference/data-sets.md": data_sets_reference.page,
}
COPIED = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}

logger = logging.getLogger("mkdocs.hooks.repository")

LINK = re.compile(r"(?<!\\)\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"`(mora(?:\.\w+)+|(?:mora|scripts|configs|experiments|examples|tests|docs)/[\w/.-]*\w)`")


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, every file outside docs/ that a page links to, and the files that these link to."""
    pages: dict[str, str] = {}
    for uri, make in GENERATED.items():
        pages[uri] = make()
        files.append(File.generated(config, uri, content=pages[uri]))
    for uri, name in COPIED.items():
        pages[uri] = (ROOT / name).read_text()
        files.append(File.generated(config, uri, content=pages[uri]))
    pages |= {f.src_uri: f.content_string for f in files if f.src_uri.endswith(".md") and f.src_uri not in pages}
    pending = [(origin(uri), text) for uri, text in pages.items()]
    added: set[str] = set()
    while pending:
        page, text = pending.pop()
        for match in LINK.finditer(text):
            target = resolve(page, match[1])
            file = ROOT / target
            if target in added or target in COPIED.values() or target.startswith("docs/") or not file.is_file():
                continue
            added.add(target)
            uri = site_path(target)
            if file.suffix == ".md":
                page_file = File.generated(config, uri, content=file.read_text(), inclusion=InclusionLevel.NOT_IN_NAV)
                files.append(page_file)
                pending.append((target, file.read_text()))
            else:
                files.append(File.generated(config, uri, abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Change links to the paths of the site, and check names."""
    here = origin(page.file.src_uri)
    for name in NAME.findall(FENCE.sub("", markdown)):
        if not exists(name):
            logger.warning("%s names `%s`, which does not exist", here, name)

    def replaced(match: re.Match[str]) -> str:
        target, anchor = resolve(here, match[1]), match[2] or ""
        if (ROOT / target).is_dir():
            return "]"  # [text](folder/) -> [text]
        if not (ROOT / target).exists() and target.removeprefix("docs/") not in {*GENERATED, *COPIED}:
            logger.warning("%s links to %s, which does not exist", here, target)
        return f"]({posixpath.relpath(site_path(target), posixpath.dirname(page.file.src_uri) or '.')}{anchor})"

    return LINK.sub(replaced, markdown)


def origin(uri: str) -> str:
    """Return the file of the repository from which a page of the site was made."""
    if uri in COPIED:
        return COPIED[uri]
    return uri.removeprefix(f"{MOUNT}/") if uri.startswith(f"{MOUNT}/") else f"docs/{uri}"


def site_path(target: str) -> str:
    """Return the path of a repository file on the site."""
    for uri, name in COPIED.items():
        if target == name:
            return uri
    return target.removeprefix("docs/") if target.startswith("docs/") else f"{MOUNT}/{target}"


def resolve(page: str, link: str) -> str:
    """Return the target of a link in `page` as a path from the root of the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def exists(name: str) -> bool:
    """Return whether a path of the repository, or a dotted name of a module, class, function or method, exists."""
    if "/" in name:
        return (ROOT / name).exists()
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:n])
        file = base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
        if file.is_file():
            return n == len(parts) or _defines(ast.parse(file.read_text()).body, parts[n:])
    return False


def _defines(body: list[ast.stmt], names: list[str]) -> bool:
    for node in body:
        if isinstance(node, ast.If) and _defines(node.body, names):  # TYPE_CHECKING, for names that are imported late
            return True
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == names[0]:
            return len(names) == 1 or _defines(node.body, names[1:])
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        defined = {getattr(target, "id", None) for target in targets}
        if isinstance(node, ast.ImportFrom):
            defined |= {alias.asname or alias.name for alias in node.names}
        if names[0] in defined and len(names) == 1:
            return True
    return False
