"""How a program wants the Hub to be asked: what transformers' `from_pretrained` takes about downloads."""

from dataclasses import dataclass
from pathlib import Path

from helium_mlx.errors import UsageError, shown
from helium_mlx.option_values import require_switch


@dataclass(frozen=True)
class HubAccess:
    """Options of a download; by default those of `huggingface_hub`, and its cache.

    `token` is a token, True for the one that is logged in, which must then be there, and False for none. `cache_dir`
    is the cache to look in and to fill. With `local_files_only` the Hub is not asked. With `force_download` everything
    is fetched again. `proxies` is None: the client takes proxies from the environment only.

    Raises UsageError, which begins with the option's name.
    """

    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    force_download: bool = False
    proxies: object = None

    def __post_init__(self) -> None:
        if self.token is not None and not isinstance(self.token, (str, bool)):
            # Not the value: whatever it is, it may be a secret.
            raise UsageError(f"token is {type(self.token).__name__}; it must be text, True, False or None")
        if self.cache_dir is not None and not (isinstance(self.cache_dir, (str, Path)) and str(self.cache_dir)):
            raise UsageError(f"cache_dir is {shown(self.cache_dir)}; name a directory")
        require_switch("local_files_only", self.local_files_only)
        require_switch("force_download", self.force_download)
        if self.local_files_only and self.force_download:
            raise UsageError("force_download asks the Hub, and local_files_only does not; leave one of them out")
        if self.proxies:
            raise UsageError(
                "proxies cannot be given, since the Hub's client takes none; set HTTPS_PROXY in the environment"
            )

    @property
    def cache(self) -> Path:
        """The directory of the cache."""
        if self.cache_dir is not None:
            return Path(self.cache_dir).expanduser()
        # What is on this machine starts without the client.
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE).expanduser()


DEFAULT_ACCESS = HubAccess()
