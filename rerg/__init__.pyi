from rerg.config import InputError as InputError
from rerg.reconstructor import RG as RG
from rerg.reconstructor import load as load

__version__: str
