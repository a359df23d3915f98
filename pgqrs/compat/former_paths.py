"""Import paths of moved modules: `import pgqrs.records` imports the module `pgqrs.model.records`."""

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Former:
    """Finds and loads a module under its former path."""

    def __init__(self, moved: Mapping[str, str]) -> None:
        self._moved = moved
        self._specs: dict[str, ModuleSpec | None] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in self._moved else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(self._moved[spec.name])
        self._specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        former = module.__spec__
        assert former is not None, "the import system has set it"
        module.__spec__ = self._specs[former.name]  # the module's own spec, which names its present path


def keep(moved: Mapping[str, str]) -> None:
    """Registers former paths. `moved` maps each former path to the present one."""
    sys.meta_path.append(_Former(moved))
