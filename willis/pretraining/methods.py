"""Every way to pre-train, by the name that `pretrain.method` has for it."""

from typing import Any

from willis.errors import ParamsError
from willis.params import PretrainParams
from willis.pretraining.brainmvp import BrainMVP
from willis.pretraining.imputmae import ImpuTMAE
from willis.pretraining.method import Method
from willis.pretraining.mics import Mics

METHODS: dict[str, type[Method[Any, Any]]] = {"brainmvp": BrainMVP, "mics": Mics, "imputmae": ImpuTMAE}


def method_of(params: PretrainParams) -> type[Method[Any, Any]]:
    """The method that is asked for.

    Raises:
        ParamsError: none is.
    """
    if params.method not in METHODS:
        raise ParamsError(
            f"method is {params.method!r}; pre-training needs one of {', '.join(METHODS)} "
            "(params.yaml: pretrain.method)"
        )
    return METHODS[params.method]
