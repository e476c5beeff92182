"""A model of transformers whose matrices are products of factors; needs torch and transformers.

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)   # or AutoModel, ...

The classes at the end are those of transformers with the layers that config.json lists under "mpo"
exchanged. Their weights, for a matrix W (in, out) and y = x W + bias, with the name in the file:

    rank r            W = B C                        factors.0 (in, r), factors.1 (r, out)
    rank r, pivoted   W = B [1 C] in another order   factors.1 (r, out - r), order (out,)
    chain (MPO)       W = sum over bonds of cores    factors.k (d_(k-1), i_k, j_k, d_k)

Maps that transformers keeps in one layer, such as GPT-2's query, key and value, are parts.0, ...,
of which a dense one has factors.0 (in, out) alone. Factors in 8 bits have scales.k, one for each
column, and are multiplied by them on loading.
"""

import math

import torch
import transformers  # noqa: F401 (for the classes at the end)
from torch import nn

_REBUILD_FROM = 64  # rows; below, cores are applied one after the other, and W is never built


class Matrix(nn.Module):
    """W (in, out) as factors."""

    def __init__(self, form, int8):
        super().__init__()
        self.size = form["in_features"], form["out_features"]
        shapes = _factor_shapes(form)
        dtype = torch.int8 if int8 else None
        empty = [torch.empty(shape, dtype=dtype) for shape in shapes]
        self.factors = nn.ParameterList([nn.Parameter(e, requires_grad=not int8) for e in empty])
        if int8:
            scales = [torch.empty([1] * (len(s) // 2) + list(s[len(s) // 2 :])) for s in shapes]
            self.scales = nn.ParameterList(scales)
        order = torch.arange(self.size[1], dtype=torch.int32) if form.get("pivoted") else None
        self.register_buffer("order", order)

    @property
    def weight(self):
        """A tensor of this layer's dtype and device, for which stock code asks."""
        return self.factors[-1]

    def dequantize(self):
        if hasattr(self, "scales"):
            pairs = zip(self.factors, self.scales, strict=True)
            self.factors = nn.ParameterList([nn.Parameter(f.data * s.data) for f, s in pairs])
            del self.scales

    def matrix(self):
        """W itself."""
        if self.factors[0].ndim == 2:
            return self._continued(self.factors[0])
        w = self.factors[0]
        for core in self.factors[1:]:
            w = torch.einsum("pijq,qklr->pikjlr", w, core).flatten(1, 2).flatten(2, 3)
        return w[0, : self.size[0], : self.size[1], 0]

    def times(self, x):
        """x W, of x (..., in)."""
        if self.factors[0].ndim == 2:
            return self._continued(x @ self.factors[0])
        rows = x.reshape(-1, self.size[0])
        y = rows @ self.matrix() if len(rows) >= _REBUILD_FROM else self._through_cores(rows)
        return y.reshape(*x.shape[:-1], -1)

    def times_transposed(self, x):
        """x W^T, of x (..., out)."""
        if len(self.factors) == 2 and self.factors[0].ndim == 2 and self.order is None:
            return x @ self.factors[1].T @ self.factors[0].T
        return x @ self.matrix().T

    def rows(self, ids):
        """W[ids]."""
        if self.factors[0].ndim == 2:
            return self._continued(nn.functional.embedding(ids, self.factors[0]))
        state, stride = ids.new_ones((), dtype=self.weight.dtype).expand(ids.numel(), 1, 1), 1
        for core in reversed(self.factors):  # the last digit of an id chooses in the last core
            pieces = core[:, ids.flatten() // stride % core.shape[1]]
            state = torch.einsum("pnjq,nqs->npjs", pieces, state).flatten(2)
            stride *= core.shape[1]
        return state[:, 0, : self.size[1]].unflatten(0, ids.shape)

    def _continued(self, u):
        """The product from that with the first factor on."""
        if len(self.factors) == 1:
            return u
        y = u @ self.factors[1]
        return y if self.order is None else torch.cat([u, y], -1).index_select(-1, self.order)

    def _through_cores(self, x):
        missing = math.prod(core.shape[1] for core in self.factors) - self.size[0]
        state = nn.functional.pad(x, (0, missing))[:, None, None]  # (rows, columns, bond, to do)
        for core in self.factors:
            state = state.unflatten(-1, (core.shape[1], -1))
            state = torch.einsum("tcpis,pijq->tcjqs", state, core).flatten(1, 2)
        return state.flatten(1)[:, : self.size[1]]


class Linear(Matrix):
    """y = x W + bias."""

    def __init__(self, form, int8, has_bias):
        super().__init__(form, int8)
        self.bias = nn.Parameter(torch.empty(self.size[1])) if has_bias else None

    def forward(self, x):
        return _biased(self.times(x), self.bias)


class SideBySide(nn.Module):
    """y = x [W_1 W_2 ...] + bias, perhaps with its entries in another order."""

    def __init__(self, form, int8, has_bias):
        super().__init__()
        self.parts = nn.ModuleList([Linear(part, int8, False) for part in form["parts"]])
        columns = sum(part.size[1] for part in self.parts)
        order = torch.arange(columns, dtype=torch.int32) if form["reordered"] else None
        self.register_buffer("order", order)
        self.bias = nn.Parameter(torch.empty(columns)) if has_bias else None

    def forward(self, x):
        y = torch.cat([part(x) for part in self.parts], -1)
        return _biased(y if self.order is None else y.index_select(-1, self.order), self.bias)


class Embedding(Matrix):
    """Rows of a table; `scale` multiplies them, as in Gemma."""

    def __init__(self, form, int8, scale):
        super().__init__(form, int8)
        self.scale = scale

    def forward(self, ids):
        return self.rows(ids) * self.scale


class Tied(nn.Module):
    """A layer whose weight is an embedding's: another embedding, or the map to logits."""

    def __init__(self, source, has_bias):
        super().__init__()
        self.source = [source]  # in a list: its parameters are not this module's
        self.bias = nn.Parameter(torch.empty(source.size[0])) if has_bias else None

    @property
    def weight(self):
        return self.source[0].weight

    def forward(self, x):
        if not x.is_floating_point():
            return self.source[0](x)
        return _biased(self.source[0].times_transposed(x), self.bias)


class Factored:
    """Exchanges layers of the class of transformers next to it."""

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        modules, int8 = dict(self.named_modules()), config.mpo["int8"]
        for name, form in config.mpo["layers"].items():
            # The bare model has no prefix, and not the head.
            name = name if name in modules else name.removeprefix(f"{self.base_model_prefix}.")
            old = modules.get(name)
            if isinstance(old, nn.Embedding):
                self.set_submodule(name, Embedding(form, int8, getattr(old, "embed_scale", 1)))
            # Some classes hold a bare model that has its layers already.
            elif old is not None and not isinstance(old, (Matrix, SideBySide)):
                has_bias = getattr(old, "bias", None) is not None
                kind = SideBySide if "parts" in form else Linear
                self.set_submodule(name, kind(form, int8, has_bias))
        for target, source in getattr(self, "all_tied_weights_keys", {}).items():
            owner, old = (self.get_submodule(n.rpartition(".")[0]) for n in (source, target))
            if isinstance(owner, Embedding):
                has_bias = getattr(old, "bias", None) is not None
                self.set_submodule(target.rpartition(".")[0], Tied(owner, has_bias))
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)

    def get_expanded_tied_weights_keys(self, all_submodels=False):
        """Ties between tensors that are still there."""
        names = {name for name, _ in self.named_parameters(remove_duplicate=False)}
        pairs = super().get_expanded_tied_weights_keys(all_submodels=all_submodels).items()
        return {target: source for target, source in pairs if {target, source} <= names}

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        kwargs.setdefault("key_mapping", _renamed(cls))
        found = super().from_pretrained(*args, **kwargs)
        model = found[0] if isinstance(found, tuple) else found
        for module in model.modules():
            if isinstance(module, Matrix):
                module.dequantize()
        model.config.mpo = {**model.config.mpo, "int8": False}
        return found


def _renamed(cls):
    """{pattern: name} of tensors that transformers renames for its own classes alone."""
    try:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    except ImportError:  # an earlier one, which has not renamed anything yet
        return {}
    found = get_checkpoint_conversion_mapping(cls.__name__.removeprefix("MPO")) or ()
    pairs = (zip(each.source_patterns, each.target_patterns, strict=True) for each in found)
    return {pattern: name for each in pairs for pattern, name in each}


def _biased(y, bias):
    return y if bias is None else y + bias


def _factor_shapes(form):
    rows, columns = form["in_features"], form["out_features"]
    if "rank" in form:
        rank = form["rank"]
        return (rows, rank), (rank, columns - rank if form.get("pivoted") else columns)
    if "bonds" in form:
        bonds = (1, *form["bonds"], 1)
        factors = form["in_factors"], form["out_factors"]
        return tuple(zip(bonds[:-1], *factors, bonds[1:], strict=True))
    return ((rows, columns),)
