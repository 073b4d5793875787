"""What our code uses of torch_npu, and whether a wheel of torch_npu has it: both read with `ast`, nothing imported."""

from __future__ import annotations

import ast
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union


@dataclass(frozen=True)
class Use:
    """A name such as torch_npu.npu.set_device; how it is called, where it is called."""

    name: str
    positional: Optional[int] = None
    keywords: tuple[str, ...] = ()


def uses_in(source: str) -> set[Use]:
    """Every chain of attributes that begins at torch_npu, torch.npu, or a device module chosen by name."""
    found: set[Use] = set()
    tree = ast.parse(source)
    for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
        bound: dict[str, str] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                chain = _chain(node.value, bound)
                if chain:
                    bound[node.targets[0].id] = chain
        for node in ast.walk(function):
            chain = _chain(node.func, bound) if isinstance(node, ast.Call) else None
            if chain:
                found.add(Use(chain, len(node.args), tuple(sorted(k.arg for k in node.keywords if k.arg))))
            elif isinstance(node, ast.Attribute) and _chain(node, bound):
                found.add(Use(_chain(node, bound)))
    return found


def _chain(node: ast.expr, bound: dict[str, str]) -> Optional[str]:
    if isinstance(node, ast.Name):
        return bound.get(node.id, "torch_npu" if node.id == "torch_npu" else None)
    if isinstance(node, ast.Attribute):
        if node.attr == "npu" and isinstance(node.value, ast.Name) and node.value.id == "torch":
            return "torch_npu.npu"
        value = _chain(node.value, bound)
        return f"{value}.{node.attr}" if value else None
    if isinstance(node, ast.IfExp):
        return _chain(node.body, bound) or _chain(node.orelse, bound)
    if isinstance(node, ast.Call):
        function, arguments = ast.unparse(node.func), [ast.unparse(argument) for argument in node.args]
        if function == "getattr" and arguments[0] == "torch":  # getattr(torch, device.type)
            return "torch_npu.npu"
        if function == "importlib.import_module" and arguments[0].startswith("'torch_npu"):
            return ast.literal_eval(node.args[0])
    return None


COMPILED = "a name of the compiled part, which only an import could tell"
Found = Union[ast.AST, str, None]  # a definition, the dotted name of a module, COMPILED, or nothing


class Wheel:
    """The Python sources of a wheel."""

    def __init__(self, path: Path) -> None:
        self.archive = zipfile.ZipFile(path)
        self.files = set(self.archive.namelist())
        self.trees: dict[str, ast.Module] = {}

    def problem(self, use: Use) -> Optional[str]:
        """Why this use would fail, or None."""
        *owners, last = use.name.split(".")
        module, definition = owners[0], owners[0]
        for name in [*owners[1:], last]:
            if isinstance(definition, str) and definition != COMPILED:
                module, definition = self._find(definition, name)
            elif definition != COMPILED and not _has_member(definition, name):
                return f"{use.name}: nothing of that name"
            else:
                definition = COMPILED  # a member: there, but not looked into
            if definition is None:
                return f"{use.name}: nothing of that name"
            definition = self._instance(module, definition)
        if use.positional is None or not isinstance(definition, (ast.FunctionDef, ast.ClassDef)):
            return None
        return _misfit(use, definition)

    def _instance(self, module: str, definition: Found) -> Found:
        """For `config = npu_config._npuConfig()`, the class."""
        if not isinstance(definition, ast.Call):
            return definition
        found: Found = module
        for name in ast.unparse(definition.func).split("."):
            if not isinstance(found, str) or found == COMPILED:
                return COMPILED
            module, found = self._find(found, name)
        return found

    def _tree(self, module: str) -> Optional[ast.Module]:
        base = module.replace(".", "/")
        for path in (f"{base}.py", f"{base}/__init__.py"):
            if path in self.files:
                if module not in self.trees:
                    self.trees[module] = ast.parse(self.archive.read(path).decode())
                return self.trees[module]
        return None

    def _find(self, module: str, name: str, asked: tuple[str, ...] = ()) -> tuple[str, Found]:
        """(module that defines it, definition) of a name of a module, imports followed; `asked`: on the way here."""
        if module in asked:
            return module, None
        tree = self._tree(module)
        if tree is None:
            return module, COMPILED if module.startswith("torch_npu._C") else None
        for node in _statements(tree.body):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
                return module, node
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
                return module, node.value
            if isinstance(node, ast.ImportFrom):
                source = self._source(module, node)
                for alias in node.names:
                    original = name if alias.name == "*" else alias.name
                    if (alias.asname or original) == name and (alias.name != "*" or self._exports(source, name)):
                        where, found = self._find(source, original, (*asked, module))
                        if found is not None:
                            return where, found
        submodule = f"{module}.{name}"
        return (submodule, submodule) if self._tree(submodule) is not None else (module, None)

    def _source(self, module: str, node: ast.ImportFrom) -> str:
        if node.level == 0:
            return node.module or ""
        is_package = f"{module.replace('.', '/')}/__init__.py" in self.files
        parts = module.split(".")
        parts = parts[: len(parts) - node.level + is_package]
        return ".".join([*parts, *filter(None, [node.module])])

    def _exports(self, module: str, name: str) -> bool:
        """Whether `from module import *` gives the name."""
        tree = self._tree(module)
        for node in tree.body if tree else []:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                return name in ast.literal_eval(node.value)
        return tree is not None and not name.startswith("_")


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Those that run when a module is imported, inside `if` and `try` too."""
    for node in body:
        yield node
        for part in ("body", "orelse", "finalbody"):
            if isinstance(node, (ast.If, ast.Try)):
                yield from _statements(getattr(node, part, []))


def _has_member(definition: Found, name: str) -> bool:
    if not isinstance(definition, ast.ClassDef):
        return False
    # A class may take attributes by a __setattr__ that compares their names.
    constants = {node.value for node in ast.walk(definition) if isinstance(node, ast.Constant)}
    members = {node.name for node in definition.body if isinstance(node, ast.FunctionDef)}
    members |= {ast.unparse(t) for node in definition.body if isinstance(node, ast.Assign) for t in node.targets}
    return name in members | constants


def _misfit(use: Use, definition: Union[ast.FunctionDef, ast.ClassDef]) -> Optional[str]:
    """Why the arguments do not fit, or None."""
    skip = 0
    if isinstance(definition, ast.ClassDef):
        own = [node for node in definition.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
        if not own:
            return None
        definition, skip = own[0], 1
    arguments = definition.args
    positional = [argument.arg for argument in [*arguments.posonlyargs, *arguments.args]][skip:]
    keyword_only = [argument.arg for argument in arguments.kwonlyargs]
    unknown = [name for name in use.keywords if name not in positional + keyword_only]
    if unknown and arguments.kwarg is None:
        return f"{use.name}: has no parameter {unknown[0]}"
    if use.positional > len(positional) and arguments.vararg is None:
        return f"{use.name}: takes {len(positional)} positional arguments, not {use.positional}"
    needed = positional[: len(positional) - len(arguments.defaults)][use.positional :]
    needed += [name for name, default in zip(keyword_only, arguments.kw_defaults) if default is None]
    missing = [name for name in needed if name not in use.keywords]
    return f"{use.name}: needs {missing[0]}" if missing else None
