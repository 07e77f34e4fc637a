"""transformers' `Auto` names, for code that comes here by changing its imports: each is the one class it can mean."""

from helium_mlx.config import HeliumConfig
from helium_mlx.model import HeliumForCausalLM, HeliumModel
from helium_mlx.tokenizer import HeliumTokenizer

AutoConfig = HeliumConfig
AutoModel = HeliumModel
AutoModelForCausalLM = HeliumForCausalLM
AutoTokenizer = HeliumTokenizer
