"""What the installed distributions say they offer, read from their metadata without an import."""

__all__ = ["FAMILY_END", "Manifest", "Offer", "discover"]

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata

from ftrt.errors import PluginError, one_line, suggest
from ftrt.hookspecs import KINDS

GROUP = "ftrt"
# "peft:*" is a family: its module offers every name that starts with "peft:" and that its hook
# returns, so the names need not be known before it is imported.
FAMILY_END = ":*"
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*(:\*)?")
MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True, order=True)
class Offer:
    """One entry point: a distribution says that `module` registers the `kind` called `name`.

    A `name` that ends in ":*" is a family: the module registers names that start with what stands
    before the "*".
    """

    kind: str
    name: str
    module: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} ({self.module})"

    @property
    def is_family(self) -> bool:
        """Whether it offers all names of a prefix instead of one."""
        return self.name.endswith(FAMILY_END)

    def covers(self, name: str) -> bool:
        """Whether a recipe's `name` is this offer's, or may be of its family."""
        if not self.is_family:
            return name == self.name
        return name == self.name or (":" in name and name.partition(":")[0] == self.family)

    @property
    def family(self) -> str:
        """What stands before the ":" in the names of a family; empty for a single name."""
        return self.name.removesuffix(FAMILY_END) if self.is_family else ""


@dataclass(frozen=True)
class Manifest:
    """What all installed plugins offer, and, as texts, the entry points that are no offer."""

    offers: tuple[Offer, ...]
    malformed: tuple[str, ...] = ()

    def find(self, kind: str, name: str) -> Offer:
        """The one offer of that kind that has the name, or whose family the name starts with.

        Raises:
            PluginError: nobody offers it (with the nearest name), or two do (both are named).
        """
        found = [offer for offer in self.offers if offer.kind == kind and offer.covers(name)]
        if not found:
            raise PluginError(self._not_offered(kind, name))
        if len(found) > 1:
            raise PluginError(_offered_twice(found))
        return found[0]

    def duplicates(self) -> dict[tuple[str, str], tuple[Offer, ...]]:
        """(kind, name) -> the offers that clash, where there is more than one."""
        by_key: dict[tuple[str, str], list[Offer]] = {}
        for offer in self.offers:
            by_key.setdefault((offer.kind, offer.name), []).append(offer)
        return {key: tuple(offers) for key, offers in by_key.items() if len(offers) > 1}

    def _not_offered(self, kind: str, name: str) -> str:
        families = {offer.family for offer in self.offers if offer.kind == kind and offer.is_family}
        known = {offer.name for offer in self.offers if offer.kind == kind and not offer.is_family}
        other = sorted({offer.kind for offer in self.offers if offer.name == name})
        hint = f"; a {other[0]} has that name" if other else suggest(name, known)
        if families and ":" not in name and not other:
            members = " or ".join(repr(f"{family}:{name}") for family in sorted(families))
            hint = f"{hint[:-1]}, or {members}?" if hint else f"; did you mean {members}?"
        elif families and ":" in name:
            hint = suggest(name.partition(":")[0], families)
        broken = [text for text in self.malformed if f".{name}'" in text]
        if broken:
            hint = f"; an entry point is malformed: {broken[0]}"
        return (
            f"{kind} {name!r}: an installed plugin must offer it; none does{hint}"
            " (`ftrt plugins list` shows what is installed)"
        )


def discover() -> Manifest:
    """Read the entry points of the group `ftrt` of every installed distribution.

    No plugin is imported, and metadata that cannot be read is listed as malformed, so no
    distribution can keep another one from being found.
    """
    malformed: list[str] = []
    try:
        points: Iterable[metadata.EntryPoint] = metadata.entry_points(group=GROUP)
    except Exception:
        # One unreadable entry_points.txt anywhere (not UTF-8, a line without "=") makes
        # `metadata.entry_points` raise; reading one distribution at a time finds which.
        points = _points_one_by_one(malformed)
    offers = set()
    for point in points:
        owner = _owner(point.dist)
        fault = _fault(point)
        if fault:
            malformed.append(f"{owner[0]} {owner[1]}: {fault}")
        else:
            kind, _, name = point.name.partition(".")
            offers.add(Offer(kind, name, _module(point), *owner))
    return Manifest(tuple(sorted(offers)), tuple(sorted(malformed)))


def _points_one_by_one(malformed: list[str]) -> list[metadata.EntryPoint]:
    points: list[metadata.EntryPoint] = []
    seen = set()
    for dist in metadata.distributions():
        owner = _owner(dist)
        # The first on the path hides later ones of its name, as it does for imports.
        key = re.sub(r"[-_.]+", "-", owner[0]).lower()
        if key in seen and owner[0] != UNKNOWN:
            continue
        seen.add(key)
        try:
            points.extend(dist.entry_points.select(group=GROUP))
        except Exception as error:
            malformed.append(
                f"{owner[0]} {owner[1]}: entry_points.txt must be readable; {one_line(error)};"
                f" reinstall it: pip install --force-reinstall {owner[0]}"
            )
    return points


UNKNOWN = "unknown"


def _owner(dist: metadata.Distribution | None) -> tuple[str, str]:
    """(name, version) of a distribution; "unknown" where its METADATA lacks them."""
    if dist is None:
        return UNKNOWN, UNKNOWN
    try:
        found = dist.metadata
        name, version = (found[key] if key in found else UNKNOWN for key in ("Name", "Version"))
        return str(name), str(version)
    except Exception:
        # A METADATA file that is not UTF-8, or a folder of that name: nothing to name it by.
        return UNKNOWN, UNKNOWN


def _module(point: metadata.EntryPoint) -> str:
    return point.value.partition("[")[0].strip()


def _fault(point: metadata.EntryPoint) -> str | None:
    kind, dot, name = point.name.partition(".")
    if not dot or kind not in KINDS:
        return (
            f"entry point {point.name!r} must read KIND.NAME with KIND one of {', '.join(KINDS)}"
            f"{suggest(kind, KINDS)}"
        )
    if not NAME.fullmatch(name):
        return (
            f"entry point {point.name!r} must read KIND.NAME with NAME of letters, digits, '_'"
            f" and '-', a letter first, or of that and ':*' for a family; got {name!r}"
        )
    if not MODULE.fullmatch(_module(point)):
        return f"entry point {point.name!r} must name a module, package.module; got {point.value!r}"
    return None


def _offered_twice(found: list[Offer]) -> str:
    kind, name = found[0].kind, found[0].name
    owners = sorted({offer.distribution for offer in found})
    if len(owners) == 1:
        fix = "its entry points name it more than once; report that to its author"
    else:
        fix = f"uninstall one, say: pip uninstall {owners[-1]}"
    return (
        f"{kind} {name!r}: one plugin may offer it; got"
        f" {' and '.join(str(offer) for offer in sorted(found))}; {fix}"
    )
