"""Fixtures that several test files share."""

import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

from tiny_checkpoints import CASES, CaseLoader, write_checkpoint

from helium_mlx import backend
from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.model.loading import load_model
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

# How long an example takes depends on what else the machine does.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

# MLX's CPU backend compiles kernels into the folder for temporary files, and one process may open what another is still
# writing there: each of several has its own.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    own = Path(tempfile.gettempdir(), f"helium_mlx-tests-{os.getuid()}-{worker}")
    own.mkdir(mode=0o700, exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(own)

# A shell's background job ignores these, and so would the processes that tests start and then interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options: take what the package keeps for GPUs; how many random cases are compared."""
    parser.addoption("--as-on-gpu", action="store_true", help="compute as on a GPU, on whatever MLX computes on here")
    parser.addoption("--parity-cases", type=int, default=200, help="random cases of each comparison of `generate`")


def pytest_configure(config: pytest.Config) -> None:
    """Say, where that is asked for, that MLX does not compute on the CPU."""
    if config.getoption("--as-on-gpu"):
        backend.is_cpu = lambda: False


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Share the whole suite among a process for each core; a run of chosen files, `-n`, and `--pdb` are as they say."""
    if "PYTEST_XDIST_WORKER" in os.environ or hasattr(config, "workerinput"):
        # One of those processes, which is not to share its part again.
        return
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not config.option.usepdb
    if whole and config.pluginmanager.hasplugin("xdist") and config.option.numprocesses is None:
        config.option.numprocesses = os.cpu_count() or 1


@pytest.fixture(scope="session")
def load_case(tmp_path_factory: pytest.TempPathFactory) -> CaseLoader:
    """Loads a case of `tiny_checkpoints.CASES` from a checkpoint on disk."""
    models: dict[str, HeliumForCausalLM] = {}

    def load(name: str) -> HeliumForCausalLM:
        if name not in models:
            models[name] = load_model(write_checkpoint(tmp_path_factory.mktemp(name), **CASES[name]))
        return models[name]

    return load


@pytest.fixture(scope="session")
def demo() -> tuple[HeliumForCausalLM, HeliumTokenizer]:
    """The checkpoint inside the package, in float32."""
    return load_model(DEMO_DIRECTORY, dtype="float32"), HeliumTokenizer.from_pretrained(DEMO_DIRECTORY)
