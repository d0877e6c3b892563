"""Plants bugs in our own source, one at a time, and counts how many the tests find.

    python -m tests.benchmarks.planted_bugs --output planted-bugs.csv [--sample 300] [--seed 0] [--jobs 1] [--limit N]

A bug is one changed expression or statement that still compiles: a comparison, an operator, a sign, a condition, a
number, `and`, `min`, the order of two arguments, a statement left out, a result that is None. Texts, types, decorators
and assertions stay. The sample has as many bugs of each room, those with the smallest hashes of line and change: code
that stays keeps its bugs from one commit to the next, wherever it moves.

All tests run once in a copy of the checkout that writes down which of them execute the place of a bug; the same sources
and tests are not traced again. Then bugs are planted in another copy. A process forked from one that has imported torch
runs the tests of a bug, the quickest first, and then others of their files, up to `--seconds` of tests. The result is
"killed" by a test that fails, and passes without the bug; "timeout"; "survived"; or "not run" by any test. The output
gets a row for each bug as it comes, and the same command goes on. `--jobs` is the number of copies, `--limit` of bugs
this time. Left out are tests that drive a browser, run notebooks or kill processes.
"""

import argparse
import ast
import contextlib
import copy
import gc
import hashlib
import importlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import accumulate, count, islice
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {
    "rose/layer": ["rose/layer/**/*.py"],
    "rose/model/walk": ["rose/model/walk/*.py"],
    "rose/model/run": ["rose/model/run/*.py"],
    "app": ["app/jobs.py", "app/registry.py", "app/session.py", "app/shared.py", "app/study/study.py"],
}
LEFT_OUT = ("browser", "faults", "benchmarks", "test_notebooks.py", "test_documents.py", "test_packaging.py")
SETTINGS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "ROSE_CACHE": ""}
OURS = ("rose", "app", "tests")  # imported anew for each bug
FIRST = 5.0  # seconds of the tests that run first, as most bugs die there
MEMORY = 8 * 2**30  # bytes that they may take besides what is imported
PYTEST = ("-p", "no:cacheprovider", "-c", "pyproject.toml", "--timeout=0")  # `in_child` has a limit of its own


# ---- bugs


@dataclass(frozen=True)
class Bug:
    """One change of a source file, from byte `start` to byte `end`."""

    room: str
    file: str
    line: int
    kind: str
    before: str
    after: str
    start: int
    end: int
    names: str  # what the statement defines, if the import of the file executes the bug; "" in a function

    def planted(self) -> bytes:
        content = (ROOT / self.file).read_bytes()
        return content[: self.start] + self.after.encode() + content[self.end :]

    @property
    def name(self) -> str:
        return f"{self.file} {self.start} {self.after}"

    @property
    def compiles(self) -> bool:
        with contextlib.suppress(SyntaxError):
            return bool(compile(self.planted(), self.file, "exec"))
        return False


OPERATORS: dict[type[Any], type[Any]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
OPPOSITES = {"min": "max", "any": "all", "minimum": "maximum", "amin": "amax", "argmin": "argmax", "floor": "ceil"}
OPPOSITES |= {opposite: name for name, opposite in OPPOSITES.items()}
SYMMETRIC = {*OPPOSITES, "equal"}  # functions whose arguments may change places
TELLS = {"setting", "Field", "TypeVar", "warn", "debug", "info", "warning", "error", "exception", "print"}
SKIPPED = {"annotation", "returns", "decorator_list", "exc", "cause"}  # fields of nodes: types and messages
STATEMENTS = ("update", "result", "left out")  # kinds that change a whole statement
LEAVING = (ast.AugAssign, ast.Raise, ast.Continue, ast.Break, ast.Delete)  # statements without which a file compiles


def changes_of(node: Any) -> Iterator[tuple[str, Any, Any]]:
    """Kind of change, what is changed, and what stands in its place, of this node itself."""
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            others = [*node.ops[:place], OPERATORS[type(operator)](), *node.ops[place + 1 :]]
            yield "comparison", node, _with(node, ops=others)
    elif type(getattr(node, "op", None)) in OPERATORS:
        if not any(_is_text_or_type(getattr(node, side, None)) for side in ("left", "right")):
            kinds = {ast.BoolOp: "and, or", ast.AugAssign: "update"}
            yield kinds.get(type(node), "operator"), node, _with(node, op=OPERATORS[type(node.op)]())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield "sign" if isinstance(node.op, ast.USub) else "condition", node, node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        is_float = isinstance(node.value, float) and node.value
        new = not node.value if isinstance(node.value, bool) else 2 * node.value if is_float else node.value + 1
        yield "number", node, ast.Constant(new)
    elif _name(node) in OPPOSITES and _is_name(node):
        field = "id" if isinstance(node, ast.Name) else "attr"
        yield "min, max", node, _with(node, **{field: OPPOSITES[_name(node)]})
    elif isinstance(node, ast.Call) and len(node.args) > 1 and _name(node.func) not in SYMMETRIC:
        first, second, *others = node.args
        if not isinstance(first, ast.Starred) and ast.dump(first) != ast.dump(second):
            yield "arguments", node, _with(node, args=[second, first, *others])
    elif isinstance(node, ast.Return) and getattr(node.value, "value", node.value) is not None:
        yield "result", node, "return None"
    for test in [node.test] if isinstance(node, ast.If | ast.While | ast.IfExp) else getattr(node, "ifs", []):
        yield "condition", test, ast.UnaryOp(ast.Not(), test)
    is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    is_change = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute | ast.Subscript)
    if is_call or is_change or isinstance(node, LEAVING):
        yield "left out", node, "pass"


def _with(node: Any, **fields: Any) -> Any:
    new = copy.copy(node)
    vars(new).update(fields)
    return new


def _name(node: Any) -> str:
    return getattr(node, "id", getattr(node, "attr", "")) if isinstance(node, ast.Name | ast.Attribute) else ""


def _is_text_or_type(node: Any) -> bool:
    is_text = isinstance(node, ast.JoinedStr) or isinstance(getattr(node, "value", 0), str | None)
    return is_text or _name(node)[:1].isupper() or _name(node) == "str"


def changeable(node: Any, imported: Any = None) -> Iterator[tuple[Any, Any]]:
    """The node and all below it whose change is more than another text or type, each with the statement by which the
    import of the file executes it; None where a function does."""
    is_text = isinstance(node, ast.JoinedStr | ast.Assert | ast.pattern)
    is_text = is_text or (isinstance(node, ast.Call) and _name(node.func) in TELLS)
    if is_text or (isinstance(node, ast.If) and _name(node.test) == "TYPE_CHECKING"):
        return
    yield node, imported
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and field not in SKIPPED:
                is_run = field == "body" and isinstance(node, ast.FunctionDef | ast.Lambda)
                is_named = isinstance(child, ast.stmt) and not getattr(child, "name", "").startswith("__")
                is_inner = is_named and (imported or isinstance(node, ast.Module))
                yield from changeable(child, None if is_run else child if is_inner else imported)


def bugs_of(room: str, path: Path) -> Iterator[tuple[str, Bug]]:
    """The bugs of a file, each with what its hash is made of."""
    content, times = path.read_bytes(), dict[str, int]()
    lines, starts = content.decode().splitlines(), _starts(content)
    for node, imported in changeable(ast.parse(content)):
        stored = [_name(x) for x in ast.walk(imported) if _is_name(x, ast.Store)] if imported else []
        names = getattr(imported, "name", "") or " ".join(stored)
        for kind, old, new in changes_of(node):
            start, end = starts[old.lineno - 1] + old.col_offset, starts[old.end_lineno - 1] + old.end_col_offset
            after = new if isinstance(new, str) else ast.unparse(ast.fix_missing_locations(new))
            after = f"({after})" if isinstance(new, ast.Compare | ast.BinOp | ast.BoolOp | ast.UnaryOp) else after
            before, file = content[start:end].decode(), str(path.relative_to(ROOT))
            what = f"{lines[old.lineno - 1].strip()} {kind} {before} {after}"
            times[what] = times.get(what, 0) + 1
            yield f"{what} {times[what]}", Bug(room, file, old.lineno, kind, before, after, start, end, names)


def _starts(content: bytes) -> list[int]:
    """The byte at which each line begins."""
    return [0, *accumulate(map(len, content.splitlines(keepends=True)))]


def _is_name(node: Any, context: type[Any] = ast.Load) -> bool:
    return bool(_name(node)) and isinstance(node.ctx, context)


def sampled(size: int, seed: int) -> list[Bug]:
    """As many bugs of every room, and `size` in all."""
    sample = list[Bug]()
    for room, patterns in ROOMS.items():
        files = [sorted(ROOT.glob(pattern)) for pattern in patterns]
        if not all(files):
            raise SystemExit(f"A file of {room} is gone; mend ROOMS.")
        bugs = dict(pair for group in files for file in group for pair in bugs_of(room, file))
        ranked = sorted(bugs, key=lambda what: hashlib.sha256(f"{seed} {what}".encode()).digest())
        sample += islice((bugs[what] for what in ranked if bugs[what].compiles), size // len(ROOMS))
    return sample


# ---- which tests execute a bug

SEEN = """import os
seen = set()
def see(*numbers):
    for pair in ((number, os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]) for number in numbers):
        if pair not in seen:
            seen.add(pair)
            with open(__file__ + ".txt", "a") as file:
                file.write("%d %s\\n" % pair)
"""


def instrument(folder: Path, bugs: Sequence[Bug]) -> None:
    """Changes a copy of our source so that it writes down the tests that execute each bug's place, or use the names
    that the place defines where an import executes it."""
    (folder / "seen_bugs.py").write_text(SEEN)
    for path in [path for package in OURS[:2] for path in (folder / package).rglob("*.py")]:
        content, name = path.read_bytes(), str(path.relative_to(folder))
        starts, places = _starts(content), dict[tuple[int, int, bool], list[int]]()
        for number, bug in enumerate(bugs):
            if bug.file == name and not bug.names:
                places.setdefault((bug.start, bug.end, bug.kind in STATEMENTS), []).append(number)
        for node, imported in changeable(ast.parse(content)):
            if not imported and _is_name(node):
                span = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
                if users := [number for number, bug in enumerate(bugs) if _name(node) in bug.names.split()]:
                    places.setdefault((*span, False), []).extend(users)
        texts = list[tuple[int, bool, int, str]]()  # in order: ends first, and then the outermost
        for (start, end, is_statement), numbers in places.items():
            call = f'__import__("seen_bugs").see({", ".join(map(str, numbers))})'
            texts.append((start, True, -end - is_statement, f"{call}; " if is_statement else f"({call} or ("))
            texts += [] if is_statement else [(end, False, 0, "))")]
        for place, _, _, text in sorted(texts, reverse=True):
            content = content[:place] + text.encode() + content[place:]
        path.write_bytes(content)


class Tracer:
    """A plugin of pytest: seconds of tests, and fixtures that several tests share."""

    def __init__(self) -> None:
        self.seconds, self.failed = dict[str, float](), set[str]()
        self.fixtures, self.spent = dict[str, list[str]](), dict[str, float]()

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        for item in items:
            definitions = item._fixtureinfo.name2fixturedefs.values()
            self.fixtures[item.nodeid] = [f"fixture {id(each[-1])}" for each in definitions]

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        if fixturedef.scope == "function":
            return (yield)
        name, start, test = f"fixture {id(fixturedef)}", time.monotonic(), os.environ["PYTEST_CURRENT_TEST"]
        os.environ["PYTEST_CURRENT_TEST"] = f"{name} (setup)"
        try:
            return (yield)
        finally:
            os.environ["PYTEST_CURRENT_TEST"] = test
            self.spent[name] = time.monotonic() - start

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration
        if not report.passed:
            self.failed.add(report.nodeid)

    def result(self, folder: Path) -> dict[str, Any]:
        """Seconds of the tests that passed, the tests of each bug by its number, and the modules that were imported."""
        seen = dict[str, set[str]]()  # by test or fixture
        for line in (folder / "seen_bugs.py.txt").read_text().splitlines():
            number, _, name = line.partition(" ")
            seen.setdefault(name, set()).add(number)
        seconds, tests = dict[str, float](), dict[str, list[str]]()
        for name in self.seconds.keys() - self.failed:
            among = self.fixtures[name]
            seconds[name] = self.seconds[name] + sum(self.spent.get(fixture, 0) for fixture in among)
            for number in set().union(*(seen.get(each, ()) for each in (name, *among))):
                tests.setdefault(number, []).append(name)
        modules = [name for name in sys.modules if name.partition(".")[0] not in (*OURS, "conftest", "__main__")]
        return {"seconds": seconds, "tests": tests, "modules": modules, "failed": sorted(self.failed)}


def traced(file: Path, bugs: Sequence[Bug]) -> dict[str, Any]:
    """The results of `Tracer`, in the file too: those of these sources and tests are not traced again."""
    paths = [path for folder in OURS for path in sorted((ROOT / folder).rglob("*.py"))]
    texts = [path.read_text() for path in paths if not {*path.parts} & {*LEFT_OUT}]
    key = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    found = json.loads(file.read_text()) if file.exists() else {}
    found = found if found.get("key") == key else {"key": key, "seconds": {}, "tests": {}, "modules": []}
    if new := [bug for bug in bugs if bug.name not in found["tests"]]:
        with tempfile.TemporaryDirectory() as temporary:
            folder = copied(Path(temporary) / "copy")
            instrument(folder, new)

            def work() -> None:
                left_out = (f"--ignore=tests/{name}" for name in LEFT_OUT)
                tracer = Tracer()
                pytest.main(["tests", f"--basetemp={folder}/temporary", *left_out, *PYTEST], plugins=[tracer])
                (folder / "result.json").write_text(json.dumps(tracer.result(folder)))

            in_child(work, folder)
            result = json.loads((folder / "result.json").read_text())
        tests = {bug.name: result["tests"].get(str(number), []) for number, bug in enumerate(new)}
        found |= {"seconds": result["seconds"], "modules": result["modules"], "tests": found["tests"] | tests}
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(found))
    return found


def copied(folder: Path) -> Path:
    """A copy of our source in a new folder, with links to all else."""
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.name in OURS:
            shutil.copytree(path, folder / path.name)
        elif path.name != ".git":
            (folder / path.name).symlink_to(path)
    return folder


# ---- what the tests make of a bug


def in_child(work: Callable[[], Any], folder: Path, seconds: int | None = None) -> bool:
    """Whether a forked process, which imports our source from this folder, comes to the end of its work. It may take
    some seconds of its processor, and ten times as many in all, as other programs may be at work."""
    child = os.fork()
    if not child:
        try:
            _enter(folder, seconds)
            work()
        finally:
            os._exit(0)
    for turn in count():
        if (ended := os.waitpid(child, os.WNOHANG))[0]:
            return os.WIFEXITED(ended[1])
        time.sleep(0.02)
        if seconds and turn * 0.02 > 10 * seconds:
            os.killpg(child, signal.SIGKILL)
    raise AssertionError


def _enter(folder: Path, seconds: int | None) -> None:
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    if seconds:
        memory = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
        for limit, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, memory)):
            resource.setrlimit(limit, (most, most))
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)
    sys.path[:] = [str(folder), *(path for path in sys.path if path not in ("", str(ROOT)))]
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]


class Judge:
    """A plugin of pytest: runs tests in this order, and writes the name of the first that fails."""

    def __init__(self, tests: Sequence[str], file: Path) -> None:
        self.tests, self.file = {name: rank for rank, name in enumerate(tests)}, file

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items.sort(key=lambda item: self.tests.get(item.nodeid, len(self.tests)))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.file.exists():
            self.file.write_text(report.nodeid)

    def run(self) -> None:
        # A file may not be read, and a test whose name is made of our source may be gone.
        places = f"--basetemp={self.file.with_name('temporary')}"
        if pytest.main([*self.tests, "-x", places, *PYTEST], plugins=[self]) and not self.file.exists():
            self.file.write_text(next(iter(self.tests)))


class Copy:
    """A copy of the checkout, in which bugs are planted one after another."""

    def __init__(self, folder: Path, found: dict[str, Any], seconds: float) -> None:
        self.folder, self.seconds, self.most = copied(folder), found["seconds"], seconds
        self.times = count(10**9)  # of changed files: Python compiles a file again if its time is another
        self.is_sound: dict[str, bool] = {}  # whether a test passes alone and without a bug

    def failing(self, tests: Sequence[str], bug: Bug | None = None) -> str | None:
        """The first of these tests that fails with the bug, "" where they take too long; None if all pass."""
        file = self.folder / "failed"
        file.unlink(missing_ok=True)
        if bug:
            self._write(bug.file, bug.planted())
        ended = in_child(Judge(tests, file).run, self.folder, 30 + int(3 * sum(map(self.seconds.__getitem__, tests))))
        if bug:
            self._write(bug.file, (ROOT / bug.file).read_bytes())
        return file.read_text() if file.exists() else None if ended else ""

    def _write(self, name: str, content: bytes) -> None:
        (self.folder / name).write_bytes(content)
        os.utime(self.folder / name, (next(self.times),) * 2)

    def judge(self, bug: Bug, tests: set[str]) -> dict[str, Any]:
        """The row of a bug, by tests that execute it."""
        start, ran = time.monotonic(), 0
        result, by = "survived" if tests else "not run", ""
        for batch in self._batches(tests):
            while (failed := self.failing(batch, bug)) in batch and not self._passes(str(failed)):
                batch.remove(str(failed))
            ran += len(batch)
            if failed is not None:
                result, by = "killed" if failed else "timeout", failed
                break
        row = {"result": result, "by": by, "tests": ran, "seconds": round(time.monotonic() - start, 1)}
        return asdict(bug) | row

    def _passes(self, test: str) -> bool:
        if test not in self.is_sound:
            self.is_sound[test] = self.failing([test]) is None
        return self.is_sound[test]

    def _batches(self, tests: set[str]) -> Iterator[list[str]]:
        """These tests, the quickest first, and then the others of their files."""
        files = {name.partition("::")[0] for name in tests}
        others = {name for name in self.seconds if name.partition("::")[0] in files} - tests
        spent, batch, is_first = 0.0, list[str](), True
        for name in [name for group in (tests, others) for name in sorted(group, key=self.seconds.__getitem__)]:
            if spent + self.seconds[name] < self.most and self.is_sound.get(name, True):
                spent += self.seconds[name]
                batch.append(name)
            if is_first and spent > FIRST:
                yield batch
                batch, is_first = [], False
        if batch:
            yield batch


_copy: Copy


def begin(folder: Path, *options: Any) -> None:
    global _copy
    _copy = Copy(folder / str(os.getpid()), *options)


def judge(bug: Bug, tests: list[str]) -> dict[str, Any]:
    return _copy.judge(bug, set(tests))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    for name, default in {"sample": 300, "seed": 0, "jobs": 1, "limit": 0, "seconds": 90}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    options = parser.parse_args()
    os.environ.update(SETTINGS)
    bugs = sampled(options.sample, options.seed)
    rows = pd.read_csv(options.output, keep_default_na=False).to_dict("records") if options.output.exists() else []
    done = {f"{row['file']} {row['start']} {row['after']}" for row in rows}
    found = traced(ROOT / "build" / "planted-bugs.json", bugs)
    left = [bug for bug in bugs if bug.name not in done][: options.limit or None]
    for name in found["modules"]:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.freeze()  # or collections in each child would copy what is here
    with tempfile.TemporaryDirectory() as folder:
        given, fork = (Path(folder), found, options.seconds), multiprocessing.get_context("fork")
        with ProcessPoolExecutor(options.jobs, fork, begin, given) as pool:
            for future in as_completed([pool.submit(judge, bug, found["tests"][bug.name]) for bug in left]):
                rows.append(row := future.result())
                pd.DataFrame(rows).sort_values(["file", "start", "after"]).to_csv(options.output, index=False)
                print(*(row[name] for name in ("file", "line", "kind", "result", "by", "seconds")), flush=True)
    table = pd.DataFrame(rows)
    is_killed = table["result"].isin(["killed", "timeout"])
    print(is_killed.groupby(table["room"]).agg(["size", "sum", "mean"]).round(3).to_string())


if __name__ == "__main__":
    main()
