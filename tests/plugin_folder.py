"""Made-up plugin distributions in a folder on the path: metadata and modules as pip leaves them."""

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

REPOSITORY = Path(__file__).parents[1]

METHOD = """
    from ftrt import LinearAdapter, LinearMethod, PluginConfig, hookimpl
    from pydantic import Field

    ftrt_hookspec = 1

    class Config(PluginConfig):
        rank: int = Field(8, ge=1, description="How many.")
        targets: list[str] = ["q"]

    class Shiny(LinearMethod):
        '''Shines.'''
        name = "shiny"
        source = "Shine 2020"
        Config = Config

        def adapter(self, linear):
            return LinearAdapter()

    @hookimpl
    def register_methods():
        return [Shiny]
"""


class PluginFolder:
    """Writes distributions into `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, name, offers, modules=None, *, version="1.0", entry_points=None, metadata=None):
        """A distribution with entry points `offers` {"method.x": "module"} and module sources."""
        info = self.path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (info / "METADATA").write_text(text if metadata is None else metadata)
        lines = "".join(f"{key} = {value}\n" for key, value in offers.items())
        points = f"[ftrt]\n{lines}" if entry_points is None else entry_points
        (info / "entry_points.txt").write_bytes(
            points if isinstance(points, bytes) else points.encode()
        )
        (info / "RECORD").write_text("")
        for module, source in (modules or {}).items():
            self.module(module, source)

    def module(self, name, source):
        """Write the source of a module, packages above it included."""
        file = self.path / f"{name.replace('.', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        for package in file.relative_to(self.path).parents:
            if package != Path():
                (self.path / package / "__init__.py").touch()
        file.write_text(dedent(source))
        return file

    def python(self, *arguments, **environment):
        """Run Python in a process of its own that sees this folder and the repository."""
        path = os.pathsep.join((str(self.path), str(REPOSITORY)))
        return subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            cwd=self.path,
            env={**os.environ, "PYTHONPATH": path, "FTRT_DEBUG": "0", **environment},
            timeout=120,
        )

    def ftrt(self, *arguments, **environment):
        """Run the command line in a process of its own."""
        return self.python("-m", "ftrt", *arguments, **environment)
