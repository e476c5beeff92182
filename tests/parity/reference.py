"""transformers as the reference; imported only here, with its own warnings silenced."""

import re
import warnings

import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    import transformers

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)


def quietly(function, *args, **kwargs):
    """Calls into torch and transformers without turning their warnings into errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


def randomize(model, seed: int, scale: float = 0.3):
    """Replaces every parameter, norms and biases included, by random numbers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, scale, generator=generator)
            if re.search(r"(LayerNorm|layer_norm)\.weight", name):
                parameter.add_(1.0)
    return model.eval()


def num_parameters(kind, config) -> int:
    """Parameters of a model of transformers; nothing is allocated."""
    with torch.device("meta"):
        return sum(p.numel() for p in quietly(kind, config).parameters())


def load(folder, kind=None):
    """A model of a folder, by AutoModel unless a class is given."""
    return quietly((kind or transformers.AutoModel).from_pretrained, folder).eval()


def outputs(model, input_ids, attention_mask, token_type_ids=None):
    """Outputs of a torch model for numpy inputs."""
    arguments = {"input_ids": input_ids, "attention_mask": attention_mask}
    if token_type_ids is not None:
        arguments["token_type_ids"] = token_type_ids
    tensors = {name: torch.tensor(np.asarray(a)).long() for name, a in arguments.items()}
    with torch.no_grad():
        return quietly(model, **tensors)
