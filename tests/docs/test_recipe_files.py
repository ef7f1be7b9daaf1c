"""Every recipe in recipes/ is valid, with all plugins it names; no data and no model is read."""

import doc_pages
import pytest

from ftrt.data.catalog import ASSETS
from ftrt.recipe import load
from ftrt.runtime.training import _check_complete

FILES = sorted(doc_pages.REPOSITORY.glob("recipes/*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_recipe_is_valid_and_complete(file, validate):
    parts = validate(file)

    _check_complete(parts.recipe)
    for path in (parts.recipe.model.path, parts.recipe.data.train):
        assert not path.startswith("asset:") or path.removeprefix("asset:") in ASSETS


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_recipe_says_how_to_run_it_and_has_an_output_of_its_own(file):
    assert f"ftrt train recipes/{file.name}" in file.read_text(encoding="utf-8")
    outputs = [load(other).output for other in FILES]
    assert len(set(outputs)) == len(FILES)
