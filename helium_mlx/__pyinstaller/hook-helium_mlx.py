"""What a frozen program needs of helium_mlx and of MLX, and what it does without."""

import sys

from PyInstaller.utils.hooks import (
    collect_data_files,
    collect_dynamic_libs,
    collect_submodules,
    copy_metadata,
    get_package_paths,
)

# Every name of the package brings its module in when it is first used, and MLX's core is an extension that imports
# Python modules: neither does PyInstaller see.
hiddenimports = collect_submodules("helium_mlx", filter=lambda name: "__pyinstaller" not in name)
hiddenimports += collect_submodules("mlx", filter=lambda name: name not in ("mlx.extension", "mlx._distributed_utils"))

# The demo, the reference outputs of `selfcheck`, and what is asked for versions.
datas = collect_data_files("helium_mlx") + copy_metadata("mlx")

binaries = collect_dynamic_libs("mlx")
if sys.platform == "darwin":
    # MLX looks for its Metal kernels beside the libmlx that was loaded. PyInstaller puts one into mlx/lib and lets
    # another name of it stand at the top; the kernels have to be beside both.
    kernels = f"{get_package_paths('mlx')[1]}/lib/mlx.metallib"
    datas += [(kernels, "mlx/lib"), (kernels, ".")]

# Used where a program brings them itself: the adapter, the plots, evaluations, the parity tests.
excludedimports = ["mlx_lm", "transformers", "torch", "matplotlib", "lm_eval", "datasets", "sacrebleu"]
