"""What never imports what: the house of docs/architecture.md, checked by reading the imports of every file."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import align

ROOT = Path(__file__).parent.parent
ROOMS = ("classic_rl", "align", "recipes")
MATHS = tuple(f"classic_rl.{name}" for name in ("masked", "divergences", "returns", "losses", "q_learning"))
ALGORITHMS = (
    *(f"align.{name}" for name in ("sft", "reward_model", "dpo", "kto", "grpo", "ppo")),
    *(f"classic_rl.{name}" for name in ("dqn", "reinforce", "a2c", "ppo")),
)
HEAVY = ("torch", "transformers", "accelerate", "datasets", "peft", "pyarrow", "pandas", "gymnasium", "vllm")
UNPICKLING = ("pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib")
UNPICKLING_CALLS = ("torch.load", "torch.save", "pandas.read_pickle", "numpy.load", "numpy.save")


class Import(NamedTuple):
    """A module that a file imports, and where: at module level it runs on import, else when a function does."""

    name: str
    line: int
    at_import: bool


def modules_of(root: Path, *packages: str) -> dict[str, Path]:
    """Dotted name -> file, for every Python file of some packages."""
    found = {}
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(source: str, module: str, known: frozenset[str] = frozenset(), *, package: bool = False) -> list[Import]:
    """Every import of a file, those inside functions among them; a block `if TYPE_CHECKING:` imports nothing.

    `from align import batch` counts as align.batch where that is known to be a module, and so does a call of
    `import_module` with a literal name.
    """

    def visit(node: ast.AST, at_import: bool) -> Iterator[Import]:
        line = getattr(node, "lineno", 0)
        yield from (Import(name, line, at_import) for name in named_by(node, module, known, package))
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for_type_checkers = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in node.orelse if for_type_checkers else ast.iter_child_nodes(node):
            yield from visit(child, at_import and not inside)

    return list(visit(ast.parse(source), True))


def named_by(node: ast.AST, module: str, known: frozenset[str], package: bool) -> list[str]:
    """The modules that one statement or call imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        parts = module.split(".")
        here = parts[: len(parts) - node.level + package] if node.level else []
        base = ".".join([*here, *filter(None, [node.module])])
        submodules = sorted({f"{base}.{alias.name}" for alias in node.names} & known)
        return submodules if len(submodules) == len(node.names) else [*submodules, base]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
        return [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    return []


@cache
def project() -> dict[str, list[Import]]:
    """Dotted name -> imports, for the three rooms."""
    files = modules_of(ROOT, *ROOMS)
    return {
        name: imports_of(path.read_text(), name, frozenset(files), package=path.name == "__init__.py")
        for name, path in files.items()
    }


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def breaches(
    who: Callable[[str], bool], never: Callable[[str, Import], bool], tree: dict[str, list[Import]] | None = None
) -> list[str]:
    """One line for each import that a rule forbids."""
    return [
        f"{module}:{imported.line} imports {imported.name}"
        for module, imports in (tree or project()).items()
        if who(module)
        for imported in imports
        if never(module, imported)
    ]


def files_of(*rooms: str) -> Callable[[str], bool]:
    return lambda module: within(module, *rooms)


# -- the walk over imports, on sources written here


def test_an_import_counts_wherever_it_stands_but_for_type_checkers():
    source = """
import one.deep
from two import a, b
if TYPE_CHECKING:
    import never
else:
    import three
try:
    import four
except ImportError:
    pass
class Lazy:
    def load(self):
        import five
        return import_module("six"), lambda: __import__("seven")
"""
    assert [(i.name, i.at_import) for i in imports_of(source, "room.file")] == [
        ("one.deep", True), ("two", True), ("three", True), ("four", True),
        ("five", False), ("six", False), ("seven", False),
    ]  # fmt: skip


def test_a_relative_import_and_a_module_of_a_package_count_by_their_full_name():
    known = frozenset({"room.near", "room.deep.file", "room.deep.near"})
    assert [i.name for i in imports_of("from . import near", "room.file", known)] == ["room.near"]
    assert [i.name for i in imports_of("from .near import x", "room.file", known)] == ["room.near"]
    assert [i.name for i in imports_of("from ..near import x", "room.deep.file", known)] == ["room.near"]
    assert [i.name for i in imports_of("from . import near", "room.deep", known, package=True)] == ["room.deep.near"]
    assert [i.name for i in imports_of("from .. import near", "room.deep", known, package=True)] == ["room.near"]
    assert [i.name for i in imports_of("from room import near, other", "x", known)] == ["room.near", "room"]


# -- what never imports what


def test_classic_rl_imports_neither_the_other_rooms_nor_the_libraries_of_language_models():
    language = ("align", "recipes", "transformers", "accelerate", "datasets", "peft", "tokenizers", "vllm", "trl")
    assert not breaches(files_of("classic_rl"), lambda _, i: within(i.name, *language))


def test_the_maths_imports_only_torch_math_and_the_maths():
    allowed = ("__future__", "torch", "math", *MATHS)
    assert not breaches(MATHS.__contains__, lambda _, i: not within(i.name, *allowed))


def test_align_takes_the_maths_and_the_schedules_of_classic_rl_and_nothing_else_of_it():
    shared = (*MATHS, "classic_rl.schedules")
    assert not breaches(files_of("align"), lambda _, i: within(i.name, "classic_rl") and not within(i.name, *shared))


def test_align_never_imports_gymnasium_nor_a_recipe():
    handed_over = "align.__main__"  # `python -m align` is the command line
    assert not breaches(
        files_of("align"),
        lambda module, i: (
            within(i.name, "gymnasium", "recipes")
            and not (module == handed_over and i.name == "recipes.cli" and not i.at_import)
        ),
    )


def test_one_algorithm_never_imports_another():
    assert not breaches(ALGORITHMS.__contains__, lambda me, i: i.name in ALGORITHMS and i.name != me)


def test_the_library_parses_no_command_line_and_knows_no_tracker():
    banned = ("argparse", "optparse", "getopt", "click", "typer", "tyro", "fire", "wandb", "trackio", "tensorboard")
    assert not breaches(files_of("align", "classic_rl"), lambda _, i: within(i.name, *banned))


def test_the_library_prints_nothing():
    assert not [
        f"{module}:{node.lineno}" for module in project() if within(module, "align", "classic_rl")
        for node in calls(module) if ast.unparse(node.func) == "print"
    ]  # fmt: skip


def test_only_runs_and_recipes_know_the_files_and_the_terminal_of_a_run():
    def outside(module: str) -> bool:
        return within(module, "align", "classic_rl") and not within(module, "align.runs")

    assert not breaches(outside, lambda _, i: within(i.name, "align.runs", "rich", "logging"))


def test_runs_know_no_algorithm():
    assert not breaches(
        files_of("align.runs"), lambda _, i: within(i.name, *ROOMS) and not within(i.name, "align.runs")
    )


def test_vllm_is_imported_in_its_own_sampler_alone():
    assert not breaches(lambda module: module != "align.sampler_vllm", lambda _, i: within(i.name, "vllm"))


def test_what_is_heavy_or_optional_is_imported_where_it_is_used():
    late = tuple(name for name in HEAVY if name not in ("torch", "gymnasium"))

    def elsewhere(module: str) -> bool:  # than in the file that only a worker loads, which has to be ready by then
        return within(module, *ROOMS) and module != "align.math_equal"

    assert not breaches(elsewhere, lambda _, i: i.at_import and within(i.name, *late))


def test_nothing_imports_from_the_tests():
    assert not breaches(files_of(*ROOMS), lambda _, i: within(i.name, "tests", "pytest", "hypothesis"))


def test_the_tests_import_public_names():
    private = []
    for name, path in modules_of(ROOT, "tests").items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and within(node.module or "", *ROOMS):
                private += [f"{name}:{node.lineno} {a.name}" for a in node.names if a.name.startswith("_")]
    assert not private


def test_nothing_reads_or_writes_pickles():
    assert not breaches(files_of(*ROOMS), lambda _, i: within(i.name, *UNPICKLING))
    aliases = {"np": "numpy", "pd": "pandas"}
    called = []
    for module in project():
        for node in calls(module):
            first, *rest = ast.unparse(node.func).split(".")
            name = ".".join([aliases.get(first, first), *rest])
            if name in UNPICKLING_CALLS or name.endswith(".to_pickle"):
                called.append(f"{module}:{node.lineno} calls {name}")
    assert not called


def calls(module: str) -> list[ast.Call]:
    tree = ast.parse(modules_of(ROOT, *ROOMS)[module].read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


# -- floors and cycles


class Place(NamedTuple):
    """A room of the table of floors, or a part of one, and the floor in it."""

    room: str
    floor: int


@cache
def floors() -> dict[str, Place]:
    """Module -> its place, as the table of docs/architecture.md has it."""
    rows = re.findall(r"^\| `([\w.]+)` \| (\d+) \| ([\w ]+) \|", (ROOT / "docs/architecture.md").read_text(), re.M)
    return {f"{room}.{name}": Place(room, int(floor)) for room, floor, names in rows for name in names.split()}


def test_every_file_has_a_floor_in_the_table_and_every_entry_is_a_file():
    packages = {name for name, path in modules_of(ROOT, *ROOMS).items() if path.name == "__init__.py"}
    files = set(project()) - packages - {"align.__main__"}
    assert files - set(floors()) == set(), "give these a floor in docs/architecture.md"
    assert set(floors()) - files == set(), "docs/architecture.md names files that are not there"


def test_a_file_imports_only_from_lower_floors_of_its_room():
    def climbs(module: str, imported: Import) -> bool:
        here, there = floors().get(module), floors().get(imported.name)
        return here is not None and there is not None and here.room == there.room and there.floor >= here.floor

    assert floors()
    assert not breaches(files_of(*ROOMS), climbs)


def test_no_import_leads_back_to_where_it_came_from():
    assert cycle({name: {i.name for i in imports if i.at_import} for name, imports in project().items()}) is None


def test_a_circle_of_imports_would_be_found():
    assert cycle({"a": {"b"}, "b": {"c", "elsewhere"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def cycle(graph: dict[str, set[str]]) -> list[str] | None:
    """Find a circle in a graph, if there is one."""
    finished: set[str] = set()

    def follow(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in finished or node not in graph:
            return None
        circles = (follow(child, [*path, node]) for child in sorted(graph[node]))
        circle = next((circle for circle in circles if circle), None)
        finished.add(node)
        return circle

    return next((circle for node in sorted(graph) if (circle := follow(node, []))), None)


# -- what an import costs


def test_the_settings_the_finished_runs_and_the_command_line_load_no_torch():
    """So that --help, `align report` and `align doctor` answer at once; a static walk, whatever is imported later."""

    def reached(module: str, seen: set[str]) -> set[str]:
        for imported in project().get(module, []):
            if imported.at_import and imported.name not in seen:
                seen.add(imported.name)
                reached(imported.name, seen)
        return seen

    light = ["align", "align.config", "align.metrics", "align.runs", "recipes.cli", "recipes.common", "recipes.walk"]
    light += ["recipes.classic", "classic_rl.on_policy_config", "classic_rl.dqn_config"]
    heavy = {
        module: sorted(name for name in reached(module, set()) if within(name, *HEAVY, "numpy")) for module in light
    }
    assert not {module: names for module, names in heavy.items() if names}


def test_what_must_be_light_loads_nothing_heavy_in_a_fresh_interpreter():
    script = f"""
import sys
import align, align.config, align.runs, classic_rl, recipes
loaded = {set(HEAVY)} & set(sys.modules)
assert not loaded, loaded
import classic_rl.returns
loaded = {set(HEAVY) - {"torch"}} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


# -- the package


@pytest.mark.parametrize("module", sorted(modules_of(ROOT, *ROOMS)))
def test_every_module_can_be_imported_and_says_what_it_is_for(module):
    if not module.endswith("__main__"):
        assert importlib.import_module(module).__doc__


def test_every_recipe_has_a_main():
    recipes = [name for name, place in floors().items() if place.room == "recipes" and place.floor > 4]
    assert not [name for name in recipes if not callable(getattr(importlib.import_module(name), "main", None))]


def test_the_distribution_has_the_name_that_the_package_says_and_holds_the_three_rooms():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["project"]["name"] == align.__distribution__ == "align-rl"
    assert sorted(settings["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == sorted(ROOMS)


def test_the_maths_is_checked_strictly():
    strict = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["basedpyright"]["strict"]
    assert set(strict) >= {name.replace(".", "/") + ".py" for name in MATHS}


def test_the_oldest_supported_versions_are_the_lower_bounds():
    oldest = dict(re.findall(r"^([\w.-]+)==([\w.]+)$", (ROOT / "constraints-oldest.txt").read_text(), re.M))
    project_table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in [*project_table["dependencies"], *project_table["optional-dependencies"]["classic"]]:
        name, bound = re.sub(r"\[.*\]", "", requirement).split(">=")
        assert (oldest[name] + ".").startswith(bound + "."), (
            f"{requirement}, but constraints-oldest.txt has {oldest[name]}"
        )
