"""`ftrt plugins new`: a plugin distribution that works, to start one's own from."""

__all__ = ["render", "write"]

import keyword
import os
import re
import shutil
import tempfile
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from ftrt.errors import PluginError, UsageError, suggest
from ftrt.manifest import Manifest

SKELETONS = ("method", "head", "loss")
NAME = re.compile(r"[a-z][a-z0-9_]*")


def write(name: str, kind: str, folder: Path, manifest: Manifest) -> list[Path]:
    """Write the skeleton of a `kind` called `name` into `folder`/ftrt-NAME and return its files.

    Raises:
        UsageError: the name or kind cannot be used, or the folder exists.
        PluginError: an installed plugin has that name.
    """
    _require_usable(name, kind, manifest)
    target = folder / distribution(name)
    if target.exists():
        raise UsageError(f"{target}: must not exist; choose another name, or --dir")
    if not folder.is_dir():
        raise UsageError(f"--dir {folder}: must be a folder; it does not exist")
    files = render(name, kind)
    # All or nothing: a folder half written would be refused the next time.
    scratch = Path(tempfile.mkdtemp(dir=folder, prefix=f".{target.name}-"))
    try:
        for path, text in files.items():
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            (scratch / path).write_text(text, encoding="utf-8", newline="\n")
        scratch.chmod(0o777 & ~_umask())
        scratch.rename(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return [target / path for path in files]


def render(name: str, kind: str) -> dict[str, str]:
    """Path inside the distribution -> text, pyproject.toml first."""
    words = {
        "NAME": name,
        "CLASS": "".join(part.capitalize() for part in name.split("_")),
        "DISTRIBUTION": distribution(name),
        "PACKAGE": distribution(name).replace("-", "_"),
        "KIND": kind,
    }
    templates = resources.files("ftrt.cli") / "templates"
    texts = {**_texts(templates / "distribution", ""), **_texts(templates / kind, "")}
    files = {_filled(path, words): _filled(text, words) for path, text in sorted(texts.items())}
    return {"pyproject.toml": files.pop("pyproject.toml"), **files}


def distribution(name: str) -> str:
    """The distribution of a plugin called `name`: ftrt-my-method for my_method."""
    return f"ftrt-{name.replace('_', '-')}"


def _filled(text: str, words: dict[str, str]) -> str:
    return re.sub(r"@([A-Z]+)@", lambda match: words[match[1]], text)


def _texts(folder: Traversable, prefix: str) -> dict[str, str]:
    texts = {}
    for item in folder.iterdir():
        if item.is_dir():
            texts.update(_texts(item, f"{prefix}{item.name}/"))
        elif item.name.endswith(".tmpl"):
            path = f"{prefix}{item.name.removesuffix('.tmpl')}"
            texts[path] = item.read_text(encoding="utf-8")
    return texts


def _require_usable(name: str, kind: str, manifest: Manifest) -> None:
    if kind not in SKELETONS:
        raise UsageError(
            f"--kind: must be one of {', '.join(SKELETONS)}; got {kind!r}{suggest(kind, SKELETONS)}"
        )
    if not NAME.fullmatch(name) or name.endswith("_") or "__" in name:
        usable = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_0123456789")
        hint = f"; try {usable}" if NAME.fullmatch(usable) else ""
        raise UsageError(
            f"NAME: must be lower-case letters, digits and single _, a letter first;"
            f" got {name!r}{hint}"
        )
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise UsageError(f"NAME: must not be a word of Python; got {name!r}; try {name}_{kind}")
    if name == "ftrt" or name.startswith("ftrt_"):
        raise UsageError(
            f"NAME: must not start with ftrt, which the distribution gets anyway; got {name!r}"
        )
    taken = [offer for offer in manifest.offers if (offer.kind, offer.name) == (kind, name)]
    if taken:
        raise PluginError(
            f"{kind} {name!r}: must be a name that no installed plugin has; {taken[0]} offers it"
        )


def _umask() -> int:
    # Reading the umask means setting it; mkdtemp made the folder private, a project is not.
    mask = os.umask(0)
    os.umask(mask)
    return mask
