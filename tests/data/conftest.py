"""A small asset of our own, in a wheel built on the spot, in place of the published ones."""

import hashlib
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from ftrt.data import assets, catalog

ROWS = b"text,label,source\ngood,1,a\nbad,0,a\nother,1,b\n"


@dataclass
class Published:
    """A wheel in a folder that stands for the registry, and what was asked of it."""

    asset: catalog.Asset
    wheel: Path
    downloads: list[str]


def build_wheel(folder, package="toy-reviews", version="1.0", content=ROWS):
    module = package.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    wheel = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{module}/__init__.py", "raise SystemExit('must never run')\n")
        archive.writestr(f"{module}/data/reviews.csv", content)
        archive.writestr(f"{module}/data/large.bin", b"0" * 1000)
        metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def toy_asset(wheel, **changes):
    values = {
        "name": "toy",
        "package": "toy-reviews",
        "version": "1.0",
        "wheel_sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "members": (
            catalog.Member("toy_reviews/data/reviews.csv", hashlib.sha256(ROWS).hexdigest()),
        ),
        "licence": "MIT",
        "kind": "dataset",
        "wheel_mib": 1,
        "where": {"source": "a"},
    }
    return catalog.Asset(**{**values, **changes})


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Make a toy asset known and downloadable; the cache is empty and the test's own."""
    monkeypatch.setenv("FTRT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("FTRT_OFFLINE", raising=False)
    registry = tmp_path / "registry"
    registry.mkdir()

    def publish_toy(**changes):
        wheel = build_wheel(registry)
        asset = toy_asset(wheel, **changes)
        monkeypatch.setitem(catalog.ASSETS, asset.name, asset)
        downloads = []

        def download(wanted, folder):
            downloads.append(wanted.name)
            return Path(shutil.copy(wheel, folder))

        monkeypatch.setattr(assets, "download_wheel", download)
        return Published(asset, wheel, downloads)

    return publish_toy
