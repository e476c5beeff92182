"""Roles of parameters, as NNX variable types: shared or trained is chosen by type, not by name.

    graphdef, trained, frozen = nnx.split(model, AuxiliaryCore, ...)

Everything without a role of its own (biases, norms, dense kernels, tables) is a plain `nnx.Param`.
"""

from flax import nnx


class CentralCore(nnx.Param):
    """The middle core of a chain: at full bonds it holds almost all parameters of the matrix."""


class AuxiliaryCore(nnx.Param):
    """Any other core of a chain: few parameters, but each moves the whole matrix."""


class AdapterParam(nnx.Param):
    """A parameter of an adapter of a matrix, such as a low-rank update."""


# Role name -> variable type; "other" is every `nnx.Param` that none of the types above matches.
ROLE_TYPES = {"central": CentralCore, "auxiliary": AuxiliaryCore, "adapter": AdapterParam}
ROLES = (*ROLE_TYPES, "other")


def role_of(variable: nnx.Variable) -> str:
    """Name of the role of a variable: one of `ROLES`."""
    for name, kind in ROLE_TYPES.items():
        if isinstance(variable, kind):
            return name
    return "other"
