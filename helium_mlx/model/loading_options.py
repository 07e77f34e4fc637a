"""What transformers' `from_pretrained` takes, sorted: what is done here, what changes nothing here, what is refused.

Code that was written for transformers passes much by habit. An option that could not change what comes out is taken
(`WITHOUT_EFFECT`), one that asks for something that is not done here is refused by name (`REFUSED`), and any other name
is a field of the config, whose value it replaces.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import mlx.core as mx

from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.errors import ArgumentError, shown
from helium_mlx.files.hub_access import HubAccess
from helium_mlx.option_values import require_switch

# Where weights lie while they are loaded, how fast that is, or what transformers itself no longer reads.
WITHOUT_EFFECT = frozenset(
    {
        "_commit_hash", "_fast_init", "_from_auto", "_from_pipeline", "allow_all_kernels", "from_flax", "from_tf",
        "low_cpu_mem_usage", "mirror", "offload_buffers", "offload_folder", "offload_state_dict", "resume_download",
        "tqdm_class", "use_kernels", "weights_only",
    }
)  # fmt: skip

# What to do instead; None, False and empty values ask for nothing, and are taken.
REFUSED = {
    "adapter_kwargs": "fuse the adapter into the weights first",
    "device_mesh": "a model lies on one device here",
    "distributed_config": "a model lies on one device here",
    "fusion_config": "projections are merged by themselves here",
    "gguf_file": "only safetensors are read",
    "kernel_config": "kernels are MLX's",
    "key_mapping": "rename the tensors in the file",
    "load_in_4bit": "quantize with helium_mlx.convert(..., quantize=True, q_bits=4)",
    "load_in_8bit": "quantize with helium_mlx.convert(..., quantize=True, q_bits=8)",
    "max_memory": "weights are not split over devices here; HeliumEngine has a memory_limit",
    "quantization_config": "quantize with helium_mlx.convert(..., quantize=True)",
    "state_dict": "load the weights with model.load_weights",
    "tp_plan": "a model lies on one device here",
    "tp_size": "a model lies on one device here",
    "trust_remote_code": "no code from a checkpoint is run",
    "variant": "give the folder of the variant's files as subfolder",
}

# All compute the same here; a GPU runs MLX's fused attention.
_ATTENTION = ("eager", "sdpa")

# Maps that split a model where one device is too small for it, and leave it whole on the default device else.
_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
_GPU_NAMES = ("gpu", "mps", "cuda", "xpu")


@dataclass(frozen=True)
class LoadingOptions:
    """A `from_pretrained`'s options, checked. `config` stands in for the checkpoint's; `config_values` change it."""

    revision: str | None
    subfolder: str | None
    access: HubAccess
    dtype: str | mx.Dtype | None
    config: HeliumConfig | None
    config_values: Mapping[str, object]
    ignore_mismatched_sizes: bool
    output_loading_info: bool


def loading_options(given: Mapping[str, object]) -> LoadingOptions:
    """Return the options in the keywords of a `from_pretrained`.

    Raises ArgumentError for what is not done here, UsageError for values that an option cannot have.
    """
    options = {name: value for name, value in given.items() if name not in WITHOUT_EFFECT}
    for name, instead in REFUSED.items():
        value = options.pop(name, None)
        if value not in (None, False, {}, ()):
            raise ArgumentError(f"{name} is {shown(value)}, which is not done here; leave it out: {instead}")
    _require_attention(options.pop("attn_implementation", None))
    _require_this_device(options.pop("device_map", None))
    if options.pop("use_safetensors", None) is False:
        raise ArgumentError("use_safetensors is False, and only safetensors are read; leave it out")
    dtype, torch_dtype = options.pop("dtype", None), options.pop("torch_dtype", None)
    access = {name: options.pop(name) for name in _ACCESS if name in options}
    return LoadingOptions(
        revision=cast("str | None", options.pop("revision", None)),
        # transformers' default.
        subfolder=cast("str | None", options.pop("subfolder", None) or None),
        access=HubAccess(**access),  # pyright: ignore[reportArgumentType]
        dtype=cast("str | mx.Dtype | None", torch_dtype if dtype is None else dtype),
        config=_config(options.pop("config", None)),
        ignore_mismatched_sizes=require_switch(
            "ignore_mismatched_sizes", options.pop("ignore_mismatched_sizes", False)
        ),
        output_loading_info=require_switch("output_loading_info", options.pop("output_loading_info", False)),
        config_values=options,
    )


_ACCESS = tuple(HubAccess.__dataclass_fields__)


def _require_attention(name: object) -> None:
    if name is not None and name not in _ATTENTION:
        raise ArgumentError(
            f"attn_implementation is {shown(name)}; expected {' or '.join(_ATTENTION)}, which are the same here, or "
            "nothing"
        )


def _require_this_device(device_map: object) -> None:
    """Raise ArgumentError for a map that would have the model, or a part of it, elsewhere than MLX computes."""
    if isinstance(device_map, Mapping) and set(device_map) <= {""}:
        device_map = device_map.get("")
    default = "gpu" if mx.default_device().type == mx.DeviceType.gpu else "cpu"
    if device_map is None or device_map in _DEVICE_MAPS or _device_kind(device_map) == default:
        return
    raise ArgumentError(
        f"device_map is {shown(device_map)}; expected 'auto', or nothing: MLX computes on the {default}, see "
        "mx.set_default_device"
    )


def _device_kind(device: object) -> str | None:
    """Return "cpu" or "gpu" for a device as torch or MLX names it, of which there is one; None for anything else."""
    if device == 0:
        return "gpu"
    name, _, index = str(device).removeprefix("Device(").partition("," if isinstance(device, mx.Device) else ":")
    if index.strip(" )") not in ("", "0"):
        return None
    return "gpu" if name in _GPU_NAMES else "cpu" if name == "cpu" else None


def _config(given: object) -> HeliumConfig | None:
    if given is None or isinstance(given, HeliumConfig):
        return given
    if isinstance(given, (str, Path)):
        return HeliumConfig.from_pretrained(given)
    raise ArgumentError(f"config is {shown(given)}; expected a HeliumConfig, or the name of a checkpoint that has one")
