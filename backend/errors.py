"""Errors that are not a fault of the program.

ResAlignError                 a user can fix it; the command line prints it and exits with 2
├── ConfigError               a field of a plan
├── CheckpointError           a model file that cannot be read, or is not of a supported family
│   └── UndecidedError        a file that contradicts itself about what it predicts
├── DataError                 concepts, images, captions, prompts
├── DivergenceError           the optimisation left the rails; the last good state is saved
├── ExportError               the result cannot be written (disk, target, mismatch)
├── RankError                 another process of the same run stopped or died
└── RunError                  a run folder that cannot be used or resumed

Each message names the file or field, what was found there, and what to do.
"""


class ResAlignError(Exception):
    """Base of everything a user can mend."""


class ConfigError(ResAlignError):
    """A plan asks for something that cannot be done."""


class CheckpointError(ResAlignError):
    """A file is not a readable checkpoint; the message says why."""


class UndecidedError(CheckpointError):
    """A file contradicts itself about what its denoiser predicts: its user has to decide."""


class DataError(ResAlignError):
    """Concepts, images, captions or prompts that cannot be used."""


class DivergenceError(ResAlignError):
    """Losses or a linear solve became infinite; names the knobs that usually cause it."""


class ExportError(ResAlignError):
    """The hardened file cannot be written as asked."""


class RankError(ResAlignError):
    """Another process of the same run failed, died or hangs; what was saved can be resumed.

    first_is_gone: it is rank 0, which would otherwise say so.
    """

    first_is_gone = False


class RunError(ResAlignError):
    """A run folder cannot be created, resumed or read."""
