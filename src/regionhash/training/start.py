"""Starting a model from the weights of another."""

from __future__ import annotations

from regionhash.models import HashModel, TrainedHashModel, learns_from_labels


def copy_weights(model: HashModel, start: HashModel) -> list[str]:
    """Copies the weights of `start` into `model`; returns the names of those left as they were.

    Weights of the same name must have the same shape, except those of the image hash, whose length
    may differ.

    Raises:
        ValueError: the models share nothing, or differ in more than the image hash; or one of them
            is not trained on labels.
    """
    if not (learns_from_labels(model) and learns_from_labels(start)):
        raise ValueError("a model that learns without labels shares no weights with another")
    _fold_like(model, start)
    weights, given = model.state_dict(), start.state_dict()
    differing = [
        name for name in weights if name in given and weights[name].shape != given[name].shape
    ]
    head = {id(weight) for weight in model.head_parameters()}
    head_names = {name for name, weight in model.named_parameters() if id(weight) in head}
    # Buffers of the hash's modules, such as running means, belong to the hash too.
    prefixes = tuple({name.rpartition(".")[0] + "." for name in head_names} - {"."})
    wrong = [name for name in differing if name not in head_names and not name.startswith(prefixes)]
    if wrong:
        raise ValueError(
            f"the two models differ in {wrong[0]}: {tuple(weights[wrong[0]].shape)} in the new "
            f"one, {tuple(given[wrong[0]].shape)} in the one to start from"
        )
    common = {
        name: value for name, value in given.items() if name in weights and name not in differing
    }
    if not common:
        raise ValueError("the two models have no weights in common")
    # Batch normalisation is folded into stages that are not trained, so half of one would be wrong.
    missing = [
        name for name in weights if name.startswith("backbone.stages.") and name not in common
    ]
    if missing:
        raise ValueError(
            f"the backbones do not train the same stages: only the new model has {missing[0]}"
        )
    model.load_state_dict(weights | common)
    return [name for name in weights if name not in common]


def _fold_like(model: TrainedHashModel, start: TrainedHashModel) -> None:
    """Folds the stages of `start` that `model` does not train, so that both have the same form."""
    frozen = [
        not any(weight.requires_grad for weight in stage.parameters())
        for stage in model.backbone.stages
    ]
    if len(start.backbone.stages) == len(frozen):
        start.backbone.freeze_all_but(len(frozen) - sum(frozen))
