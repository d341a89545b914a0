"""The typed result of a run. It is written once, checked when it is read, and read once per process."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mora import digests
from mora.config import RunConfig
from mora.config.run_id import result_path
from mora.config.seal import FIELD, sealed, unsealed
from mora.errors import DamagedFileError, MoraError, one_line
from mora.evaluate import metrics
from mora.io import replace_file

FORMAT: Literal[2] = 2
LARGEST = 1e15  # a metric's numbers beyond this become infinite: the run has diverged, and sums and axes would overflow
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj")  # in the order of Figure 5

T = TypeVar("T")
Measure = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), ser_json_inf_nan="strings")


class Metric(_Frozen):
    """A measured value.

    Attributes:
        stderr: The standard error over `documents`, if they were counted.
        higher_is_better: What the metric's task says; None if it says nothing.
        floor: The score of a model that knows nothing, as the task says or as measured.
    """

    value: float
    stderr: float | None = None
    documents: Count | None = None
    higher_is_better: bool | None = None
    floor: float | None = None

    @field_validator("value", "stderr", "floor")
    @classmethod
    def _huge_is_infinite(cls, value: float | None) -> float | None:
        return math.copysign(math.inf, value) if value is not None and abs(value) > LARGEST else value

    @property
    def finite(self) -> bool:
        return math.isfinite(self.value)


Metrics = dict[str, Metric]


class Parameters(_Frozen):
    trainable: Count
    by_module: dict[str, int] = {}


class Source(_Frozen):
    """The source that made a result. `dirty` is None if the commit is not known."""

    commit: str | None = None
    dirty: bool | None
    fingerprint: str


class RunResult(_Frozen):
    """The result of a run. Unknown fields are errors.

    Attributes:
        config: The configuration as it was written; an old one may not be valid today.
        metrics: The metrics by step.
        more: Facts that nothing here reads.
    """

    format: Literal[2] = FORMAT
    run_id: str = ""
    status: Literal["done", "diverged", "failed"]
    reason: str | None = None
    config: dict[str, Any]
    metrics: dict[Count, Metrics]
    parameters: Parameters
    source: Source
    total_steps: Count | None = None
    last_step: Count | None = None
    final_train_loss: float | None = None
    wall_s: float | None = None  # if the run was resumed, since its last start
    scoring_s: float | None = None  # the part of wall_s that scoring took
    log_sha256: str | None = None
    packages: dict[str, str] = {}
    hardware: dict[str, Any] = {}
    speed: dict[str, float] | None = None
    data: dict[str, Any] = {}
    provenance: dict[str, Any] = {}
    more: dict[str, Any] = {}

    @field_validator("config")
    @classmethod
    def _names_its_scale_and_task(cls, config: dict[str, Any]) -> dict[str, Any]:
        for section in ("scale", "task"):
            if not isinstance(config.get(section), dict) or not isinstance(config[section].get("name"), str):
                raise ValueError(f"no field {section}.name")
        return config

    @field_validator("speed")
    @classmethod
    def _positive(cls, speed: dict[str, float] | None) -> dict[str, float] | None:
        for name, value in (speed or {}).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value}: expected a number of seconds, tokens or a share")
        return speed

    @property
    def scale(self) -> str:
        return str(self.config["scale"]["name"])

    @property
    def task(self) -> str:
        return str(self.config["task"]["name"])

    @property
    def peak_memory_bytes(self) -> int | None:
        """Return what was allocated at the peak of the run after its model was loaded, including scoring."""
        return self.hardware.get("peak_memory_bytes")

    @property
    def train_peak_memory_bytes(self) -> int | None:
        """Return what training alone allocated at its peak; None if that was not recorded, as until 2026-11."""
        return self.hardware.get("train_peak_memory_bytes")

    def text(self) -> str:
        """Return the file's content, sealed."""
        return json.dumps(sealed(json.loads(self.model_dump_json())), indent=1, ensure_ascii=False) + "\n"


class Spectrum(BaseModel):
    """Measures of the singular values of delta W, by name, as means over the layers of each kind of module.

    Unknown fields, such as those of single modules, are left out. Early spectra have neither `run_id` nor `source`.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str = ""
    kinds: dict[str, dict[str, Measure]]
    source: Source | None = None

    @field_validator("kinds")
    @classmethod
    def _has_all_kinds(cls, kinds: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        for kind in MODULES:
            if "above_0.1" not in kinds.get(kind, {}):
                raise ValueError(f"no field {kind}.above_0.1")
        return kinds


def of_facts(facts: Mapping[str, Any]) -> RunResult:
    """Return a result made of a worker's facts. Facts without a field of their own go to `more`."""
    known = {name: value for name, value in facts.items() if name in RunResult.model_fields}
    more = {name: value for name, value in facts.items() if name not in RunResult.model_fields}
    return RunResult.model_validate(known | ({"more": more} if more else {}))


def typed(row: Mapping[str, Any]) -> Metrics:
    """Return the metrics in a row of a log, in which their errors, documents and floors have names of their own."""
    return {name: Metric(**measured._asdict()) for name, measured in metrics.read_row(row).items()}


def of_log(rows: Iterable[Mapping[str, Any]]) -> dict[int, Metrics]:
    """Return, by step, those rows of a log that are evaluations."""
    return {row["step"]: typed({k: v for k, v in row.items() if k != "step"}) for row in rows if "loss" not in row}


def log_digest(text: str) -> str:
    """Return the digest by which a result recognises its log."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def migrate(values: dict[str, Any]) -> dict[str, Any]:
    """Convert a result of format 1, whose metrics are flat rows, to today's format.

    Raises:
        ValueError: It has neither format; the message names the field.
    """
    version = values.get("format", 1)
    if version == FORMAT:
        return values
    if version != 1:
        raise ValueError(f"format={version!r}: expected 1 or {FORMAT}; this is of another version of the suite")
    for field in ("metrics", "source.dirty", "source.fingerprint"):
        _require(values, field)
    rows = values["metrics"]
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise ValueError("metrics: expected an object of steps")
    known = {k: v for k, v in values.items() if k in RunResult.model_fields}
    more = {k: v for k, v in values.items() if k not in RunResult.model_fields}
    return known | {"format": FORMAT, "metrics": {step: typed(row) for step, row in rows.items()}, "more": more}


def _require(values: Any, field: str) -> None:
    for name in field.split("."):
        if not isinstance(values, dict) or name not in values:
            raise ValueError(f"no field {field}")
        values = values[name]


def read(path: Path) -> RunResult:
    """Read a result. Raises DamagedFileError, in one line with the field, if the file is not a result."""
    return checked(path, lambda values: RunResult.model_validate(migrate(values)), "the run is repeated")


def read_spectrum(path: Path) -> Spectrum:
    """Read a run's spectrum. Raises DamagedFileError, in one line, if the file is not a spectrum, or another run's."""
    spectrum = checked(path, Spectrum.model_validate, "the spectrum is measured again")
    if spectrum.run_id not in ("", path.stem):
        raise DamagedFileError(
            f"{path} is damaged: it is the spectrum of {spectrum.run_id}; bring back that of {path.stem}"
        )
    return spectrum


def checked(path: Path, make: Callable[[dict[str, Any]], T], again: str) -> T:
    """Return what `make` makes of the object in a JSON file. One that is not sealed is compared with `digests.txt`.

    Args:
        path: The file.
        make: Converts the object.
        again: A text for the message that says what happens once the file is removed.

    Raises:
        DamagedFileError: The file has no object, its digest does not match, or a field is missing or of another type. The
            message is one line.
    """
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError("expected an object")
        result = make({key: value for key, value in values.items() if key != FIELD})
        unsealed(values)  # last, since the error of a wrong field says more
    except DamagedFileError:  # of another file, which `make` has read
        raise
    except ValidationError as error:
        why = _first(error)
    except KeyError as error:
        why = f"no field {error}"
    except (
        IsADirectoryError,
        PermissionError,
        ValueError,
        TypeError,
        AttributeError,
        RecursionError,
        OverflowError,
    ) as error:
        why = one_line(error)
    else:
        if FIELD not in values:
            digests.check(path)
        return result
    raise DamagedFileError(f"{path} is damaged ({why[:300]}): remove it, and {again}")


def write_sealed(path: Path, values: dict[str, Any]) -> None:
    """Write the object, sealed, which `checked` reads. It may take the place of one that `digests.txt` names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digests.forget(path)
    replace_file(path, json.dumps(sealed(values), indent=1) + "\n")


def _first(error: ValidationError) -> str:
    first, *rest = error.errors()
    field = ".".join(str(part) for part in first["loc"])
    many = f"; {len(rest)} more fields" if rest else ""
    if first["type"] == "missing":
        return f"no field {field}{many}"
    if first["type"] == "extra_forbidden":
        return f"{field}: there is no such field{many}"
    return f"{field}={str(first['input'])[:80]!r}: {first['msg'].removeprefix('Value error, ')}{many}"


class ResultStore:
    """Results by path. Each is parsed once, and again only if its file has changed, as it may while a suite runs."""

    def __init__(self) -> None:
        self._read: dict[Path, tuple[tuple[int, int, int], RunResult]] = {}
        self._left_out: frozenset[Path] = frozenset()

    def at(self, path: Path) -> RunResult | None:
        """Return the result at `path`; None if there is no file. Raises DamagedFileError if it is damaged."""
        if path in self._left_out:
            return None
        try:
            stat = path.stat()
        except FileNotFoundError:
            return None
        signature = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if path not in self._read or self._read[path][0] != signature:
            self._read[path] = signature, read(path)
        return self._read[path][1]

    def leave_out_damaged(self, folder: Path) -> dict[str, str]:
        """Treat damaged results as absent from now on; return why they are damaged, by file name."""
        damaged: dict[Path, str] = {}
        for path in sorted(folder.glob("*.json")):
            try:
                self.at(path)
            except MoraError as error:
                damaged[path] = str(error).replace(f"{path.parent}/", "")
        self._left_out |= damaged.keys()
        return {path.name: why for path, why in damaged.items()}

    def leave_out(self, path: Path) -> None:
        """Treat the result as absent from now on."""
        self._left_out |= {path}

    def of(self, config: RunConfig) -> RunResult | None:
        """Return the result of exactly this run. Raises DamagedFileError if its file is damaged, or is another run's."""
        path = result_path(config)
        result = self.at(path)
        if result is not None and result.run_id not in ("", path.stem):  # old results name no run
            raise DamagedFileError(
                f"{path} is the result of {result.run_id}: bring back the file of that name, or remove it, and the run is "
                "done again"
            )
        return result

    def all(self, folder: Path) -> Iterator[RunResult]:
        """Yield all results in the folder. Raises DamagedFileError if one is damaged."""
        for path in sorted(folder.glob("*.json")):
            if (result := self.at(path)) is not None:
                yield result


STORE = ResultStore()
