"""One recipe per file.

`MODELS` is the registry that tests go by: a new recipe is one line here.  Students, which need a teacher, are
beside, and so are generators in two steps, which need two recipes, and what makes showers alone.
"""

from calorefine.models.affine_flow import AffineFlow
from calorefine.models.autoregressive_cells import AutoregressiveCells
from calorefine.models.base import GenerativeModel
from calorefine.models.calogan import CaloGAN
from calorefine.models.cramer_gan import CramerGAN
from calorefine.models.distillation import FlowStudent, Student
from calorefine.models.flow import Flow
from calorefine.models.flow_matching import FlowMatching
from calorefine.models.library import Library
from calorefine.models.two_step import TwoStep
from calorefine.models.vae import VAE
from calorefine.models.wgan import WGAN

_ALL = (WGAN, CramerGAN, Flow, AffineFlow, FlowMatching, VAE, Library)
MODELS: dict[str, type[GenerativeModel]] = {model.__name__: model for model in _ALL}

__all__ = [
    "MODELS",
    "VAE",
    "WGAN",
    "AffineFlow",
    "AutoregressiveCells",
    "CaloGAN",
    "CramerGAN",
    "Flow",
    "FlowMatching",
    "FlowStudent",
    "GenerativeModel",
    "Library",
    "Student",
    "TwoStep",
]
