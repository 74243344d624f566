"""The errors a user can meet: each says what was expected, what was found and what to do."""


class FinePseudoError(Exception):
    """Base of every error the package raises on purpose."""


class RecipeError(FinePseudoError):
    """A recipe names something that does not exist, or two of its fields contradict each other."""


class ManifestError(FinePseudoError):
    """An annotation file or a manifest cannot be read as what it claims to be."""


class DecodeError(FinePseudoError):
    """A video, or some frames of it, cannot be decoded."""


class ArtefactError(FinePseudoError):
    """An artefact is missing, incomplete, or not what its digest or its reader expects."""


class WeightsError(ArtefactError):
    """A file of weights is damaged, of a layout that nobody knows, or not of the encoder that is to start from it."""


class StorageError(FinePseudoError):
    """A store refused or did not answer; that is never a property of the video that was asked for."""


class OutageError(StorageError):
    """A store was away for longer than is waited for it; the same command, started again, continues."""


class LeaseError(FinePseudoError):
    """Another job works in the folder that this one was to write in."""


class ClusterError(FinePseudoError):
    """The cluster lacks what the recipe needs, lost what worked for it, or did not answer within its deadline.

    The same command, started again, continues where it left off, once the cluster is itself again.
    """


class TrainingError(FinePseudoError):
    """A training cannot go on, and would not if it were tried again: a loss that is not finite, useless labels."""


class StreamError(FinePseudoError):
    """A stream did not give the plan's rows; the workers restart from their last commit."""


class NotReadyError(FinePseudoError):
    """Something that a run needs before it can start is not there: found by looking, with nothing started."""
