"""The layers: a module imports from its own layer or lower ones, and each outside package only where it belongs."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = "t2diff_jax"
PARTS = [
    {"types", "config", "config_rules", "config_values", "rng", "sharding"},
    {"data"},
    {"diffusion"},
    {"nn"},
    {"seen", "blocked_softmax", "losses", "metrics", "repel"},
    {"models"},
    {"retrieval", "hopper", "search", "muon", "optim", "negatives", "touched_rows", "train_state", "train_step"},
    {
        "array_digest",
        "checkpoint",
        "workdir",
        "evaluate",
        "report",
        "writer",
        "interrupt",
        "provenance",
        "program_cost",
        "gpu_kinds",
    },
    {"experiment"},
    {"loop", "final", "explain", "results", "dry_run", "command_line", "child_runs", "preranking"},
    {"train", "eval", "prepare", "compare", "prerank"},
]
LAYER = {part: number for number, parts in enumerate(PARTS) for part in parts}
# What a part may import of the package, where that is less than its layer and the lower ones.
NARROWER = {"diffusion": {"diffusion"}, "nn": {"types", "config", "rng", "diffusion", "nn"}}
# Outside packages that only these parts may import.
OWNERS = {
    "flax": {"nn", "models"},
    "orbax": {"checkpoint"},
    "absl": {"train", "eval", "prepare", "compare", "prerank", "command_line"},
}
# Heavy or optional packages: imported inside functions only, or in a module that is itself imported so.
LAZY = {"tensorflow", "tensorflow_datasets", "polars", "tensorboardX", "matplotlib", "apache_beam"}
LAZY_MODULES = {"t2diff_jax.data.sources.tfds_builder", "t2diff_jax.data.beam_pipeline"}
MESH_BUILDERS = {"jax.make_mesh", "jax.sharding.Mesh", "jax.sharding.AbstractMesh", "jax.interpreters.pxla.Mesh"}


def part_of(module):
    """`types` for t2diff_jax.types, `data` for t2diff_jax.data.sources.text, `train` for train."""
    names = module.split(".")
    return names[1] if names[0] == PACKAGE and len(names) > 1 else names[0]


def imports(tree, inside=False):
    """Yields (line, full name, local name, whether inside a function) of every import."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, alias.asname or alias.name.split(".")[0], inside
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                prefix = "." * node.level + (node.module or "")
                yield node.lineno, f"{prefix}.{alias.name}", alias.asname or alias.name, inside
        else:
            yield from imports(node, inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def dotted(node):
    """`a.b.c` of an attribute chain, or None."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return None


def violations(module, source):
    """Messages on what breaks the rules in the source of `module`."""
    tree = ast.parse(source)
    part, found = part_of(module), []
    if part != PACKAGE and part not in LAYER:
        return [f"{module}: give it a layer in tests/test_architecture.py and docs/architecture.md"]
    for line, name, _, inside in imports(tree):
        outside, where = name.split(".")[0], f"{module}:{line}"
        if name.startswith("."):
            found.append(f"{where}: relative import")
        elif outside == PACKAGE:
            found += package_faults(where, part, name)
            if not inside and any(name == lazy or name.startswith(f"{lazy}.") for lazy in LAZY_MODULES):
                found.append(f"{where}: {name} is to be imported inside a function")
        elif outside in ("train", "eval", "tests", "configs"):
            found.append(f"{where}: imports {outside}")
        elif part not in OWNERS.get(outside, {part}):
            found.append(f"{where}: only {' and '.join(sorted(OWNERS[outside]))} import {outside}")
        elif outside in LAZY and not inside and module not in LAZY_MODULES:
            found.append(f"{where}: {outside} is to be imported inside a function")
    if part != "sharding":
        found += [f"{module}:{line}: only sharding.py builds a Mesh" for line in meshes(tree)]
    return found


def package_faults(where, part, name):
    names = name.split(".")
    imported = names[1] if len(names) > 1 else ""
    if part == PACKAGE or imported not in LAYER:
        return [f"{where}: imports {name}"]
    if LAYER[imported] > LAYER[part] or imported not in NARROWER.get(part, {imported}):
        return [f"{where}: {part} imports {imported}"]
    return []


def meshes(tree):
    """Lines that build a Mesh."""
    local = {alias: name for _, name, alias, _ in imports(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (name := dotted(node.func)):
            first, _, rest = name.partition(".")
            # `import jax.sharding` binds `jax`: its attributes are already spelled out in full.
            full = local.get(first, first) if not local.get(first, "").startswith(f"{first}.") else first
            if f"{full}.{rest}".rstrip(".") in MESH_BUILDERS:
                yield node.lineno


def undocumented(module, source):
    """Public functions, classes and methods without a docstring; sections of the configuration are told by base.py."""
    tree = ast.parse(source)
    found = [] if ast.get_docstring(tree) else [f"{module}: no docstring"]
    definitions = [(node, node.name) for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    for node, name in list(definitions):
        if isinstance(node, ast.ClassDef) and not any(dotted(base) == "nn.Module" for base in node.bases):
            definitions += [(m, f"{name}.{m.name}") for m in node.body if isinstance(m, ast.FunctionDef)]
    for node, name in definitions:
        private = any(part.startswith("_") for part in name.split("."))
        section = module == f"{PACKAGE}.config" and name.endswith("Config")
        inherited = part_of(module) == "models" and "." in name  # the protocol's methods are told in types.py
        if not private and not section and not inherited and not ast.get_docstring(node):
            found.append(f"{module}.{name}: no docstring")
    return found


def modules():
    """Module name -> source of the package and the commands."""
    files = [*(ROOT / PACKAGE).rglob("*.py"), *(ROOT / f"{name}.py" for name in sorted(PARTS[-1]))]
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files}
    return {name: path.read_text() for path, name in names.items()}


MODULES = modules()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_layers(module):
    assert violations(module, MODULES[module]) == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_docstrings(module):
    assert undocumented(module, MODULES[module]) == []


def test_every_part_of_the_picture_exists():
    assert set(LAYER) == {part_of(module) for module in MODULES} - {PACKAGE}


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("t2diff_jax.types", "from t2diff_jax.data.log import DataError", "types imports data"),
        ("t2diff_jax.losses", "from t2diff_jax.models import t2diff", "losses imports models"),
        ("t2diff_jax.losses", "from t2diff_jax import models", "losses imports models"),
        ("t2diff_jax.losses", "import t2diff_jax.models.t2diff as m", "losses imports models"),
        ("t2diff_jax.models.t2diff", "def f():\n    from t2diff_jax import evaluate", "models imports evaluate"),
        ("t2diff_jax.nn.unet", "from t2diff_jax.data import batches", "nn imports data"),
        ("t2diff_jax.diffusion.process", "from t2diff_jax.types import Batch", "diffusion imports types"),
        ("t2diff_jax.diffusion.process", "import flax.linen as nn", "only models and nn import flax"),
        ("t2diff_jax.evaluate", "from flax import linen", "only models and nn import flax"),
        ("t2diff_jax.loop", "def f():\n    import orbax.checkpoint", "only checkpoint import orbax"),
        (
            "t2diff_jax.loop",
            "from absl import logging",
            "only command_line and compare and eval and prepare and prerank and train import absl",
        ),
        ("t2diff_jax.final", "import train", "imports train"),
        ("t2diff_jax.config", "from configs import base", "imports configs"),
        ("t2diff_jax.data.log", "from . import splits", "relative import"),
        ("t2diff_jax.data.log", "import t2diff_jax", "imports t2diff_jax"),
        ("t2diff_jax.data.log", "import polars as pl", "polars is to be imported inside a function"),
        ("t2diff_jax.data.log", "if True:\n    import tensorflow_datasets", "is to be imported inside a function"),
        ("t2diff_jax.data.log", "class A:\n    import tensorboardX", "is to be imported inside a function"),
        ("t2diff_jax.data.log", "from t2diff_jax.data.sources.tfds_builder import write_log", "inside a function"),
        ("t2diff_jax.data.log", "from t2diff_jax.data.sources import tfds_builder", "inside a function"),
        ("t2diff_jax.novelty", "import jax", "give it a layer"),
        ("t2diff_jax.loop", "import jax\nmesh = jax.make_mesh((1,), ('data',))", "only sharding.py builds a Mesh"),
        ("t2diff_jax.loop", "import jax.sharding\nmesh = jax.sharding.Mesh(d, n)", "only sharding.py builds a Mesh"),
        ("t2diff_jax.loop", "from jax import sharding as s\nm = s.Mesh(d, n)", "only sharding.py builds a Mesh"),
        (
            "t2diff_jax.loop",
            "from jax.sharding import Mesh\ndef f(): return Mesh(d, n)",
            "only sharding.py builds a Mesh",
        ),
        ("train", "from jax import make_mesh as m\nm((1,), ('data',))", "only sharding.py builds a Mesh"),
    ],
)
def test_the_checker_catches(module, source, message):
    found = violations(module, source)
    assert len(found) == 1 and message in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("t2diff_jax.data.batches", "from t2diff_jax.data.log import DataError\nfrom t2diff_jax import rng"),
        ("t2diff_jax.data.log", "def f():\n    import polars\n    from t2diff_jax.data.sources import tfds_builder"),
        ("t2diff_jax.models.t2diff", "import flax.linen as nn\nfrom t2diff_jax import losses"),
        ("t2diff_jax.experiment", "from t2diff_jax.sharding import make_mesh\nmesh = make_mesh(config)"),
        ("t2diff_jax.evaluate", "from jax.sharding import Mesh\ndef f(mesh: Mesh): return mesh.shape"),
        ("t2diff_jax.sharding", "import jax\nmesh = jax.make_mesh((1,), ('data',))"),
        ("train", "from absl import app\nfrom t2diff_jax import loop"),
    ],
)
def test_the_checker_allows(module, source):
    assert violations(module, source) == []


def test_the_checker_of_docstrings():
    source = "def f(): ...\ndef _g(): ...\nclass BConfig: ...\nclass A:\n 'A.'\n def m(self): ...\n def _p(self): ..."
    prefix = "t2diff_jax.loop"
    assert undocumented(prefix, source) == [
        f"{prefix}: no docstring",
        f"{prefix}.f: no docstring",
        f"{prefix}.BConfig: no docstring",
        f"{prefix}.A.m: no docstring",
    ]
    assert "t2diff_jax.config.BConfig: no docstring" not in undocumented("t2diff_jax.config", source)
