"""docs/embedding.md: its examples run from top to bottom, and what it claims about memory holds."""

import gc
import inspect
import re
import weakref

import doc_pages
import pytest
from doc_pages import code_names

import ftrt

PAGE = doc_pages.read("docs/embedding.md")
INT8 = {"quantization": {"dtype": "int8"}, "method": {"name": "lora"}}


@pytest.fixture
def classifier(tiny_bert_dir):
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(tiny_bert_dir, num_labels=2)


def test_the_examples_run(run_page):
    run_page(PAGE)


def test_every_attribute_of_a_run_is_explained():
    listed = {name.removesuffix("()") for row in PAGE.tables[0].rows for name in code_names(row[0])}
    public = {name for name in ftrt.Run.__dataclass_fields__ if not name.startswith("_")}

    assert listed == public | {"detach"}


@pytest.mark.parametrize("name", ["load", "quantize_linears", "calibrate"])
def test_functions_stand_with_their_signatures(name):
    signature = inspect.signature(getattr(ftrt, name))
    parameters = [
        p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()
    ]
    bare = signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)

    assert re.sub(r"\s+", " ", f"`ftrt.{name}{bare}`".replace("'", '"')) in PAGE.text


@pytest.mark.parametrize("restorable", [True, False])
def test_float_weights_stay_in_memory_only_for_detach(classifier, restorable):
    layer = classifier.bert.encoder.layer[0].attention.self.query
    weight = weakref.ref(layer.weight)
    del layer

    run = ftrt.attach(classifier, INT8, restorable=restorable)
    gc.collect()

    assert len(run.quantized) > 0
    assert (weight() is not None) == restorable


def test_an_adapter_on_a_float_base_copies_no_weight(classifier):
    run = ftrt.attach(classifier, {"method": {"name": "lora"}})
    weights = {id(parameter) for parameter in classifier.parameters()}
    assert run._snapshot is not None
    copies = [value for tensor, value in run._snapshot._values if id(tensor) in weights]

    assert sum(value.numel() for value in copies) == 0


def test_the_classifier_trains_only_with_a_head(classifier):
    def trains():
        return any("classifier" in n for n, p in run.model.named_parameters() if p.requires_grad)

    run = ftrt.attach(classifier, INT8)
    assert not trains()
    run.detach()
    run = ftrt.attach(classifier, {**INT8, "head": {"name": "sequence_classification"}})
    assert trains()
