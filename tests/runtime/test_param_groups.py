"""A method's optimizer groups reach the Trainer, multiples of the learning rate too."""

import torch

import ftrt
from ftrt.integrations import transformers_training


def test_lora_plus_learns_b_at_its_own_rate(recipe_tree, monkeypatch):
    seen = []
    build = transformers_training.build_trainer

    def watch(*args, **kwargs):
        trainer = build(*args, **kwargs)
        if trainer.optimizer is not None:
            seen.append(
                [(g["lr"], {p.shape for p in g["params"]}) for g in trainer.optimizer.param_groups]
            )
        return trainer

    monkeypatch.setattr(transformers_training, "build_trainer", watch)
    recipe_tree["method"] = {"name": "lora", "rank": 3, "lr_ratio": 8}
    recipe_tree["training"] |= {"max_steps": 1, "learning_rate": 0.01, "eval_strategy": "no"}
    ftrt.train(recipe_tree)

    ((slow, slow_shapes), (fast, fast_shapes)) = seen[0]
    assert (slow, fast) == (0.01, 0.08)
    assert all(shape[1] == 3 for shape in fast_shapes)
    assert torch.Size([3, 16]) in slow_shapes
