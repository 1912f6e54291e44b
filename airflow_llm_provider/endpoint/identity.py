"""Who answers at an endpoint: the models it serves, and what it is.

Owns the shape and the choice of a model. Does not know how it is asked (`endpoint.client`).
"""

from __future__ import annotations

from dataclasses import dataclass

from airflow_llm_provider.exceptions import EndpointRefusedError


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One entry of ``/v1/models``.

    Attributes:
        id: the name requests ask for.
        root: what the name stands for, such as a path or a Hugging Face name: it changes when the model is swapped
            under the same name. None where the server does not say.
        owned_by: ``vllm`` on vLLM.
    """

    id: str
    root: str | None
    owned_by: str | None


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """Who answers.

    Attributes:
        models: the served models, in the server's order.
        version: the answer of ``/version``; None where the server has no such route.
        is_vllm: whether the models say that vLLM serves them. A gateway in front may hide it.
    """

    models: tuple[ServedModel, ...]
    version: str | None
    is_vllm: bool


def resolve_model(identity: ServerIdentity, wanted: str | None) -> ServedModel:
    """The model to ask for.

    Args:
        identity: who answers.
        wanted: the model the connection or the DAG names; None leaves it to the server, if it serves just one.

    Raises:
        EndpointRefusedError: the wanted model is not served, nothing is served, or several are and none was wanted.
    """
    served = ", ".join(repr(model.id) for model in identity.models) or "no model"
    if wanted is None:
        if len(identity.models) == 1:
            return identity.models[0]
        raise EndpointRefusedError(
            f"No model is named and the endpoint serves {served}. Set `model` on the connection or the operator."
        )
    for model in identity.models:
        if model.id == wanted:
            return model
    raise EndpointRefusedError(
        f"The endpoint does not serve the model {wanted!r}; it serves {served}. "
        "Set `model` to one of them, or serve the wanted one (--served-model-name)."
    )
