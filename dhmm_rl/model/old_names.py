"""Names that the model's parameters had in earlier versions, so that their checkpoints can be read."""

from typing import Any

OLD_NAMES = {"chain.": "latent.", "slot_mlp.": "slot_decoder.mlp."}
"""How the names of parameters began in earlier versions, and how they begin now."""


def rename_old_parameters(module: Any, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    """Give parameters of earlier versions their present names: a hook that runs before a model loads a state dict."""
    for name in list(state_dict):
        for old, new in OLD_NAMES.items():
            if name.startswith(prefix + old):
                state_dict[prefix + new + name.removeprefix(prefix + old)] = state_dict.pop(name)
