"""What each module offers: ``__all__`` is sorted and whole, and everything public is described."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from test_layers import Module, imports, is_type_checking, modules


def all_names(module: Module) -> list[str] | None:
    """The module's ``__all__``; None without one."""
    for node in module.tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return names
    return None


def defined(module: Module) -> set[str]:
    """The names that a module's top level binds, imported ones too.

    The package itself imports its names when they are first used; it lists them for type checkers.
    """
    names: set[str] = set()
    body = list(module.tree.body)
    if module.name == "prunescope":
        body += [node for part in body if is_type_checking(part) for node in part.body]
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found = (leaf for target in targets for leaf in ast.walk(target))
            names |= {leaf.id for leaf in found if isinstance(leaf, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def used_elsewhere() -> dict[str, set[str]]:
    """Module name -> the names that other modules of the package import from it."""
    used: dict[str, set[str]] = {}
    for module in modules():
        for found in imports(module):
            home, _, name = found.name.rpartition(".")
            if home != module.name:
                used.setdefault(home, set()).add(name)
    return used


def public_functions(module: Module) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """Functions, classes and the methods of public classes whose names have no underscore."""
    for node in module.tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                        yield f"{node.name}.{method.name}", method


PUBLIC = [module for module in modules() if not module.path.name.startswith("__main__")]
USED = used_elsewhere()


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.name)
def test_all_is_sorted_and_whole(module: Module) -> None:
    names = all_names(module)
    assert names is not None, f"{module.place} has no __all__"
    assert names == sorted(set(names), key=order)
    assert sorted(set(names) - defined(module)) == [], "in __all__, but not defined"
    own = {name for name, _ in public_functions(module) if "." not in name}
    submodules = {other.name.rpartition(".")[2] for other in modules()}
    used = {name for name in USED.get(module.name, set()) - submodules if name[0] != "_"}
    assert sorted((own | used) - set(names)) == [], "public or used elsewhere, but not in __all__"


def test_no_module_takes_anothers_private_names() -> None:
    private = {
        f"{home}.{name}"
        for home, names in USED.items()
        for name in names
        if home.startswith("prunescope") and name.startswith("_") and not name.endswith("__")
    }
    assert private == set()


def order(name: str) -> tuple[int, str]:
    # As ruff sorts (RUF022): constants, then classes, then the rest.
    kind = 0 if name.isupper() else 1 if name[:1].isupper() else 2
    return kind, name


@pytest.mark.parametrize("module", list(modules()), ids=lambda module: module.name)
def test_everything_public_is_described(module: Module) -> None:
    assert ast.get_docstring(module.tree), f"{module.place} has no docstring"
    bare = [name for name, node in public_functions(module) if not ast.get_docstring(node)]
    assert bare == [], module.place
